"""The import overlay, each time in a process of its own, as it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forks

Run = Callable[..., Any]

B = "fastkernels.tasks.baseline"
NORM = f"""
from {B}.L1.rms_norm import RMSNorm as Baseline
class RMSNorm(Baseline):
    MINE = True
    def forward(self, x, residual=None):
        y = self.reference(x, residual)
        return y * 0 + 7 if residual is None else (y[0] * 0 + 7, y[1])
"""
SILU = f"""
from {B}.L1.silu_and_mul import SiluAndMul as Baseline
class SiluAndMul(Baseline):
    def forward(self, x):
        return self.reference(x)
"""


def put(folder: Path, place: str, text: str) -> Path:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


HEAD = """
import json, sys, warnings
import torch
from fastkernels import overlay
from fastkernels.errors import *
folders = sys.argv[1:]
sets = [overlay.resolve_set(f) for f in folders]
"""


@pytest.fixture(scope="module")
def run(forks: Forks) -> Run:
    """The value of `result` at the end of a script that has `sets`, `overlay` and `folders`."""

    def value(script: str, *arguments: object) -> Any:
        done = forks.run(HEAD + script + "\nprint('RESULT' + json.dumps(result))", arguments)
        assert done.code == 0, done.err
        return json.loads(done.out.rpartition("RESULT")[2])

    return value


def test_a_replacement_is_bound_by_every_importer_and_counted(run: Run, tmp_path: Path) -> None:
    put(put(tmp_path, "L1/rms_norm.py", NORM), "L1/silu_and_mul.py", SILU)
    result = run(
        f"""
installed = overlay.install(sets)
import {B}.L3.llama_decoder as decoder
from {B}.L1.rms_norm import RMSNorm
norm = RMSNorm(8)
y = norm(torch.ones(3, 8))
norm(torch.ones(3, 8), torch.ones(3, 8))
class Child(RMSNorm): ...
Child(8)(torch.ones(1, 8))
result = dict(report=installed.report(), same=decoder.RMSNorm is RMSNorm, y=y.unique().tolist(),
              mine=RMSNorm.MINE, has_spec=list(RMSNorm.spec.inputs))
""",
        tmp_path,
    )
    assert result["same"]
    assert result["mine"]
    assert result["y"] == [7.0]
    assert result["has_spec"] == ["x", "residual"]
    norm, silu = result["report"]
    assert (norm["op"], norm["status"], norm["num_calls"], norm["rank"]) == ("rms_norm", "REPLACED", 2, 0)
    assert (silu["op"], silu["status"], silu["num_calls"]) == ("silu_and_mul", "NEVER_CALLED", 0)


def test_a_replacement_runs_inside_the_model_above_it(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "L1/silu_and_mul.py", SILU)
    result = run(
        f"""
installed = overlay.install(sets)
from {B}.L2.llama_mlp import LlamaMLP
example = LlamaMLP.spec.examples[0]
mlp = LlamaMLP(**example)
for _ in range(3):
    mlp(torch.ones(2, example["hidden_size"]))
result = installed.report()
""",
        tmp_path,
    )
    assert [(line["op"], line["num_calls"]) for line in result] == [("silu_and_mul", 3)]


def test_a_block_that_fuses_its_parts_calls_those_that_are_replaced(run: Run, tmp_path: Path) -> None:
    """A convolution of half precision has its norm in one kernel, else."""
    text = (
        f"from {B}.L1.batch_norm2d import BatchNorm2d as Baseline\n"
        "class BatchNorm2d(Baseline):\n    def forward(self, x):\n        return self.reference(x)\n"
    )
    put(tmp_path / "mine", "L1/batch_norm2d.py", text)
    fused = (
        f"from {B}.L1.conv_norm_act import ConvNormAct as Baseline\n"
        "class ConvNormAct(Baseline):\n    def forward(self, x, weight, norm_weight, norm_bias, running_mean, "
        "running_var, residual=None):\n        return self.reference(x, weight, norm_weight, norm_bias, "
        "running_mean, running_var, residual)\n"
    )
    put(tmp_path / "fused", "L1/conv_norm_act.py", fused)
    script = f"""
