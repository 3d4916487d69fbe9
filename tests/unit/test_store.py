"""Case sets on disk: what is saved comes back, what is damaged is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from fastkernels.capture.case import Case
from fastkernels.capture.digest import case_digest
from fastkernels.capture.moments import Moments
from fastkernels.capture.store import MANIFEST, TENSORS, CaseSet
from fastkernels.context import ForwardContext, Phase
from fastkernels.errors import CaseFileError, EnvironmentProblem, UnknownNameError


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
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [MANIFEST, TENSORS]


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
    assert (tmp_path / TENSORS).stat().st_size < 1.1 * 40_000


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
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CaseFileError, match=name) as caught:
        CaseSet.load(tmp_path)
    assert "truncated" in str(caught.value)


def test_altered_tensor_is_found_by_its_hash(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    path = tmp_path / TENSORS
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
    (tmp_path / name).unlink()
    with pytest.raises(CaseFileError, match=f"{name} does not exist"):
        CaseSet.load(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_full_disk_leaves_the_set_that_was_there(tmp_path: Path, name: str) -> None:
    make_set().save(tmp_path)
    (tmp_path / f".{name}.partial").symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        CaseSet(make_cases()[:1]).save(tmp_path)
    assert len(CaseSet.load(tmp_path)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, TENSORS]


def test_folder_that_is_a_file_is_an_environment_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot take a case set"):
        make_set().save(tmp_path / "file")


def test_filter_by_op_and_phase() -> None:
    cases = make_set()
    assert [c.op for c in cases.filter(op="rms_norm")] == ["rms_norm"]
    assert [c.op for c in cases.filter(phase=Phase.MIXED)] == ["attention"]
    with pytest.raises(UnknownNameError, match="Did you mean rms_norm"):
        cases.filter(op="rmsnorm")
