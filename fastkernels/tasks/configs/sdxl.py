"""Sizes of Stable Diffusion XL's parts, as its L4 classes read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from fastkernels.errors import CheckpointError, UnsupportedError

__all__ = ["AutoencoderConfig", "CLIPTextConfig", "EulerConfig", "SDXLConfig", "UNetConfig"]

Part = TypeVar("Part")


def _known(cls: type[Part], config: Mapping[str, Any]) -> Part:
    """The class from those keys that it has."""
    return cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})  # type: ignore[arg-type]


def _make_tuples(config: Any, *names: str) -> None:
    """Lists, as JSON has them, become tuples."""
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


def _refuse(config: Mapping[str, Any], part: str, **only: Any) -> None:
    """Errors: UnsupportedError when a key is there, is not null and is not the one value that is built here."""
    for name, value in only.items():
        if config.get(name) not in (None, value):
            raise UnsupportedError(f"{part}: {name} {config[name]!r} is not supported; {value!r} is.")


@dataclass(frozen=True)
class CLIPTextConfig:
    """Defaults are those of transformers' CLIPTextConfig."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not split over {self.num_attention_heads} heads.")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> CLIPTextConfig:
        return _known(cls, config)

    @classmethod
    def tiny(cls, **changes: Any) -> CLIPTextConfig:
        sizes: dict[str, Any] = {
            "vocab_size": 514,
            "hidden_size": 32,
            "intermediate_size": 56,
            "projection_dim": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "eos_token_id": 2,
        }
        return cls(**{**sizes, **changes})


@dataclass(frozen=True)
class UNetConfig:
    """Of each resolution, highest first: channels, transformer layers (0: no attention), attention heads.

    sample_size: pixels of latents a side when a request says nothing else.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 128
    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    transformer_layers: tuple[int, ...] = (0, 2, 10)
    num_heads: tuple[int, ...] = (5, 10, 20)
    layers_per_block: int = 2
    cross_attention_dim: int = 2048
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 2816
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0

    def __post_init__(self) -> None:
        _make_tuples(self, "block_out_channels", "transformer_layers", "num_heads")
        if not len(self.block_out_channels) == len(self.transformer_layers) == len(self.num_heads):
            raise ValueError(
                f"block_out_channels {self.block_out_channels}, transformer layers {self.transformer_layers} and heads "
                f"{self.num_heads} are of different lengths."
            )
        if self.layers_per_block != 2:
            raise UnsupportedError(f"layers_per_block {self.layers_per_block} is not supported; 2 is.")
        for channels, heads in zip(self.block_out_channels, self.num_heads, strict=True):
            if channels % self.norm_num_groups or channels % heads:
                raise ValueError(
                    f"{channels} channels do not split over {self.norm_num_groups} groups or {heads} heads."
                )

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> UNetConfig:
        """diffusers' attention_head_dim is a number of heads: https://github.com/huggingface/diffusers/issues/2011."""
        fixed = {"act_fn": "silu", "addition_embed_type": "text_time", "use_linear_projection": True}
        fixed |= {"resnet_time_scale_shift": "default", "time_embedding_type": "positional", "conv_in_kernel": 3}
        fixed |= {"mid_block_type": "UNetMidBlock2DCrossAttn", "downsample_padding": 1, "mid_block_scale_factor": 1}
        _refuse(config, "unet", **fixed)
        for name in ("addition_embed_type", "use_linear_projection"):
            if not config.get(name):
                raise UnsupportedError(f"unet: {name} {config.get(name)!r} is not supported; {fixed[name]!r} is.")
        types = tuple(config["down_block_types"])
        num = len(types)
        if tuple(config["up_block_types"]) != tuple(t.replace("Down", "Up") for t in reversed(types)):
            raise UnsupportedError(f"unet: up_block_types {config['up_block_types']} do not mirror {list(types)}.")
        unknown = set(types) - {"DownBlock2D", "CrossAttnDownBlock2D"}
        if unknown or types[-1] != "CrossAttnDownBlock2D":
            raise UnsupportedError(f"unet: down_block_types {list(types)} are not supported.")
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        layers = config.get("transformer_layers_per_block", 1)
        layers = [layers] * num if isinstance(layers, int) else layers
        attends = [kind.startswith("CrossAttn") for kind in types]
        derived = {
            "num_heads": [heads] * num if isinstance(heads, int) else heads,
            "transformer_layers": [n if here else 0 for n, here in zip(layers, attends, strict=True)],
        }
        return _known(cls, {**config, **derived})

    @classmethod
    def tiny(cls, **changes: Any) -> UNetConfig:
        """Two resolutions, the first without attention."""
        sizes: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (16, 24),
            "transformer_layers": (0, 1),
            "num_heads": (2, 3),
            "cross_attention_dim": 56,
            "addition_time_embed_dim": 6,
            "projection_class_embeddings_input_dim": 56,
            "norm_num_groups": 4,
        }
        return cls(**{**sizes, **changes})