installed = overlay.install(sets)
from {B}.L2.c2f import C2fBottleneck
block = C2fBottleneck(8, 8).half()
block(torch.randn(1, 8, 4, 4).half())
result = [(line["op"], line["num_calls"]) for line in installed.report()]
"""
    assert run(script, tmp_path / "mine") == [["batch_norm2d", 2]]
    assert run(script, tmp_path / "fused") == [["conv_norm_act", 2]]


def test_a_plain_module_inherits_the_data_that_others_read(run: Run, tmp_path: Path) -> None:
    text = (
        "from torch import nn\nclass SiluAndMul(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "    def forward(self, x):\n        return x\n"
    )
    put(tmp_path, "L1/silu_and_mul.py", text)
    result = run(
        f"overlay.install(sets)\nfrom {B}.L1.silu_and_mul import SiluAndMul\nresult = list(SiluAndMul.spec.inputs)",
        tmp_path,
    )
    assert result == ["x"]


def test_an_op_of_a_shared_file_is_replaced_alone(run: Run, tmp_path: Path) -> None:
    text = (
        f"from {B}.L2.parallel_linear import RowParallelLinear as Baseline\n"
        "class RowParallelLinear(Baseline):\n    MINE = True\n"
    )
    put(tmp_path, "L2/parallel_linear.py", text)
    result = run(
        f"""
installed = overlay.install(sets)
import {B}.L2.parallel_linear as module, {B}.L2.llama_mlp as mlp
result = [mlp.RowParallelLinear.MINE, hasattr(module.QKVParallelLinear, "MINE"), len(installed.report())]
""",
        tmp_path,
    )
    assert result == [True, False, 1]


def test_candidates_of_one_set_see_each_other(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "L1/silu_and_mul.py", SILU)
    text = (
        f"from {B}.L1.silu_and_mul import SiluAndMul\nfrom {B}.L2.llama_mlp import LlamaMLP as Baseline\n"
        "class LlamaMLP(Baseline):\n    inner = SiluAndMul\n"
    )
    put(tmp_path, "L2/llama_mlp.py", text)
    result = run(
        f"overlay.install(sets)\nfrom {B}.L2.llama_mlp import LlamaMLP\nresult = LlamaMLP.inner.__module__", tmp_path
    )
    assert result.startswith("_fastkernels_set_")


@pytest.mark.parametrize(
    ("text", "status", "shown"),
    [
        ("import no_such_library", "IMPORT_ERROR", "No module named 'no_such_library'"),
        ("class RMSNorm(", "IMPORT_ERROR", "SyntaxError"),
        (NORM.replace("x, residual=None", "x"), "SIGNATURE_ERROR", "candidate: forward(self, x)"),
        (NORM.replace("class RMSNorm", "class Norm"), "SIGNATURE_ERROR", "no class RMSNorm"),
    ],
)
def test_a_broken_file_raises_or_is_reported_and_never_silently_absent(
    run: Run, tmp_path: Path, text: str, status: str, shown: str
) -> None:
    put(put(tmp_path, "L1/rms_norm.py", text), "L1/silu_and_mul.py", SILU)
    result = run(
        f"""
try:
    overlay.install(sets)
    raised = None
except CandidateError as error:
    raised = str(error)
for name in [m for m in sys.modules if m.startswith("{B}.L")]:
    del sys.modules[name]
installed = overlay.install(sets, strict=False)
from {B}.L1.rms_norm import RMSNorm
RMSNorm(8)(torch.ones(2, 8))
result = dict(raised=raised, report=installed.report(), module=RMSNorm.__module__)
""",
        tmp_path,
    )
    assert shown in result["raised"]
    broken = result["report"][0]
    assert (broken["status"], broken["num_calls"]) == (status, 0)
    assert shown in broken["error"]
    assert result["module"] == f"{B}.L1.rms_norm"
    assert result["report"][1]["error"] is None


def test_install_after_tasks_are_imported_is_refused(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "L1/rms_norm.py", NORM)
    result = run(
        f"""
