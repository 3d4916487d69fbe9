"""Every way to be wrong has its verdict, a message that says what, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judging import CHECK_ONLY, LIMITS, Bench, bench, num_descriptors, rms_norm, write_set

from fastkernels.harness import side
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.verdict import Verdict
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

__all__ = ["bench"]

WRONG = {
    "shape": ("y, h = self.right(x, residual); return y.reshape(-1), h", Verdict.INCORRECT_SHAPE, "y has shape ["),
    "dtype": (
        "return tuple(y.double() for y in self.right(x, residual))",
        Verdict.INCORRECT_DTYPE,
        "y has dtype float64, expected float32",
    ),
    "strides": (
        """
        y, h = self.right(x, residual)
        return torch.stack((y, y), -1)[..., 0], h
        """,
        Verdict.INCORRECT_SHAPE,
        "the contract returns dense tensors",
    ),
    "too few values": (
        "return self.right(x, residual)[0]",
        Verdict.INCORRECT_SHAPE,
        "1 values were returned, the contract returns 2.",
    ),
    "too many values": (
        "return (*self.right(x, residual), x)",
        Verdict.INCORRECT_SHAPE,
        "3 values were returned, the contract returns 2.",
    ),
    "None for a tensor": ("return self.right(x, residual)[0], None", Verdict.INCORRECT_SHAPE, "new_residual is None"),
    "a list element that is no tensor": (
        "return self.right(x, residual)[0], 1.0",
        Verdict.CHEATING,
        "new_residual is a float",
    ),
    "values": ("y, h = self.right(x, residual); return y * 1.01, h", Verdict.INCORRECT_NUMERICAL, "y"),
    "one element": (
        """
        y, h = self.right(x, residual)
        y.view(-1)[-1] += 1.0
        return y, h
        """,
        Verdict.INCORRECT_NUMERICAL,
        "y[",
    ),
    "input written to": (
        "residual.add_(x); return self.right(residual), residual",
        Verdict.UNDECLARED_MUTATION,
        "residual was written to",
    ),
    "input written to and restored to one value": (
        """
        answer = self.right(x, residual)
        x.view(-1)[0] = 0.0 if x.is_contiguous() else x.reshape(-1)[0]
        return answer
        """,
        Verdict.UNDECLARED_MUTATION,
        "x was written to (byte ",
    ),
    "written past the end": (
        """
        answer = self.right(x, residual)
        end = residual.numel()
        torch.as_strided(residual, (end + 1,), (1,))[end] = 1.0
        return answer
        """,
        Verdict.UNDECLARED_MUTATION,
        "Memory beyond residual was written to",
    ),
    "exception": (
        "raise KeyError('no kernel for this shape')",
        Verdict.RUNTIME_ERROR,
        "KeyError: 'no kernel for this shape' [",
    ),
    "SystemExit": ("sys.exit(3)", Verdict.RUNTIME_ERROR, "SystemExit"),
    "os._exit": (
        "print('last words', flush=True); os._exit(0)",
        Verdict.RUNTIME_ERROR,
        "ended during the call. Its output ended: last words",
    ),
    "segmentation fault": (
        "import ctypes; ctypes.string_at(0)",
        Verdict.RUNTIME_ERROR,
        "The worker process ended during the call",
    ),
    "kept answer": (
        """
        if not hasattr(self, "kept") or self.kept[0].shape != x.shape:
            self.kept = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
        for kept, answer in zip(self.kept, self.right(x, residual)):
            kept.copy_(answer)
        return self.kept
        """,
        Verdict.INCORRECT_NUMERICAL,
        "An earlier answer changed",
    ),
    "answer in its argument": (
        "y, h = self.right(x, residual); return y, residual",
        Verdict.INCORRECT_NUMERICAL,
        "new_residual",
    ),
}


@pytest.mark.parametrize("way", WRONG)
def test_wrong_answer_has_its_verdict_and_says_what(bench: Bench, way: str) -> None:
    body, verdict, text = WRONG[way]
    record = bench.judge("rms_norm", rms_norm(body))
    assert record.verdict == verdict, record.message
    assert text in record.message
    if record.cases:
        (row,) = [row for row in record.cases if row.verdict != Verdict.PASSED]
        assert row.verdict == verdict
        assert f"[{row.family} float32 x[" in record.message  # on which input


def test_memory_over_the_limit_is_an_error_in_its_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.nursery, "limits", replace(LIMITS, call_seconds=60.0))  # memory may come slowly
    record = bench.judge("rms_norm", rms_norm("self.held = [torch.ones(1 << 26) for _ in range(5)]; time.sleep(60)"))
    assert record.verdict == Verdict.RUNTIME_ERROR, record.message
    assert "over the limit of 1200 MiB" in record.message


def test_endless_loop_is_a_timeout_within_the_limit(bench: Bench) -> None:
    started = time.monotonic()
    record = bench.judge("rms_norm", rms_norm("while True: pass"))
    assert record.verdict == Verdict.TIMEOUT
    assert record.message.startswith(f"A call gave no answer within {LIMITS.call_seconds:.0f} s")
    assert time.monotonic() - started < LIMITS.call_seconds + 15


BROKEN = {
    "syntax": ("class RMSNorm(:", "SyntaxError"),
    "exception": (
        "import torch\n\ndef _prepare():\n    raise ValueError('no such tile')\n\n_prepare()",
        "ValueError: no such tile",
    ),
    "missing module": ("import no_such_package", "No module named 'no_such_package'"),
    "no class": ("from torch import nn\n\nclass RmsNorm(nn.Module): pass", "RMSNorm"),
    "other signature": (
        rms_norm("return self.right(x, residual)").replace(
            "def forward(self, x, residual=None)", "def forward(self, hidden, residual)"
        ),
        "forward(",
    ),
    "the operator that it replaces": ("from fastkernels.tasks.baseline.L1.rms_norm import RMSNorm", "may not import"),
    "the judge": ("import fastkernels.harness.judge", "fastkernels.harness.judge"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_file_that_is_no_candidate_is_an_import_error(bench: Bench, way: str) -> None:
    source, text = BROKEN[way]
    record = bench.judge("rms_norm", source)
    assert record.verdict == Verdict.IMPORT_ERROR
    assert text in record.message
    assert record.num_calls == 0


def test_file_that_is_a_link_is_judged_as_what_it_leads_to(bench: Bench, tmp_path: Path) -> None:
    """Alone: what else is linked from the set, or lies beside what the link leads to, a worker cannot read."""
    source = rms_norm("return self.right(x, residual)")
    real = write_set(tmp_path / "real", "rms_norm", source) / "L1"
    (real / "_helper.py").write_text("SCALE = 1")
    links = tmp_path / "sets" / "mine" / "L1"
    links.mkdir(parents=True)
    (links / "rms_norm.py").symlink_to(real / "rms_norm.py")
    judge = Judge(CHECK_ONLY, bench.nursery)
    entry = ops()["rms_norm"]
    record = judge.judge(entry, resolve_set(links.parent), [])
    assert record.verdict == Verdict.PASSED, record.message
    (links / "_helper.py").symlink_to(real / "_helper.py")
    (real / "rms_norm.py").write_text("from ._helper import SCALE\n" + source)
    record = judge.judge(entry, resolve_set(links.parent), [])
    assert record.verdict == Verdict.IMPORT_ERROR
    assert f"L1/_helper.py -> {real / '_helper.py'}" in record.message
    assert record.message.endswith("copy it into the set.")
    listing = f"import os\nos.listdir({str(real)!r})\n"
    (real / "rms_norm.py").write_text(listing + source)
    record = judge.judge(entry, resolve_set(links.parent), [])
    assert "PermissionError" in record.message


def test_wrong_signature_shows_both(bench: Bench) -> None:
    message = bench.judge("rms_norm", BROKEN["other signature"][0]).message
    assert "baseline:  forward(self, x, residual=None)" in message
    assert "candidate: forward(self, hidden, residual)" in message


def test_wrong_class_name_shows_both(bench: Bench) -> None:
    message = bench.judge("rms_norm", BROKEN["no class"][0]).message
    assert message.endswith("has no class RMSNorm, the name of L1/rms_norm.py's; its classes: RmsNorm.")


@pytest.mark.parametrize("when", ["import", "constructor"])
def test_memory_is_watched_while_a_candidate_loads(bench: Bench, when: str) -> None:
    hog = "held = [torch.ones(1 << 26) for _ in range(5)]; time.sleep(25)"
    source = rms_norm("return self.right(x, residual)")
    source = (
        source.replace("self.num_calls = 0", hog) if when == "constructor" else f"import torch, time\n{hog}\n{source}"
    )
    started = time.monotonic()
    record = bench.judge("rms_norm", source)
    assert record.verdict == Verdict.RUNTIME_ERROR
    assert "over the limit of 1200 MiB" in record.message
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            (
                "self.weight = nn.Parameter(torch.ones(hidden_size))",
                "self.scale = nn.Parameter(torch.ones(hidden_size))",
            ),
            ("weight", "scale"),
        ),
        (("torch.ones(hidden_size)", "torch.ones(hidden_size + 1)"), ("weight", "65", "64")),
        (("self.num_calls = 0", "self.bias = nn.Parameter(torch.ones(3))"), ("bias",)),
    ],
)
def test_parameters_that_do_not_match_are_named(bench: Bench, change: tuple[str, str], names: tuple[str, ...]) -> None:
    source = rms_norm("return self.right(x, residual)").replace(*change)
    record = bench.judge("rms_norm", source)
    assert record.verdict == Verdict.RUNTIME_ERROR
    for name in names:
        assert name in record.message


def test_constructor_that_raises_is_told(bench: Bench) -> None:
    source = rms_norm("return self.right(x, residual)").replace("self.num_calls = 0", "raise OSError('no tuning file')")
    record = bench.judge("rms_norm", source)
    assert record.verdict == Verdict.RUNTIME_ERROR
    assert "OSError: no tuning file" in record.message


PACKED = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, input_size, output_size, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size))
        self.bias = nn.Parameter(torch.empty(output_size)) if bias else None
        self.packed = None

    def process_weights_after_loading(self):
        if ALWAYS or self.packed is None:
            self.packed = self.weight.detach().t().contiguous()

    def forward(self, x):
        y = x @ self.packed
        return y if self.bias is None else y + self.bias
"""


