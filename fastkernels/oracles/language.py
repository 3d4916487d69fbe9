"""Language models by transformers: what is measured of each, whole requests from token ids to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from fastkernels.oracles.oracle import Answer, Load, Oracle, Request, With, compiled, prompts

FIRST = "first token"


class LanguageOracle(Oracle):
    """input_len, output_len: tokens of a request; of models with few positions in proportion.

    "first token": a prompt and one token, whose logits are compared. "64 tokens": prompt and further tokens; beside the
    library compiled and with a static cache where it can.
    """

    loads: ClassVar[tuple[Load, ...]] = (Load(FIRST, (8,), is_whole=True), Load("64 tokens", (1, 8), is_whole=True))
    input_len: ClassVar[int] = 512
    output_len: ClassVar[int] = 64

    def max_len(self, sizes: Mapping[str, Any]) -> int:
        """Tokens of the longest request of a load, those of media and those that are made included."""
        return sum(self.lengths(sizes))

    def lengths(self, sizes: Mapping[str, Any]) -> tuple[int, int]:
        """Of prompts, and of what is made."""
        share = min(1.0, sizes["hidden_size"] / 1024)
        return max(8, round(self.input_len * share)), max(4, round(self.output_len * share))

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        input_len, output_len = self.lengths(sizes)
        num_made = 1 if name == FIRST else output_len
        texts = prompts([input_len] * num, sizes["vocab_size"])
        return [{"prompt_token_ids": ids, "max_tokens": num_made} for ids in texts]

    def inputs(self, model: Any, requests: Sequence[Request]) -> dict[str, Tensor]:
        """What the library's forward takes, on its device."""
        ids = torch.tensor([list(r["prompt_token_ids"]) for r in requests], device=model.device)
        return {"input_ids": ids}

    def extended(self, inputs: Mapping[str, Tensor], made: Tensor) -> dict[str, Tensor]:
        """The inputs with tokens behind the prompts. made: [num_requests, num_tokens]."""
        return {**inputs, "input_ids": torch.cat([inputs["input_ids"], made], dim=1)}

    def logits(self, model: Any, inputs: Mapping[str, Tensor], num: int) -> Tensor:
        """[num_requests, num, vocab_size]: of the last tokens."""
        return model.forward(**inputs, use_cache=False, logits_to_keep=num).logits[:, -num:]

    def run(self, model: Any, requests: Sequence[Request]) -> Answer:
        inputs = self.inputs(model, requests)
        if requests[0]["max_tokens"] == 1:
            logits = self.logits(model, inputs, 1)[:, 0]
            return {"logits": logits, "token_ids": logits.argmax(-1, keepdim=True).cpu()}
        whole = model.original if isinstance(model, With) else model
        whole.generation_config.eos_token_id = None
        num = requests[0]["max_tokens"]
        options: dict[str, Any] = {**inputs, "do_sample": False, "max_new_tokens": num, "pad_token_id": 0}
        options |= getattr(model, "generation_options", {})
        made = transformers.GenerationMixin.generate(whole, **options)
        return {"token_ids": made[:, -num:].cpu()}

    def compiled(self, model: nn.Module, mode: str) -> Any:
        """The forward by torch; made tokens by transformers' own way, which compiles steps over a static cache."""
        options: dict[str, Any] = {"cache_implementation": "static"}
        options["compile_config"] = transformers.CompileConfig(mode=mode, fullgraph=False, dynamic=False)
        return With(model, forward=compiled(model, mode), generation_options=options)

    def further(self, model: Any, requests: Sequence[Request], answer: Answer) -> dict[str, float]:
        """Of our tokens, given those before: how many the library finds likeliest, and how much likelier it finds
        another at most, in standard deviations of the logits."""
        made = answer["token_ids"].to(model.device)
        inputs = self.extended(self.inputs(model, requests), made[:, :-1])
        logits = self.logits(model, inputs, made.shape[1]).float()
        gaps = (logits.amax(-1) - logits.gather(-1, made[..., None])[..., 0]) / logits.std(-1)
        return {
            "share_likeliest": round(float((gaps == 0).float().mean()), 4),
            "largest_gap": float(f"{float(gaps.max()):.3g}"),
        }

    def measured_against(self, model: nn.Module) -> str:
        some: Any = model.config
        experts = getattr(some, "_experts_implementation", None) or "eager"
        return f"transformers, attention {some._attn_implementation}, experts {experts}; no kernels from the hub"
