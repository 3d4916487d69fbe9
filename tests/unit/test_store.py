"""Case sets on disk: what is saved comes back, what is damaged is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from forked import Forks

from fastkernels.capture.case import Case
from fastkernels.capture.digest import case_digest
from fastkernels.capture.moments import Moments
from fastkernels.capture.store import MANIFEST, TENSORS, CaseSet, _manifest_digest, check_folder
from fastkernels.context import ForwardContext, Phase
from fastkernels.errors import CaseFileError, EnvironmentProblem, UnknownNameError, UsageError


def make_context() -> ForwardContext:
    return ForwardContext(
        query_start_loc=torch.tensor([0, 3], dtype=torch.int32),
        seq_lens=torch.tensor([5], dtype=torch.int32),
        block_table=torch.tensor([[1, 0, -1]], dtype=torch.int32),
        slot_mapping=torch.tensor([6, 7, 0]),
        max_query_len=3,
        max_seq_len=5,
        phase=Phase.MIXED,
    )


def make_cases() -> list[Case]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 10, generator=generator)
    plain = Case(
        op="rms_norm",
        init={"hidden_size": 4, "eps": 1e-5},
        inputs={"x": x[:, 2:6], "residual": None},
        params={"weight": torch.ones(4)},
        outputs_digest="abc",
        count=7,
        callers=("model.norm",),
        phase=Phase.DECODE,
    )
    paged = Case(
        op="attention",
        init={"dtype": torch.bfloat16, "sizes": [1, 2]},
        inputs={
            "y": torch.full((3, 0), 1.0),
            "flags": torch.tensor([True, False]),
            "n": 3,
            "z": x.to(torch.bfloat16).t(),
            "rows": torch.arange(3.0)[:, None].expand(3, 5),
        },
        params={"weight": torch.ones(4)},
        dtype=torch.bfloat16,
        context=make_context(),
        caches=(torch.randn(2, 2, 4, 1, 2, generator=generator), torch.zeros(2, 2, 4, 1, 2)),
        after={"kv_cache.0": torch.tensor(float("nan"))},
        phase=Phase.MIXED,
    )
    drawn = Case(
        op="linear",
        init={},
        inputs={"x": torch.zeros(2, 3)},
        params={"weight": torch.empty(50, 40, device="meta")},
        moments={"params.weight": Moments(0.5, 2.0, 3.0, 11)},
    )
    return [plain, paged, drawn]


def file_of(folder: Path, kind: str) -> Path:
    """The manifest, or the one file of tensors."""
    (found,) = [folder / MANIFEST] if kind == MANIFEST else folder.glob("tensors*.safetensors")
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_set() -> CaseSet:
    return CaseSet(make_cases(), model="tiny", workload="demo", environment={"torch": "x"})


def test_saved_set_loads_equal(tmp_path: Path) -> None:
    make_set().save(tmp_path / "set")
    loaded = CaseSet.load(tmp_path / "set")
    assert (loaded.model, loaded.workload, loaded.environment) == ("tiny", "demo", {"torch": "x"})
    for before, after in zip(make_set(), loaded, strict=True):
        assert case_digest(before) == case_digest(after)
        assert (before.count, before.callers, before.family, before.phase) == (
            after.count,
            after.callers,
            after.family,
            after.phase,
        )
        assert list(before.inputs) == list(after.inputs)
    assert set(files(tmp_path / "set")) == {MANIFEST, file_of(tmp_path / "set", TENSORS).name}


def test_strides_survive(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    plain, paged, _ = CaseSet.load(tmp_path)
    assert plain.inputs["x"].stride() == (10, 1)
    assert paged.inputs["z"].stride() == (1, 10)
    assert paged.inputs["rows"].stride() == (1, 0)
    assert torch.equal(plain.inputs["x"], make_cases()[0].inputs["x"])
    assert torch.equal(paged.inputs["rows"], make_cases()[1].inputs["rows"])


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    case = Case(op="linear", init={}, inputs={"x": weight.clone()}, params={"weight": weight})
    CaseSet([case] * 20).save(tmp_path)
    assert file_of(tmp_path, TENSORS).stat().st_size < 1.1 * 40_000


def test_moments_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    first, second = (CaseSet.load(tmp_path)[2].params["weight"] for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (50, 40)
    assert abs(first.mean() - 0.5) < 0.2
    assert first.abs().max() == 3.0


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    make_set().save(tmp_path)
    path = file_of(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaseFileError, match=path.name) as caught:
        CaseSet.load(tmp_path)
    assert "truncated" in str(caught.value)


def test_altered_tensor_is_found_by_its_hash(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    path = file_of(tmp_path, TENSORS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CaseFileError, match=r"altered: expected a tensor of sha256 \w{64}, found \w{64}"):
        CaseSet.load(tmp_path)


def test_altered_manifest_is_found_by_its_hash(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"count": 7', '"count": 8'))
    with pytest.raises(CaseFileError, match="was altered: expected sha256"):
        CaseSet.load(tmp_path)


def test_other_schema_version_is_refused(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    path = tmp_path / MANIFEST
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "schema_version": 99}))
    with pytest.raises(CaseFileError, match="expected schema_version 1, found 99"):
        CaseSet.load(tmp_path)


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    make_set().save(tmp_path)
    path = file_of(tmp_path, name)
    path.unlink()
    with pytest.raises(CaseFileError, match=f"{path.name} does not exist"):
        CaseSet.load(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_full_disk_leaves_the_set_that_was_there(tmp_path: Path, name: str) -> None:
    make_set().save(tmp_path)
    before = files(tmp_path)
    (tmp_path / f".{name}.partial").symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        CaseSet(make_cases()[:1]).save(tmp_path)
    assert len(CaseSet.load(tmp_path)) == 3
    assert files(tmp_path) == before


KILLED = """
import os, pathlib, sys
from fastkernels.capture.case import Case
from fastkernels.capture.store import CaseSet
import torch

