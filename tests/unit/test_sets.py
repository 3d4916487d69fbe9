"""Which folder is an implementation set, and what loading one of its classes refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
from pathlib import Path

import pytest

from fastkernels import loading, registry, sets
from fastkernels.errors import CandidateError, UnknownNameError, UsageError
from fastkernels.signatures import baseline_signature

HEAD = "from torch import nn\nfrom fastkernels.op import Op\n"
NORM = HEAD + (
    "class RMSNorm(Op):\n"
    "    def __init__(self, hidden_size, eps=1e-6):\n        super().__init__()\n"
    "    def forward(self, x, residual=None):\n        return x\n"
)


def make_set(folder: Path, **files: str) -> sets.ImplementationSet:
    """files: rms_norm="text" becomes L1/rms_norm.py."""
    for stem, text in files.items():
        path = folder / "L1" / f"{stem}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return sets.resolve_set(folder)


def load(folder: Path, text: str, op: str = "rms_norm") -> type:
    entry = registry.ops()[op]
    return loading.load_class(entry, make_set(folder, **{entry.stem: text}))


def test_available_sets_are_the_users_and_the_shipped_ones() -> None:
    assert sets.available_sets()[0] == "candidate"
    assert {"liger", "reference", "torch_compile", "torch_native"} <= set(sets.available_sets())


@pytest.mark.parametrize("name", sets.available_sets())
def test_every_shipped_set_resolves_and_offers_known_ops(name: str) -> None:
    found = sets.resolve_set(name)
    assert found.name == name
    assert {entry.name for entry in found.ops()} <= set(registry.ops())
    assert found.ops() or name == "candidate"


def test_an_unknown_set_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean liger"):
        sets.resolve_set("ligr")


def test_a_missing_folder_says_what_is_expected() -> None:
    with pytest.raises(UsageError, match=r"no directory './nowhere'.*L1/<file>\.py"):
        sets.resolve_set("./nowhere")


def test_a_folder_without_levels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rms_norm.py").write_text(NORM)
    with pytest.raises(UsageError, match="holds no implementation; expected L1"):
        sets.resolve_set(tmp_path)


def test_a_file_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "rms_norm.py").write_text(NORM)
    with pytest.raises(UsageError, match="is a file; a set is a directory"):
        sets.resolve_set(tmp_path / "rms_norm.py")


def test_a_misspelled_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="L1/rms_norm"):
        make_set(tmp_path, rmsnorm=NORM)


def test_the_candidate_folder_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path, rms_norm=NORM)
    monkeypatch.setenv("FASTKERNELS_CANDIDATE_DIR", str(tmp_path))
    assert [entry.name for entry in sets.resolve_set("candidate").ops()] == ["rms_norm"]


def test_a_relative_candidate_folder_is_not_taken_for_a_shipped_set_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is told the path alone."""
    make_set(tmp_path / "reference", rms_norm=NORM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTKERNELS_CANDIDATE_DIR", "reference")
    path = sets.resolve_set("candidate").path
    assert [entry.name for entry in sets.resolve_set(str(path)).ops()] == ["rms_norm"]


def test_a_folder_named_like_a_shipped_set_is_told_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the name alone; ./ means the folder. A folder that is no set, or is that set, is in no one's way."""
    shipped = sets.resolve_set("torch_native").path
    (tmp_path / "torch_native").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sets.resolve_set("torch_native").path == shipped
    make_set(tmp_path / "torch_native", rms_norm=NORM)
    with pytest.raises(UsageError, match=r"by name, in .*torch_native, and a folder here: write \./torch"):
        sets.resolve_set("torch_native")
    assert sets.resolve_set("./torch_native").path == tmp_path / "torch_native"
    assert sets.resolve_set(str(shipped)).path == sets.named_set("torch_native").path == shipped
    monkeypatch.chdir(sets.ALTERNATIVES_DIR)
    assert sets.resolve_set("torch_native").path == shipped


def test_a_file_offers_only_the_classes_it_names(tmp_path: Path) -> None:
    (tmp_path / "L2").mkdir()
    (tmp_path / "L2" / "parallel_linear.py").write_text(HEAD + "class RowParallelLinear(Op): ...")
    assert [entry.name for entry in sets.resolve_set(tmp_path).ops()] == ["row_parallel_linear"]


@pytest.mark.parametrize(
    "more",
    [
        "try:\n    import torch\n    class ColumnParallelLinear(Op): ...\nexcept ImportError:\n    torch = None",
        "ColumnParallelLinear, _other = RowParallelLinear, 1",
        "from ._columns import *",
    ],
)
def test_a_class_that_is_not_a_statement_of_its_own_is_offered_too(tmp_path: Path, more: str) -> None:
    """One that is overlooked would leave the baseline in its place without a word."""
    (tmp_path / "L2").mkdir()
    (tmp_path / "L2" / "_columns.py").write_text(HEAD + "class ColumnParallelLinear(Op): ...")
    text = HEAD + "class RowParallelLinear(Op):\n    class QKVParallelLinear: ...\n" + more
    (tmp_path / "L2" / "parallel_linear.py").write_text(text)
    names = [entry.name for entry in sets.resolve_set(tmp_path).ops()]
    assert names == ["column_parallel_linear", "row_parallel_linear"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("silu_and_mul.py", r"silu_and_mul\.py would never be used there: its place is L1/silu_and_mul\.py"),
        ("l2/llama_mlp.py", "l2 would never be used: the levels' folders are L1, L2, L3, L4"),
        ("L5/llama_mlp.py", "L5 would never be used"),
    ],
)
def test_a_file_that_would_never_be_used_is_refused(tmp_path: Path, place: str, says: str) -> None:
    make_set(tmp_path, rms_norm="from ..rms_norm import RMSNorm")
    (tmp_path / "rms_norm.py").write_text(NORM)  # a helper: the op has its file
    assert [entry.name for entry in sets.resolve_set(tmp_path).ops()] == ["rms_norm"]
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    with pytest.raises(UsageError, match=says):
        sets.resolve_set(tmp_path)


