"""Sets of vendor libraries: torch's on a CPU, others' over stand-ins, and what they say without the library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import library_stand_ins as library
import pytest
import torch
from op_inputs import make_inputs, phases_of
from torch import Tensor

from fastkernels.errors import EnvironmentProblem, UnsupportedError
from fastkernels.loading import load_class
from fastkernels.registry import ops
from fastkernels.sets import resolve_set
from fastkernels.tasks.baseline.expert_gemm import align

LIBRARIES = {
    "fla": ("fla", "flash-linear-attention>=0.5"),
    "gsplat": ("gsplat", "gsplat>=1.5"),
    "causal_conv1d": ("causal_conv1d", "causal-conv1d>=1.6"),
    "mamba_ssm": ("mamba_ssm", "mamba-ssm>=2.3"),
    "liger": ("liger_kernel", "liger-kernel>=0.8"),
}
ALL_OPS = [(name, entry.name) for name in LIBRARIES for entry in resolve_set(name).ops()]


def install(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    """Modules by their dotted names, "__" for a dot, the last part a function's; and a GPU that is there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for place, function in functions.items():
        parts = place.split("__")
        for i in range(1, len(parts)):
            name = ".".join(parts[:i])
            if not getattr(sys.modules.get(name), "is_stand_in", False):
                module = ModuleType(name)
                module.is_stand_in = True  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, name, module)
        setattr(sys.modules[".".join(parts[:-1])], parts[-1], function)


def built(set_name: str, op: str, init: dict[str, Any]) -> tuple[Any, Any]:
    """The set's op, and the baseline's with the same parameters."""
    entry = ops()[op]
    torch.manual_seed(0)
    baseline = getattr(importlib.import_module(entry.module), entry.class_name)(**init)
    found = load_class(entry, resolve_set(set_name))(**init)
    found.load_state_dict(baseline.state_dict())
    return found, baseline


def assert_same(found: Any, baseline: Any, inputs: dict[str, Any]) -> None:
    """Results and what is written to; `inputs` are kept as they are."""
    ours, theirs = ({name: x.clone() if isinstance(x, Tensor) else x for name, x in inputs.items()} for _ in range(2))
    given, wanted = found(**ours), baseline.reference(**theirs)
    pairs = list(zip(*(x if isinstance(x, tuple) else (x,) for x in (given, wanted)), strict=True))
    pairs += [(ours[name], theirs[name]) for name in baseline.spec.mutates]
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    for name in set(inputs) - set(baseline.spec.mutates):
        if isinstance(inputs[name], Tensor):
            torch.testing.assert_close(ours[name], inputs[name], rtol=0, atol=0, equal_nan=True)


def drawn(op: Any, example: int, *, has_empty: bool = False) -> dict[str, Any]:
    """has_empty: between two of the sequences stands one without rows, whose slot holds something."""
    inputs = make_inputs(op, phases_of(type(op))[0], example).kwargs
    if has_empty:
        starts = inputs["query_start_loc"]
        inputs["query_start_loc"] = torch.cat([starts[:2], starts[1:]])
        states = next(name for name in op.spec.mutates)
        inputs["state_indices"] = torch.arange(len(starts), dtype=torch.int32).flip(0)
        inputs["has_initial_state"] = torch.tensor([False, False, True, True])[: len(starts)]
        assert len(inputs[states]) >= len(starts)
    return inputs


TORCH_OPS = ("batch_norm2d", "embedding_bag", "gelu_and_mul", "group_norm", "layer_norm", "linear", "moe_grouped_gemm")


@pytest.mark.parametrize("op", [*TORCH_OPS, "spmm"])
def test_torch_native_computes_the_definition_of_every_example(op: str) -> None:
    entry = ops()[op]
    examples = getattr(importlib.import_module(entry.module), entry.class_name).spec.examples
    for init in examples:
        found, baseline = built("torch_native", op, dict(init))
        for param in (*found.parameters(), *found.buffers()):
            if param.is_floating_point():
                param.data.uniform_(0.5, 1.5)
        baseline.load_state_dict(found.state_dict())
        for example in (0, 1):
            assert_same(found, baseline, drawn(baseline, example))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.float32, 65)])
