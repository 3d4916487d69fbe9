"""Log-probabilities of one token of each row and of the likeliest ones."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.top_logprobs import top_logprobs
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec

_VALUES = TensorSpec(("num_rows", "num_logprobs"), dtype="float32")


class TopLogprobs(Op):
    """log_softmax(logits[i]) at its num_logprobs largest logits, in order, and at token_ids[i], with that one's rank.

    Equal logits are ordered by id. rank = 1 + the number of larger logits.

    Shapes:  logits: [num_rows, vocab_size]; token_ids, chosen, ranks: [num_rows];
             top_ids, logprobs: [num_rows, num_logprobs].
    Dtypes:  logits bf16, fp16 or fp32; logprobs, chosen fp32; all others int64.
    Returns: (top_ids, logprobs, chosen, ranks). No argument is written to.
    Errors:  ValueError when num_logprobs is negative or over vocab_size, or token_ids has not one value a row.
    Source:  gather_logprobs of vLLM's Sampler.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS).strided(),
            "token_ids": TensorSpec(("num_rows",), dtype="int64", role=Role.INDEX, bound="vocab_size"),
        },
        outputs={
            "top_ids": TensorSpec(
                ("num_rows", "num_logprobs"), dtype="int64", role=Role.TOKEN_ID, compare=Compare.EXACT
            ),
            "logprobs": _VALUES,
            "chosen": TensorSpec(("num_rows",), dtype="float32"),
            "ranks": TensorSpec(("num_rows",), dtype="int64", role=Role.INDEX, compare=Compare.EXACT),
        },
        examples=({"num_logprobs": 5}, {"num_logprobs": 20}, {"num_logprobs": 1}),
        example_axes={"vocab_size": (512, 1021)},
    )

    def __init__(self, num_logprobs: int) -> None:
        super().__init__()
        if num_logprobs < 0:
            raise ValueError(f"num_logprobs is {num_logprobs}; the least is 0.")
        self.num_logprobs = num_logprobs

    def forward(self, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if token_ids.shape != logits.shape[:1]:
            raise ValueError(f"TopLogprobs: token_ids must be [{logits.shape[0]}], got {tuple(token_ids.shape)}.")
        if self.num_logprobs > logits.shape[1]:
            raise ValueError(f"TopLogprobs: num_logprobs {self.num_logprobs} is over vocab_size {logits.shape[1]}.")
        if uses_reference(logits):
            return self.reference(logits, token_ids)
        return top_logprobs(logits, token_ids, self.num_logprobs)

    def reference(self, logits: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = logits.to(compute_dtype(logits))
        top_ids = x.argsort(dim=-1, descending=True, stable=True)[:, : self.num_logprobs]
        logprobs = x.log_softmax(dim=-1)
        chosen = logprobs.gather(1, token_ids[:, None]).squeeze(1)
        ranks = (x > x.gather(1, token_ids[:, None])).sum(dim=-1) + 1
        return top_ids.contiguous(), logprobs.gather(1, top_ids), chosen, ranks
