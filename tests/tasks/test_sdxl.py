"""What is SDXL's own: requests at unlike steps, the published files' layout, its schedules, and what it refuses."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.dtypes import default_dtype
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.runners.iterative import IterativeRunner
from fastkernels.engine.task_core import TaskCore, TaskRequest
from fastkernels.env import triton_interpreted
from fastkernels.errors import CheckpointError, UnsupportedError, UsageError
from fastkernels.kernels.ahead import TensorsOnGpu, naming_for
from fastkernels.oracles.sdxl import ORACLE
from fastkernels.pipelines.euler_schedule import euler_schedule
from fastkernels.tasks.baseline.L1 import conv2d
from fastkernels.tasks.baseline.L2.resnet_block2d import ResnetBlock2D
from fastkernels.tasks.baseline.L4.autoencoder_kl import AutoencoderKL
from fastkernels.tasks.baseline.L4.unet2d_condition import UNet2DConditionModel
from fastkernels.tasks.configs.sdxl import AutoencoderConfig, EulerConfig, SDXLConfig, UNetConfig


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-sdxl", device="cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    ORACLE.save(ORACLE.build(ORACLE.tiny()["base"], seed=3), folder)
    return folder


def test_requests_that_come_later_share_steps_and_get_what_they_get_alone(pipeline: Pipeline) -> None:
    requests = [{"prompt": f"scene {i}", "steps": 4 + i, "seed": i, "guidance_scale": 2.0 + i} for i in range(3)]
    alone = [pipeline.run([request])[0] for request in requests]
    core = TaskCore(IterativeRunner(pipeline.adapter, pipeline.device))
    found: dict[str, Any] = {}
    for i, request in enumerate(requests):
        core.add(TaskRequest(str(i), request))
        found |= {o.request_id: o.result for o in core.step() if o.finish_reason}
    while core.has_unfinished:
        found |= {o.request_id: o.result for o in core.step() if o.finish_reason}
    assert core.num_steps == 8  # the last one came at the third step and takes six
    for i, wanted in enumerate(alone):
        torch.testing.assert_close(found[str(i)].tensors["latents"], wanted.tensors["latents"], rtol=1e-4, atol=1e-4)


def test_seed_alone_decides_the_noise_and_no_seed_tells_the_one_it_drew(pipeline: Pipeline) -> None:
    request = {"prompt": "a cat", "steps": 1}
    [drawn] = pipeline.run([request])
    [again] = pipeline.run([{**request, "seed": int(drawn.tensors["seed"])}])
    [other] = pipeline.run([request])
    assert torch.equal(drawn.tensors["image"], again.tensors["image"])
    assert not torch.equal(drawn.tensors["image"], other.tensors["image"])


def test_result_is_written_as_a_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    [result] = pipeline.run([{"prompt": "a cat", "steps": 1, "height": 40, "width": 72}])
    result.save(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as shown:
        assert (shown.size, shown.mode) == ((72, 40), "RGB")
    with pytest.raises(UsageError, match=r"cat\.wav"):
        result.save(tmp_path / "cat.wav")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_decoder_stays_in_float32_where_float16_would_overflow(dtype: str) -> None:
    half = Pipeline("tiny-sdxl", device="cpu", dtype=dtype)
    wanted = torch.float32 if dtype == "float16" else torch.bfloat16
    assert {p.dtype for p in half.model.vae.parameters()} == {wanted}
    [result] = half.run([{"prompt": "a cat", "steps": 2, "seed": 1}])
    [exact] = Pipeline("tiny-sdxl", device="cpu").run([{"prompt": "a cat", "steps": 2, "seed": 1}])
    assert (result.tensors["image"] - exact.tensors["image"]).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "has a 'prompt'"),
        ({"prompt": 7}, "prompt is a text"),
        ({"prompt": "x", "height": 60}, "height is 60; it is a multiple of 8"),
        ({"prompt": "x", "width": 0}, "width is 0"),
        ({"prompt": "x", "height": 80_000, "width": 80_000}, "pixels"),
        ({"prompt": "x", "steps": 1001}, "at most 1000"),
        ({"prompt": "x", "steps": "many"}, "steps is 'many'"),
        ({"prompt": "x", "guidance_scale": -1}, "guidance_scale is -1"),
        ({"prompt": "x", "seed": -1}, "seed is -1"),
        ({"prompt": "x", "original_size": 3}, "original_size is 3"),
        ({"prompt": "x", "latents": torch.zeros(4, 3, 3)}, r"latents are \[4, 8, 8\]"),
        ({"prompt": "x", "stps": 3}, "no stps"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_used_are_refused(pipeline: Pipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.run([given])


def test_no_step_at_all_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UnsupportedError, match="asks for 0 steps"):
        pipeline.run([{"prompt": "x", "steps": 0}])


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 7, 28, 50, 1000])
def test_schedule_is_that_of_diffusers(spacing: str, num_steps: int) -> None:
    config = EulerConfig(timestep_spacing=spacing)
    theirs = diffusers.EulerDiscreteScheduler(
        beta_start=config.beta_start, beta_end=config.beta_end, beta_schedule=config.beta_schedule,
        timestep_spacing=spacing, steps_offset=config.steps_offset,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs.set_timesteps(num_steps)
    timesteps, sigmas, deviation = euler_schedule(config, num_steps)
    torch.testing.assert_close(timesteps, theirs.timesteps.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    assert deviation == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)


def test_files_of_a_variant_are_read_only_without_the_whole_ones(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(published, folder)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halves = {name: t.half() for name, t in load_file(whole).items()}
    save_file(halves, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    name = "conv_in.weight"
    exact = Pipeline(folder, device="cpu", dtype="float32").model.unet.get_parameter(name)
    assert torch.equal(exact, load_file(whole)[name])
    whole.unlink()
    rounded = Pipeline(folder, device="cpu", dtype="float32").model.unet.get_parameter(name)
    assert torch.equal(rounded, halves[name].float())


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("unet/config.json", {"use_linear_projection": False}, "use_linear_projection False"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type None"),
        ("unet/config.json", {"cross_attention_dim": 48}, "make 56 numbers a token, not 48"),
        ("unet/config.json", {"layers_per_block": 3}, "layers_per_block 3"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is not supported"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas True"),
    ],
    ids=str,
)
def test_configurations_that_are_not_built_here_are_refused(
    published: Path, tmp_path: Path, path: str, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(published, folder)
    file = folder / path
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((UnsupportedError, CheckpointError), match=said):
        Pipeline(folder, device="cpu")


@pytest.mark.parametrize("lost", ["vae/config.json", "tokenizer", "vae/diffusion_pytorch_model.safetensors"])
def test_checkpoint_that_lacks_a_part_says_which(published: Path, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "less"
    shutil.copytree(published, folder)
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=lost.partition("/")[0]):
        Pipeline(folder, device="cpu")


def test_published_configuration_has_the_published_number_of_parameters() -> None:
    from fastkernels.engine.model_source import build_config, find_model
    from fastkernels.tasks.baseline.L4.sdxl import StableDiffusionXLPipeline

    config = build_config(find_model("stable-diffusion-xl-base-1.0"))
    assert isinstance(config, SDXLConfig)
    with torch.device("meta"):
        model = StableDiffusionXLPipeline(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["unet"] == 2_567_463_684
    assert (counts["text_encoder"], counts["text_encoder_2"]) == (123_060_480, 694_659_840)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_what_is_measured_in_float16_decodes_as_the_pipeline_does_without_its_casts() -> None:
    sizes = ORACLE.tiny()["base"]
    with default_dtype(torch.float16):
        model: Any = ORACLE.build(sizes, seed=3)
    [request] = ORACLE.load(sizes, 1, "one step")
    given = {"num_inference_steps": request["steps"], "guidance_scale": request["guidance_scale"]}
    ORACLE.modes(model, None)
    kept = model.vae.decoder.conv_in.weight
    assert kept.dtype is torch.float32
    with torch.inference_mode():
        found = ORACLE.run(model, [request])["image"]
        assert model.vae.decoder.conv_in.weight is kept
        model.vae.half()
        latents = request["latents"][None].half()
        wanted = model.pipe([request["prompt"]], latents=latents, output_type="pt", **given).images
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """Of each convolution, by windows or rows: whether cuDNN may round to TF32 in it, and whether it adds its bias."""
    found: list[tuple[bool, bool]] = []

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any) -> Tensor:
        found.append((torch.backends.cudnn.allow_tf32, bias is not None))
        shape = torch.nn.functional.conv2d(
            x, weight, bias, *args
        ).shape  # on "meta" in planes, cuDNN's is channels last
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append((torch.backends.cudnn.allow_tf32, bias is not None))
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(conv2d, "conv2d", convolve)
    monkeypatch.setattr(conv2d, "linear", by_rows)
    return found


def test_a_convolution_is_rounded_to_tf32_where_it_was_asked_for_alone(asked: list[tuple[bool, bool]]) -> None:
    x = torch.zeros(1, 3, 4, 4, device="meta")
    with TensorsOnGpu(), torch.device("meta"):
        for op in (conv2d.Conv2d(3, 5, 1), conv2d.Conv2d(3, 5, 1, allow_tf32=True)):
            op(x)
            op.reference(x)
            op.reference(x.half())
        with torch.backends.cudnn.flags(allow_tf32=False):
            op(x)
    assert [is_rounded for is_rounded, _ in asked] == [False, False, False, True, False, False, False]
    assert torch.backends.cudnn.allow_tf32


def test_a_decoder_alone_asks_for_tf32_unless_its_configuration_does_not() -> None:
    published = AutoencoderConfig.from_hf({"block_out_channels": [8, 8], "norm_num_groups": 4})
    for config, wanted in ((published, True), (AutoencoderConfig.tiny(), False)):
        parts = AutoencoderKL(config).modules()
        assert {part.allow_tf32 for part in parts if isinstance(part, conv2d.Conv2d)} == {wanted}
    unet = UNet2DConditionModel(UNetConfig.tiny())
    assert {part.allow_tf32 for part in unet.modules() if isinstance(part, conv2d.Conv2d)} == {False}


class NotedSums(TorchDispatchMode):
    """Shapes of what torch adds up or copies in a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.clone, torch.ops.aten.copy_):
            self.shapes.append(tuple(result.shape))
        return result


@pytest.mark.skipif(triton_interpreted(), reason="names what would be compiled, which TRITON_INTERPRET=1 does not")
@pytest.mark.parametrize(("out_channels", "temb_channels"), [(320, 1280), (640, 1280), (640, 0)])
def test_nothing_of_an_image_is_added_in_a_pass_of_its_own(
    asked: list[tuple[bool, bool]], out_channels: int, temb_channels: int
) -> None:
    with torch.device("meta"):
        block = ResnetBlock2D(320, out_channels, temb_channels).half().to(memory_format=torch.channels_last)
        x = torch.zeros(2, 320, 16, 16).half().to(memory_format=torch.channels_last)
        temb = torch.zeros(2, temb_channels).half() if temb_channels else None
    with torch.no_grad(), TensorsOnGpu(), naming_for() as names, NotedSums() as noted:
        block(x, temb)
    assert noted.shapes == ([(2, out_channels)] if temb_channels else [])
    assert [adds_bias for _, adds_bias in asked] == [False] * (3 if out_channels > 320 else 2)
    kernels = {name.partition("(")[0] for name in names}
    assert "bias_add_residual._bias_add_residual_kernel" in kernels
    assert any("group_norm._merge_kernel" in name and "HAS_SHIFT=True" in name for name in names)