real, left = pathlib.Path.replace, [int(sys.argv[2])]

def replace(path, target):
    if left[0] == 0:
        os._exit(9)
    left[0] -= 1
    return real(path, target)

pathlib.Path.replace = replace
CaseSet([Case(op="silu_and_mul", init={}, inputs={"x": torch.randn(4000, 8)})]).save(sys.argv[1])
"""


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_set_is_one_or_the_other_whenever_saving_is_cut_short(forks: Forks, tmp_path: Path, num_renames: int) -> None:
    make_set().save(tmp_path)
    done = forks.run(KILLED, [tmp_path, num_renames])
    assert done.code == (0 if num_renames == 2 else 9), done.err
    assert CaseSet.load(tmp_path).ops == (["silu_and_mul"] if num_renames == 2 else ["attention", "linear", "rms_norm"])
    make_set().save(tmp_path)
    assert len(CaseSet.load(tmp_path)) == 3
    assert len(files(tmp_path)) == 2  # what was cut short left nothing that stays


def test_set_of_an_earlier_version_loads_and_is_replaced(tmp_path: Path) -> None:
    """Its tensors' file had a fixed name, which the manifest did not tell."""
    make_set().save(tmp_path)
    file_of(tmp_path, TENSORS).rename(tmp_path / TENSORS)
    body = json.loads((tmp_path / MANIFEST).read_text())
    del body["tensors_file"]
    body["sha256"] = _manifest_digest(body)
    (tmp_path / MANIFEST).write_text(json.dumps(body))
    assert len(CaseSet.load(tmp_path)) == 3
    CaseSet(make_cases()[:1]).save(tmp_path)
    assert len(CaseSet.load(tmp_path)) == 1
    assert not (tmp_path / TENSORS).exists()


@pytest.mark.parametrize("name", ["../tensors.safetensors", "/etc/passwd", 7])
def test_tensors_lie_beside_their_manifest(tmp_path: Path, name: object) -> None:
    make_set().save(tmp_path)
    body = {**json.loads((tmp_path / MANIFEST).read_text()), "tensors_file": name}
    (tmp_path / MANIFEST).write_text(json.dumps({**body, "sha256": _manifest_digest(body)}))
    with pytest.raises(CaseFileError, match="which is no name of one"):
        CaseSet.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (MANIFEST, '{"name": "my web page"}'),
        (MANIFEST, "no JSON"),
        ("notes.txt", ""),
        (".git", ""),
        ("model.safetensors", ""),
    ],
)
def test_folder_of_other_files_is_refused_and_stays(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"holds {name}, which is no part of a case set"):
        make_set().save(tmp_path)
    assert files(tmp_path) == {name: text.encode()}


def test_path_that_cannot_take_a_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(UsageError, match="file is a file; name a folder"):
            check_folder(path)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        make_set().save(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root can write anywhere
    with pytest.raises(UsageError, match=r"cannot be written, so .*/new/set cannot take"):
        check_folder(tmp_path / "new" / "set")
    assert not (tmp_path / "new").exists()


def test_filter_by_op_and_phase() -> None:
    cases = make_set()
    assert [c.op for c in cases.filter(op="rms_norm")] == ["rms_norm"]
    assert [c.op for c in cases.filter(phase=Phase.MIXED)] == ["attention"]
    with pytest.raises(UnknownNameError, match="Did you mean rms_norm"):
        cases.filter(op="rmsnorm")
