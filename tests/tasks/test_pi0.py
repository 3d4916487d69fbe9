"""What is Pi0's own: its pictures, padding that changes nothing, the prefix computed once, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastkernels.engine.pipeline import Pipeline
from fastkernels.env import triton_interpreted
from fastkernels.errors import CheckpointError, UnknownNameError, UnsupportedError, UsageError
from fastkernels.oracles.pi0 import ORACLE
from fastkernels.registry import architecture_of
from fastkernels.tasks.baseline.L3.pi0_decoder import PI0DecoderLayer
from fastkernels.tasks.configs.pi0 import GemmaConfig, PI0Config


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-pi0", device="cpu")


@pytest.mark.parametrize(("height", "width"), [(300, 451), (512, 512), (20, 9), (28, 28)])
def test_pictures_are_fitted_normalised_and_padded(pipeline: Pipeline, height: int, width: int) -> None:
    photograph = data.coffee()[:height, :width]
    photograph = np.resize(photograph, (height, width, 3)) if photograph.shape[:2] != (height, width) else photograph
    state = pipeline.adapter.prepare({"image": photograph, "prompt": "x", "noise": torch.zeros(5, 7)})
    [given] = pipeline.adapter.processor([Image.fromarray(photograph)], return_tensors="pt")["pixel_values"]
    scale = min(28 / height, 28 / width)
    inner = (int(height * scale), int(width * scale))
    resized = Image.fromarray(photograph).resize(inner[::-1], Image.Resampling.BICUBIC)
    wanted = torch.zeros(3, 28, 28)
    wanted[:, : inner[0], : inner[1]] = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)
    assert torch.equal(state["pixel_values"][0], given)


def test_numbers_are_those_of_the_librarys_processor() -> None:
    from pathlib import Path

    import transformers

    text = (Path(transformers.__file__).parent / "models/pi0/image_processing_pi0.py").read_text()
    for line in (
        "BICUBIC",
        "IMAGENET_STANDARD_MEAN",
        '"max_height": 224',
        '"height": 224',
        "default_to_square = False",
    ):
        assert line in text


def test_prefix_is_computed_once_and_padding_changes_nothing(pipeline: Pipeline) -> None:
    calls: list[int] = []
    handle = pipeline.model.vlm.register_forward_hook(lambda module, given, output: calls.append(len(given[1][0])))
    request = {"pixel_values": torch.randn(1, 3, 28, 28), "state": [0.5], "noise": torch.randn(5, 7), "steps": 7}
    try:
        requests = [{**request, "prompt_token_ids": list(range(3, 3 + n))} for n in (48, 49)]
        pipeline.run(requests)
    finally:
        handle.remove()
    assert calls == [48, 96]  # once a request, at steps of 48 tokens


def test_prefixes_of_requests_that_come_together_are_one_batch(pipeline: Pipeline) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = pipeline.model.vlm.register_forward_hook(
        lambda module, given, output: shapes.append(tuple(given[1].shape))
    )
    requests = [
        {"image": data.astronaut(), "prompt": text, "seed": i, "steps": 2}
        for i, text in enumerate(("a", "pick it up", "b"))
    ]
    try:
        together = [result.tensors["actions"] for result in pipeline.run(requests)]
        assert shapes == [(3, 48)]
        alone = [pipeline.run([request])[0].tensors["actions"] for request in requests]
    finally:
        handle.remove()
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_unlike_texts_share_steps(pipeline: Pipeline) -> None:
    picture = data.astronaut()
    requests = [
        {"image": picture, "prompt": text, "seed": i, "steps": 2 + i} for i, text in enumerate(("a", "pick it up"))
    ]
    alone = [pipeline.run([request])[0].tensors["actions"] for request in requests]
    before = pipeline.core.num_steps
    together = [result.tensors["actions"] for result in pipeline.run(requests)]
    assert pipeline.core.num_steps - before == 3
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "x"}, "'images', an 'image'"),
        ({"images": [], "prompt": "x"}, "1 to 16 pictures"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8), "prompt": "x"}, r"\[cameras, 3, 28, 28\]"),
        ({"image": b"no picture", "prompt": "x"}, "cannot be read"),
        ({"image": "PHOTO"}, "has a 'prompt'"),
        ({"image": "PHOTO", "prompt_token_ids": [512]}, r"\[0, 512\)"),
        ({"image": "PHOTO", "prompt_token_ids": [1] * 500}, "take 544 tokens"),
        ({"image": "PHOTO", "prompt": "x", "state": [0.0] * 7}, "up to 6 numbers"),
        ({"image": "PHOTO", "prompt": "x", "noise": torch.zeros(2, 2)}, r"noise is \[5, 7\]"),
        ({"image": "PHOTO", "prompt": "x", "steps": 2000}, "at most 1000"),
        ({"image": "PHOTO", "prompt": "x", "actions": 3}, "no actions"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_requests_that_cannot_be_used_are_refused(pipeline: Pipeline, given: dict[str, Any], said: str) -> None:
    photograph = data.astronaut()
    given = {
        name: photograph if isinstance(value, str) and value == "PHOTO" else value for name, value in given.items()
    }
    with pytest.raises(UsageError, match=said):
        pipeline.run([given])


def test_names_of_the_published_file_and_of_older_ones_load(tmp_path: Any) -> None:
    model = ORACLE.build(ORACLE.tiny()["mqa"], seed=3)
    ORACLE.save(model, tmp_path)
    request = dict(ORACLE.requests(ORACLE.tiny()["mqa"])[0])
    [wanted] = Pipeline(tmp_path, device="cpu").run([request])
    file = tmp_path / "model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    old = {
        name.replace("vision_tower.", "vision_tower.vision_model.").replace(
            "language_model.model.", "language_model."
        ): t
        for name, t in tensors.items()
    }
    save_file(old, file)
    [given] = Pipeline(tmp_path, device="cpu").run([request])
    assert torch.equal(given.tensors["actions"], wanted.tensors["actions"])
    save_file({name: t for name, t in old.items() if "action_out_proj" not in name}, file)
    with pytest.raises(CheckpointError, match="missing: action_out_proj"):
        Pipeline(tmp_path, device="cpu")


LEROBOT = {
    "type": "pi0", "n_obs_steps": 1, "paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m",
    "dtype": "float32", "chunk_size": 50, "n_action_steps": 50, "max_state_dim": 32, "max_action_dim": 32,
    "num_inference_steps": 10, "min_period": 0.004, "max_period": 4.0, "image_resolution": [224, 224],
}  # fmt: skip


def test_a_configuration_of_lerobots_form_is_read() -> None:
    assert architecture_of(LEROBOT).name == "pi0"
    assert PI0Config.from_hf(LEROBOT) == PI0Config()
    changed = {**LEROBOT, "chunk_size": 7, "dtype": "bfloat16", "num_inference_steps": 4}
    assert PI0Config.from_hf(changed) == PI0Config(chunk_size=7, torch_dtype="bfloat16", num_inference_steps=4)
    with pytest.raises(UnsupportedError, match=r"action_expert_variant 'gemma_7b'.* 'gemma_2b' or 'gemma_300m' is"):
        PI0Config.from_hf({**LEROBOT, "action_expert_variant": "gemma_7b"})
    with pytest.raises(UnsupportedError, match=r"\[224, 448\].* a square is"):
        PI0Config.from_hf({**LEROBOT, "image_resolution": [224, 448]})
    with pytest.raises(UnknownNameError):
        architecture_of({"type": "pi05"})


def test_published_configuration_has_the_published_number_of_parameters() -> None:
    from fastkernels.engine.model_source import build_config, find_model
    from fastkernels.tasks.baseline.L4.pi0 import PI0ForConditionalGeneration

    with torch.device("meta"):
        model = PI0ForConditionalGeneration(build_config(find_model("pi0_base")))
    own = sum(p.numel() for p in model.parameters())
    unread = 257152 * 1024 + 2048  # the expert's table of tokens, and the norm behind the language model
    assert own + unread == 3_501_372_176


class Computing(TorchDispatchMode):
    """The operations of torch that make anything: what they give lies in no memory that they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = {t.untyped_storage()._cdata for t in tree_leaves(result) if isinstance(t, torch.Tensor)}
        if made - known and "empty" not in func.name():
            self.names.append(func.name())
        return result


