"""Qwen2-VL beyond what every architecture is tested for: files of both layouts, ranks, videos cut into patches."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.oracles.qwen2_vl import ORACLE
from fastkernels.pipelines.qwen2_vl import Qwen2VLProcessor
from fastkernels.tasks.configs.qwen2_vl import Qwen2VLConfig
from fastkernels.workloads import byte_tokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(("variant", "first"), [("gqa", "visual."), ("tied", "model.visual.")])
def test_the_oracles_checkpoints_have_both_layouts(variant: str, first: str, tmp_path: Path) -> None:
    """So that the parity tests load both."""
    model = ORACLE.build(ORACLE.tiny()[variant], seed=1)
    ORACLE.save(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
    assert any(name.startswith(first) for name in names)
    assert any(name.startswith("model.language_model." if variant == "tied" else "model.layers.") for name in names)


def test_the_published_preset_has_the_published_size() -> None:
    from fastkernels.engine.model_source import build_config, find_model
    from fastkernels.tasks.baseline.L4.qwen2_vl import Qwen2VLForConditionalGeneration

    config = build_config(find_model("qwen2-vl-7b-instruct"))
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == 8_291_375_616


@pytest.mark.slow
def test_two_ranks_say_what_one_says() -> None:
    program = f"""
import numpy as np
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
if __name__ == "__main__":
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    llm = LLM("tiny-qwen2_vl", device="cpu", tensor_parallel_size=2)
    prompt = {{"prompt": "a {PLACE} b", "multi_modal_data": {{"image": pixels}}}}
    [output] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    print(list(output.outputs[0].token_ids))
    llm.close()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    llm = LLM("tiny-qwen2_vl", device="cpu")
    [output] = llm.generate({"prompt": f"a {PLACE} b", "multi_modal_data": {"image": pixels}}, GREEDY)
    assert run.stdout.strip().splitlines()[-1] == str(list(output.outputs[0].token_ids))


def library_patchify() -> Any:
    """The method of the library's video processor, whose module needs torchvision to be imported."""
    spec = importlib.util.find_spec("transformers.models.qwen2_vl")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("video_processing_qwen2_vl.py").read_text()
    [method] = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "patchify"]
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([method], []), "patchify", "exec"), names)
    return names["patchify"]


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_frames_are_cut_as_the_library_cuts_them(num_frames: int) -> None:
    config = Qwen2VLConfig.from_hf(
        {**_hf_config(), "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}}
    )
    processor = Qwen2VLProcessor(config, byte_tokenizer())
    video = np.random.default_rng(0).integers(0, 256, (num_frames, 392, 420, 3), dtype=np.uint8)
    made = processor([config.video_token_id], {"video": video}).media
    assert made is not None
    mean, std = processor._images.image_mean, processor._images.image_std
    frames = torch.from_numpy((video.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std))
    patches, *grid = library_patchify()(None, frames.permute(0, 3, 1, 2).contiguous()[None], 14, 2, 2)
    [item] = made.items
    assert item.tensors["grid_thw"].tolist() == grid
    np.testing.assert_allclose(item.tensors["pixel_values"], patches[0].numpy(), atol=2e-6)


def _hf_config() -> dict[str, object]:
    return {
        "vocab_size": 516,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_token_id": 514,
        "video_token_id": 515,
        "vision_start_token_id": 512,
        "vision_end_token_id": 513,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "llama"}, CheckpointError, "not 'qwen2_vl'"),
        ({"rope_scaling": None}, CheckpointError, "mrope_section"),
        ({"hidden_size": None}, CheckpointError, "hidden_size"),
        ({"use_sliding_window": True}, UnsupportedError, "full attention only"),
        ({"image_token_id": 600}, ValueError, "image_token_id 600"),
        ({"rope_scaling": {"mrope_section": [2, 2, 2]}}, ValueError, "does not add up"),
        ({"vision_config": {"hidden_size": 32}}, ValueError, "not the language model's"),
        ({"vision_config": {"embed_dim": 30, "num_heads": 4}}, ValueError, "multiple of 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Qwen2VLConfig.from_hf({**_hf_config(), **change})
