"""DenseAttention: a past is keys in front, what it refuses, and which calls launch a kernel of this package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastkernels.env import triton_interpreted
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention

BF16, FP32 = torch.bfloat16, torch.float32


def test_a_past_is_keys_in_front_and_an_empty_one_is_none() -> None:
    op = DenseAttention(4, 16, num_kv_heads=2, value_head_size=24)
    query, key, value = torch.randn(2, 7, 4, 16), torch.randn(2, 30, 2, 16), torch.randn(2, 30, 2, 24)
    mask = torch.rand(2, 7, 30) < 0.5
    mask[:, :, 0] = True
    for given in (mask, None):
        whole = op(query, key, value, given)
        for num_past in (0, 1, 23):
            parts = (key[:, num_past:], value[:, num_past:], given, key[:, :num_past], value[:, :num_past])
            torch.testing.assert_close(op(query, *parts), whole, rtol=0, atol=1e-6)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    op = DenseAttention(4, 16, num_kv_heads=2)
    query, key, past = torch.randn(2, 7, 4, 16), torch.randn(2, 5, 2, 16), torch.randn(2, 9, 2, 16)
    mask = torch.ones(2, 7, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask of \[7, 14\].*got \[2, 7, 5\]"):
        op(query, key, key, mask, past, past)
    with pytest.raises(ValueError, match=r"keys of lengths \[5, 9\] and values of \[5\]"):
        op(query, key, key, None, past)
    with pytest.raises(ValueError, match=r"with a past of \(2, 9, 4, 16\)"):
        op(query, key, key, None, past.repeat(1, 1, 2, 1), past)
    with pytest.raises(ValueError, match=r"keys of lengths \[5\] and values of \[9\]"):
        op(query, key, past)


def test_its_cost_counts_the_past() -> None:
    op = DenseAttention(4, 16)
    query, key, past = torch.randn(2, 7, 4, 16), torch.randn(2, 5, 4, 16), torch.randn(2, 9, 4, 16)
    given = {"query": query, "key": key, "value": key, "mask": None, "past_key": past, "past_value": past}
    cost = op.cost(given, {"out": query})
    assert cost.num_flops == 4 * query.numel() * 14
    assert cost.num_bytes == 4 * 2 * 4 * 16 * (7 + 7 + 2 * 14)


@pytest.mark.skipif(triton_interpreted(), reason="names what would be compiled, which TRITON_INTERPRET=1 does not")
class TestWhichCallsLaunch:
    """By name, on "meta", which takes the place of a GPU."""

    @staticmethod
    def launched(
        heads: tuple[int, int, int, int],
        num_past: int,
        num_queries: int,
        is_masked: bool,
        dtype: torch.dtype = BF16,
        batch: int = 2,
    ) -> set[str]:
        pytest.importorskip("triton")
        from fastkernels.kernels.ahead import TensorsOnGpu, naming_for

        num_heads, num_kv_heads, size, value_size = heads

        def made(length: int, num: int, of: int) -> Tensor:
            return torch.empty((batch, length, num, of), dtype=dtype, device="meta")

        new = [made(num_queries, num_kv_heads, of) for of in (size, value_size)]
        past = [made(num_past, num_kv_heads, of) for of in (size, value_size)] if num_past else []
        shape = (batch, num_queries, num_past + num_queries)
        mask = torch.empty(shape, dtype=torch.bool, device="meta") if is_masked else None
        op = DenseAttention(num_heads, size, num_kv_heads=num_kv_heads, value_head_size=value_size)
        with torch.inference_mode(), TensorsOnGpu(), naming_for() as names:
            out = op(made(num_queries, num_heads, size), *new, mask, *past)
        assert out.shape == (batch, num_queries, num_heads, value_size)
        return set(names)

    def test_a_mask_a_past_and_grouped_heads_of_two_sizes_do(self) -> None:
        for heads, num_past, is_masked in (
            ((8, 1, 256, 256), 864, True),
            ((8, 1, 256, 256), 64, False),
            ((12, 12, 64, 64), 0, True),
            ((8, 2, 32, 64), 0, False),
        ):
            names = self.launched(heads, num_past, 51, is_masked)
            assert any(name.startswith("dense_attention._dense_attention_kernel") for name in names)

    def test_what_torch_has_a_fused_kernel_for_does_not(self) -> None:
        for heads, num_past, is_masked, dtype in (
            ((16, 16, 72, 72), 0, False, BF16),
            ((8, 2, 64, 64), 0, False, BF16),
            ((2, 2, 32, 64), 0, False, BF16),
            ((1, 1, 512, 512), 0, True, BF16),
            ((8, 1, 256, 256), 864, True, FP32),
        ):
            assert not self.launched(heads, num_past, 51, is_masked, dtype)

    def test_lengths_of_prompts_and_batches_compile_few(self) -> None:
        heads, names = (8, 1, 256, 256), set()
        for num_prefix in (304, 352, 560, 816, 864, 913, 1000):
            for batch in (1, 2, 4, 8, 16):
                names |= self.launched(heads, num_prefix, 51, True, batch=batch)
        assert len(names) <= 4, "\n".join(sorted(names))
