"""Engines whose ranks hold whole experts each: the tokens of one rank, half of the experts, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastkernels import LLM, SamplingParams
from fastkernels.engine import parallel
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.executor import ModelExecutor
from fastkernels.engine.model_source import check_experts
from fastkernels.engine.task_engine import TaskEngine
from fastkernels.errors import UsageError
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts
from fastkernels.workloads import prompts

PROMPTS = sorted(prompts(), key=len)[:6]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
MODELS = ("tiny-mixtral", "tiny-gpt-oss", "tiny-qwen3_next")


def make_llm(model: str, size: int, **options: object) -> LLM:
    return LLM(
        model,
        device="cpu",
        tensor_parallel_size=size,
        enable_expert_parallel=True,
        **{"num_pages": 64, "page_size": 4, "max_num_batched_tokens": 40, **options},
    )


def answers(llm: LLM) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


def expert_bytes(executor: ModelExecutor) -> int:
    experts = [module for module in executor.model.modules() if isinstance(module, FusedExperts)]
    return sum(p.numel() * p.element_size() for module in experts for p in module.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_give_the_tokens_of_one_and_hold_half_of_the_experts(model: str) -> None:
    """One rank alone holds all, whatever it is asked."""
    alone = make_llm(model, 1)
    expected = answers(alone)
    assert isinstance(alone.core.executor, ModelExecutor)
    all_bytes, weight_bytes = expert_bytes(alone.core.executor), alone.core.info.weight_bytes
    alone.close()
    llm = make_llm(model, 2)
    try:
        assert answers(llm) == expected
        executor = llm.core.executor
        assert isinstance(executor, parallel.ParallelExecutor)
        assert 2 * expert_bytes(executor._own) == all_bytes
        assert llm.core.info.weight_bytes < 0.6 * weight_bytes, "What is no expert is split by features."
        assert llm.core.info.enable_expert_parallel
    finally:
        llm.close()


def test_every_rank_calls_a_replaced_op_as_often(tmp_path: Path) -> None:
    """The one that is told which slots are left out."""
    folder = tmp_path / "mine" / "L1"
    folder.mkdir(parents=True)
    source = Path(__file__).parents[2] / "fastkernels" / "tasks" / "baseline" / "L1" / "moe_align.py"
    (folder / "moe_align.py").write_text(source.read_text())
    script = (
        "import json\n"
        "from fastkernels import LLM, SamplingParams\n"
        f"llm = LLM('tiny-mixtral', candidates=[{str(tmp_path / 'mine')!r}], device='cpu', num_pages=64,"
        " tensor_parallel_size=2, enable_expert_parallel=True)\n"
        "llm.generate('Hello', SamplingParams(max_tokens=3))\n"
        "print(json.dumps(llm.replacements()))\n"
        "llm.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in json.loads(done.stdout) if line["op"] == "moe_align"]
    assert [(line["rank"], line["status"]) for line in lines] == [(0, "REPLACED"), (1, "REPLACED")]
    assert lines[0]["num_calls"] == lines[1]["num_calls"] > 0


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_without_experts_is_refused_before_any_rank_starts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.Ranks, "start", None)
    with pytest.raises(
        UsageError, match=r"^enable_expert_parallel is set, and tiny-llama has no experts; leave it out"
    ):
        make_llm("tiny-llama", size)
    with pytest.raises(UsageError, match="tiny-dinov3 has no experts"):
        TaskEngine(EngineConfig("tiny-dinov3", device="cpu", enable_expert_parallel=True))


def test_more_ranks_than_experts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has 8 experts, too few for each of 9 ranks .* can be at most 8"):
        make_llm("tiny-qwen3_next", 9)
    check_experts("tiny-qwen3_next", 8)


def test_the_fake_device_has_no_experts_to_spread() -> None:
    llm = LLM("tiny-llama", device="fake", tensor_parallel_size=2, enable_expert_parallel=True)
    assert llm.generate("Hello", GREEDY)
    llm.close()