def test_a_file_that_does_not_parse_offers_all_its_ops(tmp_path: Path) -> None:
    assert [entry.name for entry in make_set(tmp_path, rms_norm="class RMSNorm(").ops()] == ["rms_norm"]


def test_bytes_that_are_no_text_are_a_file_that_does_not_parse(tmp_path: Path) -> None:
    """A folder that has a file's name is none."""
    (tmp_path / "L1" / "linear.py").mkdir(parents=True)
    (tmp_path / "L1" / "rms_norm.py").write_bytes(b"\xff\x00")
    assert "rms_norm" in {entry.name for entry in sets.resolve_set(tmp_path).ops()}
    assert "linear" not in {entry.name for entry in sets.resolve_set(tmp_path).ops()}


def test_select_keeps_the_named_ops_and_refuses_others(tmp_path: Path) -> None:
    found = sets.resolve_set("torch_native")
    assert [entry.name for entry in found.select(["rms_norm"]).ops()] == ["rms_norm"]
    with pytest.raises(UnknownNameError, match="op in the set 'torch_native' named 'llama_mlp'"):
        found.select(["llama_mlp"])


def test_load_class_gives_the_class_of_the_file(tmp_path: Path) -> None:
    cls = load(tmp_path, NORM)
    assert cls.__name__ == "RMSNorm"
    assert cls.__module__ != registry.ops()["rms_norm"].module


def test_load_class_reads_the_text_that_is_there_now(tmp_path: Path) -> None:
    path = tmp_path / "a" / "L1" / "rms_norm.py"
    load(tmp_path / "a", NORM + "VERSION = 1\n")
    stamp = path.stat()
    assert not list(path.parent.glob("__pycache__"))
    path.write_text(NORM + "VERSION = 2\n")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    path.parent.parent.rename(tmp_path / "b")
    module = loading._import_file(sets.resolve_set(tmp_path / "b"), tmp_path / "b" / "L1" / "rms_norm.py")
    assert module.VERSION == 2


def test_files_of_a_set_may_import_its_helpers(tmp_path: Path) -> None:
    (tmp_path / "_shared.py").write_text("ANSWER = 42")
    (tmp_path / "L1").mkdir()
    (tmp_path / "L1" / "_close.py").write_text("from .._shared import ANSWER")
    cls = load(tmp_path, "from ._close import ANSWER\n" + NORM.replace("return x", "return ANSWER"))
    assert cls(4)(None) == 42