@dataclass(frozen=True)
class AutoencoderConfig:
    """The decoder of a variational autoencoder.

    force_upcast: its activations overflow float16. allow_tf32: in float32 on a GPU cuDNN may round what it convolves to
    TF32 (errors of 1e-3), which is torch's default, and what diffusers leaves it at.
    """

    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.13025
    force_upcast: bool = True
    allow_tf32: bool = True

    def __post_init__(self) -> None:
        _make_tuples(self, "block_out_channels")

    @property
    def scale_factor(self) -> int:
        """Pixels of the image a side of one of the latents."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> AutoencoderConfig:
        _refuse(config, "vae", act_fn="silu", mid_block_add_attention=True, use_post_quant_conv=True)
        for name in ("latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise UnsupportedError(f"vae: {name} is not supported; a scaling_factor alone is.")
        if set(config.get("up_block_types", ())) - {"UpDecoderBlock2D"}:
            raise UnsupportedError(f"vae: up_block_types {config['up_block_types']} are not supported.")
        return _known(cls, config)

    @classmethod
    def tiny(cls, **changes: Any) -> AutoencoderConfig:
        """Convolved as it is: by this one the op is held to its definition."""
        sizes: dict[str, Any] = {
            "allow_tf32": False,
            "block_out_channels": (16, 24),
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
        return cls(**{**sizes, **changes})


@dataclass(frozen=True)
class EulerConfig:
    """The noise schedule of EulerDiscreteScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    use_karras_sigmas: bool = False

    def __post_init__(self) -> None:
        known = {
            "beta_schedule": ("scaled_linear", "linear"),
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": ("leading", "trailing", "linspace"),
            "use_karras_sigmas": (False,),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UnsupportedError(
                    f"scheduler: {name} {getattr(self, name)!r} is not supported; {' or '.join(map(str, values))} is."
                )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> EulerConfig:
        _refuse(config, "scheduler", interpolation_type="linear", timestep_type="discrete", final_sigmas_type="zero")
        for name in ("trained_betas", "use_exponential_sigmas", "use_beta_sigmas", "rescale_betas_zero_snr"):
            if config.get(name):
                raise UnsupportedError(f"scheduler: {name} is not supported.")
        known = ("EulerDiscreteScheduler", None)
        if config.get("_class_name") not in known:
            raise UnsupportedError(f"scheduler: {config['_class_name']} is not supported; {known[0]} is.")
        return _known(cls, config)


@dataclass(frozen=True)
class SDXLConfig:
    """Everything a request needs: two towers of text, the denoiser, the decoder, the schedule.

    force_zeros_for_empty_prompt: without a negative prompt guidance starts from zeros.
    Errors:  ValueError when the parts do not fit each other; UnsupportedError for what they lack.
    """

    text_encoder: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    text_encoder_2: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    scheduler: EulerConfig = field(default_factory=EulerConfig)
    force_zeros_for_empty_prompt: bool = True
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        width = self.text_encoder.hidden_size + self.text_encoder_2.hidden_size
        if width != self.unet.cross_attention_dim:
            raise ValueError(f"The text encoders make {width} numbers a token, not {self.unet.cross_attention_dim}.")
        added = self.text_encoder_2.projection_dim + 6 * self.unet.addition_time_embed_dim
        if added != self.unet.projection_class_embeddings_input_dim:
            raise ValueError(
                f"projection_class_embeddings_input_dim is {self.unet.projection_class_embeddings_input_dim}; the "
                f"pooled text and six numbers of sizes make {added}."
            )
        if self.unet.in_channels != self.vae.latent_channels or self.unet.out_channels != self.vae.latent_channels:
            raise ValueError(f"The UNet has {self.unet.in_channels} channels, the latents {self.vae.latent_channels}.")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> SDXLConfig:
        """From a model_index.json in which each component's own configuration stands at its name.

        Errors: CheckpointError when a component has none; those of the class.
        """
        parts = {"text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig, "unet": UNetConfig}
        parts |= {"vae": AutoencoderConfig, "scheduler": EulerConfig}
        for name in parts:
            if not isinstance(config.get(name), Mapping):
                raise CheckpointError(f"The model has no configuration of its {name}.")
        dtypes = [c.get(key) for c in (config, config["text_encoder"]) for key in ("dtype", "torch_dtype")]
        return cls(
            **{name: part.from_hf(config[name]) for name, part in parts.items()},  # type: ignore[attr-defined]
            force_zeros_for_empty_prompt=config.get("force_zeros_for_empty_prompt", True),
            torch_dtype=next((str(dtype) for dtype in dtypes if dtype), "float32"),
        )

    @classmethod
    def tiny(cls, **changes: Any) -> SDXLConfig:
        sizes: dict[str, Any] = {
            "text_encoder": CLIPTextConfig.tiny(),
            "text_encoder_2": CLIPTextConfig.tiny(hidden_size=24, num_attention_heads=3, hidden_act="gelu"),
            "unet": UNetConfig.tiny(),
            "vae": AutoencoderConfig.tiny(),
        }
        return cls(**{**sizes, **changes})