def test_grouped_products_of_torch_native_are_the_definition(dtype: torch.dtype, size: int) -> None:
    """By torch's grouped product and, where rows are no multiples of 16 bytes, an expert at a time; some slots or all
    may be left out."""
    init = {"num_experts": 5, "input_size": size, "output_size": 32, "bias": True, "top_k": 2}
    found, baseline = built("torch_native", "moe_grouped_gemm", init)
    found.to(dtype)
    baseline.to(dtype)
    x = torch.randn(7, size).to(dtype)
    assert found._takes_groups(x) is (size == 64)
    none_here = torch.full((14,), -1)
    for experts in (torch.arange(14) % 4, torch.zeros(14, dtype=torch.int64), torch.arange(14) % 5 - 1, none_here):
        for block_size in (1, 16):
            given = (x, *align(experts.view(7, 2), 5, block_size))
            torch.testing.assert_close(found(*given), baseline.reference(*given), rtol=2e-2, atol=2e-2)
    none = align(torch.zeros(0, 2, dtype=torch.int64), 5, 16)
    assert found(x[:0], *none).shape == (0, 32)


def test_group_norm_of_torch_native_keeps_the_layout() -> None:
    found, baseline = built("torch_native", "group_norm", {"num_groups": 4, "num_channels": 8, "activation": "silu"})
    x = torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last)
    assert found(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found(x), baseline.reference(x))


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        fla__ops__gated_delta_rule__chunk_gated_delta_rule=library.chunk_gated_delta_rule,
        fla__ops__gated_delta_rule__fused_recurrent_gated_delta_rule=library.fused_recurrent_gated_delta_rule,
        fla__modules__l2norm__l2norm=library.l2norm,
        fla__modules__fused_norm_gate__rms_norm_gated=library.rms_norm_gated,
        fla__modules__convolution__causal_conv1d=library.fla_causal_conv1d,
        fla__modules__convolution__causal_conv1d_update=library.fla_causal_conv1d_update,
    )


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("example", [0, 1])
@pytest.mark.parametrize("has_empty", [False, True])
def test_fla_computes_the_rules_and_convolutions_of_prompts(example: int, has_empty: bool) -> None:
    for op, init in (
        ("chunk_gated_delta_rule", {}),
        ("causal_conv1d", {}),
        ("causal_conv1d", {"activation": None}),
    ):
        found, baseline = built("fla", op, init)
        assert_same(found, baseline, drawn(baseline, example, has_empty=has_empty))


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("example", [0, 1])
def test_fla_computes_single_tokens_and_norms(example: int) -> None:
    for op, init in (
        ("gdn_recurrence", {}),
        ("causal_conv1d_update", {}),
        ("causal_conv1d_update", {"activation": None}),
        ("l2_norm", {"eps": 1e-6, "is_eps_in_root": True}),
        ("rms_norm_gated", {"hidden_size": 33, "norm_before_gate": True}),
    ):
        found, baseline = built("fla", op, init)
        assert_same(found, baseline, drawn(baseline, example))


@pytest.fixture
def causal_conv1d(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        causal_conv1d__causal_conv1d_fn=library.cuda_causal_conv1d_fn,
        causal_conv1d__causal_conv1d_update=library.cuda_causal_conv1d_update,
    )


@pytest.mark.usefixtures("causal_conv1d")
@pytest.mark.parametrize("activation", ["silu", None])
def test_causal_conv1d_computes_prompts_and_single_tokens(activation: str | None) -> None:
    for op, has_empty in (("causal_conv1d", False), ("causal_conv1d", True), ("causal_conv1d_update", False)):
        found, baseline = built("causal_conv1d", op, {"activation": activation})
        assert_same(found, baseline, drawn(baseline, 0, has_empty=has_empty))


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        mamba_ssm__ops__triton__ssd_combined__mamba_chunk_scan_combined=library.scan,
        mamba_ssm__ops__triton__selective_state_update__selective_state_update=library.selective_state_update,
    )


@pytest.mark.usefixtures("mamba_ssm")
@pytest.mark.parametrize("example", [0, 1])
def test_mamba_ssm_computes_scan_and_update(example: int) -> None:
    for op, init, has_empty in (
        ("mamba_chunk_scan", {"chunk_size": 16}, False),
        ("mamba_chunk_scan", {"dt_limit": [0.0, 0.5]}, True),
        ("selective_state_update", {}, False),
    ):
        found, baseline = built("mamba_ssm", op, init)
        assert_same(found, baseline, drawn(baseline, example, has_empty=has_empty))