def test_byte_code_beside_a_helper_is_not_run(tmp_path: Path) -> None:
    """It is in no digest and no report, and may be of another text than the one that is shown."""
    helper, other = tmp_path / "L1" / "_close.py", tmp_path / "other.py"
    helper.parent.mkdir()
    helper.write_text("from ._parts.part import ANSWER")
    (tmp_path / "L1" / "_parts").mkdir()
    part = tmp_path / "L1" / "_parts" / "part.py"
    part.write_text("ANSWER = 42")
    other.write_text("ANSWER = 13")
    for path in (helper, part):
        cached = importlib.util.cache_from_source(str(path))
        py_compile.compile(str(other), cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    cls = load(tmp_path, "from ._close import ANSWER\n" + NORM.replace("return x", "return ANSWER"))
    assert cls(4)(None) == 42
    py_compile.compile(str(other), str(tmp_path / "L1" / "_hidden.pyc"))
    with pytest.raises(CandidateError, match=r"No module named '\w+\.L1\._hidden' with source text"):
        load(tmp_path, "from ._hidden import ANSWER", "relu")


def test_a_file_may_subclass_the_op_it_replaces(tmp_path: Path) -> None:
    text = (
        "from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm as Baseline\n"
        "class RMSNorm(Baseline):\n    def forward(self, x, residual=None):\n        return x\n"
    )
    assert load(tmp_path, text).__mro__[1].__module__ == registry.ops()["rms_norm"].module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def broken(\n", "SyntaxError"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_run_is_an_import_error_with_its_traceback(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(CandidateError) as caught:
        load(tmp_path, text)
    assert caught.value.kind == "import"
    assert expected in str(caught.value)
    assert "L1/rms_norm.py" in str(caught.value)
    assert "loading.py" not in str(caught.value)


def test_another_class_name_is_shown_beside_the_baselines(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"no class RMSNorm.*its classes: RmsNorm") as caught:
        load(tmp_path, NORM.replace("RMSNorm", "RmsNorm"))
    assert caught.value.kind == "signature"


def test_a_class_that_is_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"RMSNorm is not a torch\.nn\.Module"):
        load(tmp_path, "class RMSNorm: ...")


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("x, residual=None", "x", r"candidate: forward\(self, x\)"),
        ("x, residual=None", "y, residual=None", r"candidate: forward\(self, y, residual=None\)"),
        ("x, residual=None", "x, residual", r"candidate: forward\(self, x, residual\)"),
        ("x, residual=None", "x, *, residual=None", r"candidate: forward\(self, x, \*, residual=None\)"),
        ("x, residual=None", "x, residual=None, /", r"candidate: forward\(self, x, residual=None, /\)"),
        ("x, residual=None", "*args, **kwargs", r"candidate: forward\(self, \*args, \*\*kwargs\)"),
        ("x, residual=None", "x, residual=None, extra=0", "candidate: forward"),
        ("eps=1e-6", "eps=1e-5", r"baseline:  __init__\(self, hidden_size, eps=1e-06\)"),
        ("hidden_size, eps=1e-6", "hidden_size", r"candidate: __init__\(self, hidden_size\)"),
        ("    def forward", "    def backward", "forward is missing"),
    ],
)
def test_another_signature_is_shown_beside_the_baselines(tmp_path: Path, old: str, new: str, shown: str) -> None:
    with pytest.raises(CandidateError, match=shown) as caught:
        load(tmp_path, NORM.replace(old, new))
    assert caught.value.kind == "signature"
    assert "baseline:" in str(caught.value)


def test_annotations_and_wrappers_do_not_change_a_signature(tmp_path: Path) -> None:
    text = "import functools\n" + NORM.replace(
        "    def forward(self, x, residual=None):\n        return x\n",
        "    def _forward(self, x: int, residual: 'str' = None) -> float:\n        return x\n"
        "    @functools.wraps(_forward)\n    def forward(self, *args, **kwargs):\n        return args[0]\n",
    )
    assert load(tmp_path, text)(8)(1.0) == 1.0


def test_an_op_without_a_constructor_takes_no_arguments(tmp_path: Path) -> None:
    assert str(baseline_signature(registry.ops()["silu_and_mul"], "__init__")) == "(self)"
    text = (
        HEAD
        + "class SiluAndMul(Op):\n    def __init__(self, d):\n        ...\n    def forward(self, x):\n        ...\n"
    )
    with pytest.raises(CandidateError, match=r"candidate: __init__\(self, d\)"):
        load(tmp_path, text, "silu_and_mul")


def test_adapt_derives_classes_and_its_failure_names_the_op(tmp_path: Path) -> None:
    (tmp_path / "adapt.py").write_text(
        "LEVELS = (1,)\ndef adapt(op_class):\n    return type('Mine', (op_class,), {})\n"
    )
    found = sets.resolve_set(tmp_path)
    assert {entry.level for entry in found.ops()} == {1}
    assert loading.load_class(registry.ops()["rms_norm"], found).__name__ == "Mine"
    with pytest.raises(UsageError, match="does not offer llama_mlp"):
        loading.load_class(registry.ops()["llama_mlp"], found)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapt.py").write_text("def adapt(op_class):\n    raise KeyError(op_class.__name__)\n")
    with pytest.raises(CandidateError, match=r"adapt\(RMSNorm\) failed") as caught:
        loading.load_class(registry.ops()["rms_norm"], sets.resolve_set(tmp_path / "broken"))
    assert caught.value.kind == "import"


