"""Runs test_kernels_*.py of this folder under Triton's interpreter, in a process that imports Triton for that alone."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastkernels.env import triton_interpreted

LEAST_TESTS = [
    {
        "test_kernels_attention.py": 55,
        "test_kernels_dense_attention.py": 60,
        "test_kernels_rows.py": 87,
        "test_kernels_linear.py": 90,
        "test_kernels_logits.py": 60,
    },
    {
        "test_kernels_images.py": 103,
        "test_kernels_states.py": 55,
        "test_kernels_sampling.py": 12,
        "test_kernels_moe.py": 80,
        "test_kernels_sequence_chunks.py": 1,
        "test_kernels_chunk_scan.py": 35,
    },
    {
        "test_kernels_window.py": 45,
        "test_kernels_gates.py": 260,
        "test_kernels_vision.py": 55,
        "test_kernels_gather.py": 90,
        "test_kernels_conv.py": 90,
    },
]
"""Of each file, in processes that take equally long."""


def test_every_file_of_kernels_is_run() -> None:
    needs = 'pytest.skip("needs TRITON_INTERPRET=1'
    files = {path.name for path in Path(__file__).parent.glob("test_kernels_*.py") if needs in path.read_text()}
    assert sorted(name for least in LEAST_TESTS for name in least) == sorted(files - {Path(__file__).name})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(triton_interpreted(), reason="this process is the interpreted one")
@pytest.mark.parametrize("least", LEAST_TESTS, ids=" ".join)
def test_kernels_pass_under_the_interpreter(least: dict[str, int], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    folder, told = Path(__file__).parent, tmp_path / "told.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-rs", f"--junitxml={told}", *(folder / n for n in least)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert "skipped" not in run.stdout, run.stdout[-2000:]
    ran = Counter(f"{case.get('classname', '').split('.')[2]}.py" for case in ElementTree.parse(told).iter("testcase"))
    assert {name: ran[name] for name in least if ran[name] < least[name]} == {}


def test_kernel_modules_without_triton_import_and_say_how_to_install_it() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels import (
    apply_logit_bias, apply_penalties, apply_token_bitmask, dense_attention, draw_seeds, flash_attn_decode,
    flash_attn_prefill, flash_attn_varlen, fused_gdn_gating, gaussian_projection, gelu_and_mul, greedy_sample, l2_norm,
    min_p, moe_align, moe_grouped_gemm, moe_sum, mxfp4_moe, rms_norm, rms_norm_gated, rotary_emb, sigmoid_mul,
    silu_and_mul, skinny_linear, spherical_harmonics, store_kvcache, swiglu_oai_and_mul, tile_intersection,
    top_k_top_p_sample, top_logprobs, topk_softmax, vjepa2_rope,
)
try:
    rms_norm.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6)
except EnvironmentProblem as problem:
    print(problem)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "pip install" in run.stdout
    assert "Triton" in run.stdout