def test_packed_weights_must_follow_the_loaded_ones(bench: Bench) -> None:
    """Halfway through, the weights change in place: what was packed once gives yesterday's answers."""
    assert bench.judge("linear", PACKED.replace("ALWAYS", "True")).verdict == Verdict.PASSED
    record = bench.judge("linear", PACKED.replace("ALWAYS", "False"))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert sum(case.verdict == Verdict.PASSED for case in record.cases) >= 6  # before the change it was right


def test_answer_by_fingerprint_of_the_input_is_caught(bench: Bench) -> None:
    """An answer kept by shape, sum of squares of a corner and address is another input's."""
    body = """
    key = (tuple(x.shape), float(x.reshape(-1)[:8].square().sum()), float(residual.reshape(-1)[0]))
    self.cache = getattr(self, "cache", {})
    if key not in self.cache:
        self.cache[key] = tuple(y.clone() for y in self.right(x, residual))
    return tuple(y.clone() for y in self.cache[key])
    """
    record = bench.judge("rms_norm", rms_norm(body))
    assert record.verdict == Verdict.INCORRECT_NUMERICAL, record.message


def test_memory_that_the_judge_lacks_is_no_fault_of_the_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB.")

    monkeypatch.setattr(side, "check_inputs", needs_too_much)
    record = bench.judge("rms_norm", rms_norm("return self.right(x, residual)"))
    assert record.verdict == Verdict.JUDGE_ERROR
    assert "Tried to allocate 64.00 GiB" in record.message
    assert "malformed" not in record.message