def test_a_helper_without_its_underscore_is_told_how_helpers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"A helper's name begins with an underscore: _fused\.py\.$"):
        make_set(tmp_path, rms_norm=NORM, fused="")


def test_a_source_digest_is_of_the_file_and_of_those_of_the_set_that_it_names(tmp_path: Path) -> None:
    """Or a judgement would be kept, and lineage not see a change, when only a helper was edited."""
    files = {
        "L1/rms_norm.py": "from ._close import run\n" + NORM,
        "L1/_close.py": "from .._shared.deep import load\nSOURCE = 'kernel.cu'\n",
        "_shared/__init__.py": "",
        "_shared/deep.py": "X = 1\n",
        "L1/kernel.cu": "// 1\n",
        "L1/relu.py": "# rms_norm is imported by nothing here\n",
        "_unused.py": "",
        "notes.md": "",
    }
    for place, text in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / place).write_text(text)
    found, entries = sets.resolve_set(tmp_path), registry.ops()
    before = {op: sets.source_digest(found, entries[op]) for op in ("rms_norm", "relu")}
    assert before["relu"] == hashlib.sha256(files["L1/relu.py"].encode()).hexdigest()
    changed = set()
    for place, text in files.items():
        (tmp_path / place).write_text(text + "# 2\n")
        if sets.source_digest(found, entries["rms_norm"]) != before["rms_norm"]:
            changed.add(place)
        (tmp_path / place).write_text(text)
    assert changed == {p for p in files if p not in ("L1/relu.py", "_unused.py", "notes.md")}
    (tmp_path / "L1" / "_close.py").write_text("from .relu import ReLU\n")
    with_other_op = sets.source_digest(found, entries["rms_norm"])
    (tmp_path / "L1" / "relu.py").write_text("# 2\n")
    assert sets.source_digest(found, entries["rms_norm"]) != with_other_op


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("LEVELS = 1\ndef adapt(c): ...", UsageError, r"says 'LEVELS = 1'; write levels out, such as LEVELS = \(1, 2,"),
        ("LEVELS = (1, 5)\ndef adapt(c): ...", UsageError, r"says 'LEVELS = \(1, 5\)'; write levels out"),
        ("LEVELS = tuple(range(2))\ndef adapt(c): ...", UsageError, "write levels out"),
        ("def adapt(", CandidateError, r"adapt\.py does not import.*SyntaxError"),
        ("def adapt(c): return c(4)", CandidateError, r"RMSNorm is not a torch\.nn\.Module"),
    ],
)
def test_a_mistake_in_adapt_is_named(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    (tmp_path / "adapt.py").write_text(text)
    found = sets.resolve_set(tmp_path)
    with pytest.raises(error, match=f"(?s){says}"):
        loading.load_class(found.select(["rms_norm"]).ops()[0], found)


def test_levels_may_be_annotated(tmp_path: Path) -> None:
    (tmp_path / "adapt.py").write_text("LEVELS: tuple[int, ...] = (2,)\ndef adapt(c): ...")
    assert {entry.level for entry in sets.resolve_set(tmp_path).ops()} == {2}


def test_a_file_in_another_encoding_is_read_by_what_it_declares(tmp_path: Path) -> None:
    (tmp_path / "L1").mkdir()
    text = "# -*- coding: latin-1 -*-\n# \u00e9\n" + NORM
    (tmp_path / "L1" / "rms_norm.py").write_bytes(text.encode("latin-1"))
    found = sets.resolve_set(tmp_path)
    (entry,) = found.ops()
    assert loading.load_class(entry, found).__name__ == "RMSNorm"


@pytest.mark.parametrize(("place", "mode", "is_told"), [("lib", 1, True), ("lib", 0, False), ("mine", 1, False)])
def test_a_library_that_a_worker_may_not_read_is_told_from_other_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: int, is_told: bool
) -> None:
    """What a worker's confinement refuses, a file's own permissions allow."""
    library = tmp_path / place / "library.py"
    library.parent.mkdir()
    library.write_text("")
    monkeypatch.setattr("fastkernels.loading.os.access", lambda path, _: bool(mode))
    raised = f"raise PermissionError(13, 'Permission denied', {str(library)!r})"
    found = make_set(tmp_path / "mine", rms_norm=raised)
    with pytest.raises(CandidateError) as error:
        loading.load_class(registry.ops()["rms_norm"], found)
    last = str(error.value).splitlines()[-1]
    assert last.startswith("PermissionError: [Errno 13] Permission denied: ")
    assert ("Workers read only Python's site-packages and the set's folder" in last) is is_told
