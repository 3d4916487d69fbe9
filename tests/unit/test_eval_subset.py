"""Delta debugging over ops, and sets that are parts of other sets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from eval_sets import SETS

from fastkernels.bench.eval.implementations import EvalSet, read_sets, set_of
from fastkernels.bench.eval.subset import MOST_RUNS, find_at_fault
from fastkernels.errors import RunFolderError, UsageError
from fastkernels.sets import folder_digest, resolve_set

OPS = [f"op{i}" for i in range(16)]


class Model:
    """Breaks when any of these groups is whole in it."""

    def __init__(self, *groups: Sequence[str]) -> None:
        self.groups = [set(group) for group in groups]
        self.tried: list[tuple[str, ...]] = []

    def __call__(self, ops: Sequence[str]) -> str | None:
        self.tried.append(tuple(ops))
        return "CRASH" if any(group <= set(ops) for group in self.groups) else None


@pytest.mark.parametrize("number", range(0, 16, 3))
def test_one_op_at_fault_is_found_in_few_runs_and_all_others_are_kept(number: int) -> None:
    model = Model([OPS[number]])
    found = find_at_fault(OPS, "CRASH", model)
    assert found.at_fault == {OPS[number]: "CRASH"}
    assert found.kept == [op for op in OPS if op != OPS[number]]
    assert found.num_runs == len(model.tried) <= 9
    assert len(set(model.tried)) == len(model.tried), "No subset is run twice."


def test_several_ops_at_fault_are_all_found() -> None:
    found = find_at_fault(OPS, "CRASH", Model(["op3"], ["op11"]))
    assert sorted(found.at_fault) == ["op11", "op3"]
    assert len(found.kept) == 14


def test_ops_that_break_together_lose_the_last_of_them() -> None:
    found = find_at_fault(OPS, "CRASH", Model(["op2", "op7", "op13"]), most_runs=60)
    assert found.at_fault == {"op13": "CRASH (only together with op2, op7)"}
    assert found.kept == [op for op in OPS if op != "op13"]


def test_a_single_op_needs_no_run() -> None:
    model = Model(["op0"])
    found = find_at_fault(["op0"], "TIMEOUT", model)
    assert (found.at_fault, found.kept, model.tried) == ({"op0": "TIMEOUT"}, [], [])


def test_all_at_fault_leaves_nothing() -> None:
    found = find_at_fault(OPS[:4], "CRASH", Model(*([op] for op in OPS[:4])))
    assert (sorted(found.at_fault), found.kept) == (OPS[:4], [])


def test_a_spent_budget_keeps_the_largest_part_that_was_seen_to_run() -> None:
    model = Model(*([op] for op in OPS[8:]))
    found = find_at_fault(OPS, "CRASH", model, most_runs=3)
    assert found.num_runs == 3
    assert found.kept == OPS[:8]
    assert all("within 3 runs" in found.at_fault[op] for op in OPS[8:])
    assert find_at_fault(OPS, "CRASH", Model(*([op] for op in OPS))).num_runs == MOST_RUNS
    late = find_at_fault(OPS, "CRASH", Model(["op1"]), most_seconds=0)
    assert (late.kept, late.num_runs) == ([], 0)


def chosen(name: str) -> EvalSet:
    return read_sets([str(SETS / name)])[0]


def test_a_part_of_a_set_offers_its_ops_alone(tmp_path: Path) -> None:
    whole = chosen("one_at_fault")
    assert whole.folder_of(["relu", "addcmul"], tmp_path) == SETS / "one_at_fault"
    part = whole.folder_of(["relu"], tmp_path)
    assert part.name == "one_at_fault"
    assert [entry.name for entry in resolve_set(part).ops()] == ["relu"]
    assert whole.folder_of(["relu"], tmp_path) == part


def test_a_part_may_be_one_class_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine" / "L2" / "parallel_linear.py"
    file.parent.mkdir(parents=True)
    file.write_text("class ColumnParallelLinear: ...\n\n\nclass RowParallelLinear: ...\n")
    whole = read_sets([str(tmp_path / "mine")])[0]
    assert sorted(whole.record.ops) == ["column_parallel_linear", "row_parallel_linear"]
    part = resolve_set(whole.folder_of(["row_parallel_linear"], tmp_path / "parts"))
    assert [entry.name for entry in part.ops()] == ["row_parallel_linear"]


def test_a_part_of_an_adapting_set_adapts_its_ops_alone(tmp_path: Path) -> None:
    whole = read_sets(["reference"])[0]
    part = whole.folder_of(["relu", "dense_mlp"], tmp_path)
    text = (part / "adapt.py").read_text()
    assert "LEVELS = (1, 2)" in text
    assert "['DenseMLP', 'ReLU']" in text
    compile(text, "adapt.py", "exec")


def test_a_digest_is_of_all_files_and_their_places(tmp_path: Path) -> None:
    digests = set()
    for number, (name, text) in enumerate([("a.py", "x"), ("b.py", "x"), ("a.py", "y"), ("L1/a.py", "x")]):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        digests.add(folder_digest(tmp_path / str(number)))
    assert len(digests) == 4
    (tmp_path / "0" / "__pycache__").mkdir()
    (tmp_path / "0" / "__pycache__" / "a.pyc").write_text("")
    assert folder_digest(tmp_path / "0") in digests


def test_a_digest_is_of_what_links_lead_to(tmp_path: Path) -> None:
    real, linked = tmp_path / "real", tmp_path / "linked"
    for folder in (real, linked):
        folder.mkdir()
    (real / "rms_norm.py").write_text("x")
    (linked / "L1").symlink_to(real)
    before = folder_digest(linked)
    (real / "rms_norm.py").write_text("y")
    assert folder_digest(linked) != before
    before = folder_digest(linked)
    (real / "gone.py").symlink_to(tmp_path / "nowhere")
    (real / "back").symlink_to(real)
    assert folder_digest(linked) == before


def test_a_set_that_is_another_on_this_host_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "sound"
    shutil.copytree(SETS / "sound", copy)
    record = read_sets([str(copy)])[0].record
    assert set_of(record).record == record
    (copy / "L1" / "relu.py").write_text("# another\n")
    with pytest.raises(RunFolderError, match="has changed"):
        set_of(record)


def test_sets_must_offer_something_under_a_name_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other" / "sound").mkdir(parents=True)
    shutil.copytree(SETS / "sound" / "L1", tmp_path / "other" / "sound" / "L1")
    with pytest.raises(UsageError, match="Two sets are named 'sound'"):
        read_sets([str(SETS / "sound"), str(tmp_path / "other" / "sound")])
    (tmp_path / "empty" / "L1").mkdir(parents=True)
    with pytest.raises(UsageError, match="offers no op"):
        read_sets([str(tmp_path / "empty")])