@pytest.mark.skipif(triton_interpreted(), reason="names what would be compiled, which TRITON_INTERPRET=1 does not")
def test_a_layer_of_a_denoising_step_is_its_products_and_six_kernels() -> None:
    """No copy of the prefix's keys and values, and no pass over anything beside them."""
    pytest.importorskip("triton")
    from fastkernels.kernels.ahead import TensorsOnGpu, naming_for

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.device("meta"):
        layer = PI0DecoderLayer(GemmaConfig(hidden_size=1024, intermediate_size=4096)).bfloat16()
    hidden, residual, positions = meta(4, 51, 1024), meta(4, 51, 1024), meta(4, 51, dtype=torch.int64)
    kept, mask = meta(2, 4, 18, 864, 1, 256), meta(4, 51, 915, dtype=torch.bool)
    with torch.inference_mode(), TensorsOnGpu(), naming_for() as names, Computing() as computing:
        layer(hidden, positions, mask, *kept[:, :, 3].unbind(0), residual)
    assert computing.names == ["aten::linear"] * 4
    kernels = sorted(name.split("(")[0].split(".")[1] for name in names)
    assert kernels == [
        *("_dense_attention_kernel", "_gelu_and_mul_kernel", "_merge_kernel"),
        *("_rms_norm_kernel", "_rotary_embedding_kernel"),  # the norms are one kernel, launched twice
    ]