def test_op_of_two_ranks_is_untestable_with_one(bench: Bench) -> None:
    record = bench.judge("allreduce", "class AllReduce: pass")
    assert record.verdict == Verdict.UNTESTABLE
    assert record.message == "allreduce needs 2 ranks; one process was given."


def test_dtype_that_an_op_does_not_take_is_told_with_the_one_to_give(bench: Bench) -> None:
    config = JudgeConfig(dtypes=(torch.bfloat16,), num_shapes=1, is_timed=False)
    record = bench.judge("gaussian_projection", "class GaussianProjection: pass", config)
    assert record.verdict == Verdict.UNTESTABLE
    assert record.message.endswith("and it takes float32 alone, not bfloat16: give --dtype float32.")


@pytest.mark.slow
def test_judge_keeps_no_descriptor_over_many_judgements(bench: Bench) -> None:
    config = JudgeConfig(num_shapes=1, is_timed=False)
    sources = [rms_norm("return self.right(x, residual)"), rms_norm("os._exit(1)"), "import no_such_package"]
    bench.judge("rms_norm", sources[0], config)
    before = num_descriptors()
    for source in 2 * sources:
        bench.judge("rms_norm", source, config)
    assert num_descriptors() == before


def test_record_names_the_source_that_was_judged(bench: Bench) -> None:
    source = rms_norm("return self.right(x, residual)")
    record = bench.judge("rms_norm", source)
    assert record.source_sha256 == hashlib.sha256(record.source.encode()).hexdigest()
    assert "class RMSNorm" in record.baseline_source
    assert record.op == "rms_norm"


EIGHT_BITS = """
import torch
from torch import nn
from torch.nn.functional import linear, pad

class Linear(nn.Module):
    def __init__(self, input_size, output_size, bias=True):
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.weight = nn.Parameter(torch.empty(output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(output_size).normal_(std=0.02)) if bias else None

    def forward(self, x):
        blocks = pad(self.weight.float(), (0, -self.input_size % 8)).unflatten(1, (-1, 8))
        scale = (blocks.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 127).half().float()
        weight = ((blocks / scale).round().clamp(-127, 127) * scale).flatten(1)[:, : self.input_size]
        return linear(x.float(), weight, None if self.bias is None else self.bias.float()).to(x.dtype)
"""


def test_weights_of_8_bits_are_not_a_linear_in_bf16(bench: Bench) -> None:
    """A scale for each 8 of a row: 10 bits a weight in place of 16."""
    config = JudgeConfig(num_shapes=6, is_timed=False, dtypes=(torch.bfloat16,))
    record = bench.judge("linear", EIGHT_BITS, config)
    assert record.verdict == Verdict.INCORRECT_NUMERICAL
    assert "the rows together have relative rms error" in record.message
