"""Biases by token id, added to the logits. One entry of equal ids writes for all: no atomic, one rounding."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, check_dtypes, tl, triton

BLOCK = 64


@triton.jit(do_not_specialize=["num_biases"], do_not_specialize_on_alignment=ROW_POINTERS)
def _apply_logit_bias_kernel(
    logits_ptr, id_ptr, bias_ptr, logits_stride, id_stride, bias_stride, num_biases, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    id_ptr += row * id_stride
    bias_ptr += row * bias_stride
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(id_ptr + places, mask=places < num_biases, other=-1)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    earlier = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, num_biases, BLOCK):
        others = start + tl.arange(0, BLOCK)
        other_ids = tl.load(id_ptr + others, mask=others < num_biases, other=-2)
        biases = tl.load(bias_ptr + others, mask=others < num_biases, other=0.0).to(tl.float32)
        is_same = ids[:, None] == other_ids[None, :]
        total += tl.sum(tl.where(is_same, biases[None, :], 0.0), axis=1)
        earlier += tl.sum((is_same & (others[None, :] < places[:, None])).to(tl.int32), axis=1)
    is_writer = (places < num_biases) & (earlier == 0) & (total != 0.0)
    logits_ptr += row * logits_stride + ids
    x = tl.load(logits_ptr, mask=is_writer, other=0.0).to(tl.float32) + total
    tl.store(logits_ptr, x.to(logits_ptr.dtype.element_ty), mask=is_writer)


def apply_logit_bias(logits: Tensor, token_ids: Tensor, biases: Tensor) -> None:
    """As the op ApplyLogitBias.

    Shapes:  logits: [num_rows, vocab_size]; token_ids, biases: [num_rows, num_biases]; rows of all may be strided.
    Dtypes:  logits bf16, fp16 or fp32; biases fp32; token_ids int32 or int64.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("apply_logit_bias", logits=logits, biases=biases)
    num_rows, num_biases = token_ids.shape
    if num_rows and num_biases:
        _apply_logit_bias_kernel[(num_rows, triton.cdiv(num_biases, BLOCK))](
            logits, token_ids, biases, logits.stride(0), token_ids.stride(0), biases.stride(0), num_biases,
            BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