@pytest.fixture
def gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        gsplat__fully_fused_projection=library.fully_fused_projection,
        gsplat__isect_tiles=library.isect_tiles,
        gsplat__isect_offset_encode=library.isect_offset_encode,
        gsplat__rasterize_to_pixels=library.rasterize_to_pixels,
        gsplat__spherical_harmonics=library.spherical_harmonics,
    )


@pytest.mark.usefixtures("gsplat")
@pytest.mark.parametrize("example", [0, 1])
def test_gsplat_computes_a_rendering_op_by_op(example: int) -> None:
    for op, init in (
        ("gaussian_projection", {"near_plane": 0.5}),
        ("tile_intersection", {}),
        ("rasterize_gaussians", {}),
        ("spherical_harmonics", {"degree": 2}),
    ):
        found, baseline = built("gsplat", op, init)
        assert_same(found, baseline, drawn(baseline, example))


@pytest.mark.usefixtures("gsplat", "fla", "causal_conv1d", "mamba_ssm")
def test_what_a_library_cannot_do_is_refused() -> None:
    for set_name, op, init, says in (
        ("fla", "l2_norm", {}, "eps in the root"),
        (
            "fla",
            "rms_norm_gated",
            {"hidden_size": 8},
            "before it gates them, got norm_before_gate False",
        ),
        ("fla", "rms_norm_gated", {"hidden_size": 8, "group_size": 4, "norm_before_gate": True}, "groups of 4 of 8"),
        ("mamba_ssm", "selective_state_update", {"dt_limit": [0.0, 0.5]}, r"no limit, got \(0.0, 0.5\)"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            built(set_name, op, init)
    found, baseline = built("gsplat", "tile_intersection", {})
    with pytest.raises(UnsupportedError, match=r"gsplat found \d+ pairs, and there is room for 3: raise capacity"):
        found(**{**drawn(baseline, 0), "capacity": 3})
    found, baseline = built("gsplat", "spherical_harmonics", {"degree": 0})
    with pytest.raises(UnsupportedError, match=r"float32 alone, got torch\.float16"):
        found(*(x.half() for x in drawn(baseline, 0).values()))
    found, baseline = built("fla", "chunk_gated_delta_rule", {})
    wide = drawn(baseline, 0)
    wide["k"] = torch.zeros(*wide["k"].shape[:2], 300)
    with pytest.raises(UnsupportedError, match="head_k_dim up to 256, got 300"):
        found(**wide)
    for op in ("causal_conv1d", "causal_conv1d_update"):
        found, baseline = built("causal_conv1d", op, {})
        with pytest.raises(UnsupportedError, match="widths 2 to 4, got 5"):
            found(**{**drawn(baseline, 0), "weight": torch.zeros(40, 5)})
    found, baseline = built("causal_conv1d", "causal_conv1d", {})
    with pytest.raises(UnsupportedError, match="multiples of 8, got 67 of rows 67 apart"):
        found(**drawn(baseline, 1))


@pytest.mark.parametrize(("set_name", "op"), ALL_OPS)
def test_every_op_of_a_library_says_what_it_lacks(set_name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ops()[op]
    examples = getattr(importlib.import_module(entry.module), entry.class_name).spec.examples
    package, requirement = LIBRARIES[set_name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=f"The set '{set_name}' runs GPU kernels and needs an NVIDIA GPU"):
        built(set_name, op, examples[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem) as caught:
        built(set_name, op, examples[0])
    assert str(caught.value) == (
        f"The set '{set_name}' needs the library {package}, which is not installed: pip install '{requirement}'."
    )


def test_a_version_without_the_function_and_a_library_that_lacks_another_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, gsplat__other=len)
    says = r"needs gsplat\.isect_tiles, which the installed version does not have: pip install 'gsplat>=1\.5'"
    with pytest.raises(EnvironmentProblem, match=says):
        built("gsplat", "tile_intersection", {})
    install(monkeypatch, fla__ops__other__f=len)
    monkeypatch.setattr(sys.modules["fla.ops"], "__path__", [], raising=False)
    with pytest.raises(EnvironmentProblem, match=r"could not be imported \(No module named 'fla\.ops\.gated_"):
        built("fla", "gdn_recurrence", {})