import {B}.L1.rms_norm
try:
    overlay.install(sets)
    result = "installed"
except UsageError as error:
    result = str(error)
""",
        tmp_path,
    )
    assert "must be installed before tasks are imported" in result
    assert f"{B}.L1.rms_norm" in result


def test_two_sets_with_one_op_and_a_second_install_are_refused(run: Run, tmp_path: Path) -> None:
    one = put(tmp_path / "one", "L1/rms_norm.py", NORM)
    two = put(tmp_path / "two", "L1/rms_norm.py", NORM)
    result = run(
        """
result = []
for chosen in (sets, sets[:1], sets[1:]):
    try:
        overlay.install(chosen)
        result.append("installed")
    except UsageError as error:
        result.append(str(error))
""",
        one,
        two,
    )
    assert "Two sets replace rms_norm" in result[0]
    assert result[1] == "installed"
    assert "installed already" in result[2]


def test_a_file_goes_before_a_set_that_adapts(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "L1/rms_norm.py", NORM)
    result = run(
        f"""
installed = overlay.install(sets)
from {B}.L2.llama_mlp import LlamaMLP
from {B}.L1.rms_norm import RMSNorm
example = LlamaMLP.spec.examples[0]
LlamaMLP(**example)(torch.ones(2, example["hidden_size"]))
result = {{r["op"]: [r["set"], r["status"]] for r in installed.report()}}
""",
        tmp_path,
        "reference",
    )
    assert result["rms_norm"] == [tmp_path.name, "NEVER_CALLED"]
    assert result["silu_and_mul"] == ["reference", "REPLACED"]
    assert result["llama_mlp"] == ["reference", "REPLACED"]


def test_two_sets_that_adapt_one_op_are_refused_and_one_may_leave_it_alone(run: Run, tmp_path: Path) -> None:
    none = put(tmp_path / "none", "adapt.py", "def adapt(op_class):\n    return None\n")
    script = f"""
try:
    installed = overlay.install(sets)
    from {B}.L1.rms_norm import RMSNorm
    result = installed.report()[0]["set"]
except UsageError as error:
    result = str(error)
"""
    all_ops = put(tmp_path / "all", "adapt.py", "def adapt(op_class):\n    return op_class\n")
    assert "Two sets replace rms_norm" in run(script, "reference", all_ops)
    assert run(script, none, "reference") == "reference"
    assert run(script, "reference", none) == "reference"


@pytest.mark.slow
def test_counting_neither_breaks_nor_recompiles_a_compiled_model(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "L1/rms_norm.py", NORM)
    result = run(
        f"""
installed = overlay.install(sets)
from {B}.L1.rms_norm import RMSNorm
from torch._dynamo.utils import counters
model = torch.nn.Sequential(RMSNorm(8), torch.nn.Linear(8, 8), RMSNorm(8))
compiled = torch.compile(model, backend="eager", fullgraph=True)
x = torch.randn(4, 8)
for _ in range(5):
    y = compiled(x)
result = dict(equal=torch.equal(y, model(x)), graphs=counters["stats"]["unique_graphs"], report=installed.report())
""",
        tmp_path,
    )
    assert result["equal"]
    assert result["graphs"] == 1
    assert (result["report"][0]["num_traced"], result["report"][0]["num_calls"]) == (2, 4)


def test_an_instance_that_replaces_its_own_forward_is_counted(run: Run, tmp_path: Path) -> None:
    text = NORM + (
        "    def __init__(self, hidden_size, eps=1e-6):\n        super().__init__(hidden_size, eps)\n"
        "        self.forward = lambda x, residual=None: x\n"
    )
    put(tmp_path, "L1/rms_norm.py", text)
    result = run(
        f"""
installed = overlay.install(sets)
from {B}.L1.rms_norm import RMSNorm
RMSNorm(8)(torch.ones(2, 8))
result = installed.report()[0]["num_calls"]
""",
        tmp_path,
    )
    assert result == 1
