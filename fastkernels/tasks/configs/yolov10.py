"""YOLOv10's sizes, as its L4 class reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from fastkernels.errors import CheckpointError

__all__ = ["YOLOv10Config"]

_SCALES: dict[str, dict[str, Any]] = {
    "n": {"depth": 0.33, "width": 0.25, "max_channels": 1024, "cib_layers": (22,), "large_kernel_layers": (22,)},
    "s": {"depth": 0.33, "width": 0.5, "max_channels": 1024, "cib_layers": (8, 22), "large_kernel_layers": (8, 22)},
    "m": {"depth": 0.67, "width": 0.75, "max_channels": 768, "cib_layers": (8, 19, 22), "large_kernel_layers": ()},
    "b": {"depth": 0.67, "width": 1.0, "max_channels": 512, "cib_layers": (8, 13, 19, 22), "large_kernel_layers": ()},
    "l": {"depth": 1.0, "width": 1.0, "max_channels": 512, "cib_layers": (8, 13, 19, 22), "large_kernel_layers": ()},
    "x": {
        "depth": 1.0,
        "width": 1.25,
        "max_channels": 512,
        "cib_layers": (6, 8, 13, 19, 22),
        "large_kernel_layers": (),
    },
}
"""As the six published yolov10?.yaml of ultralytics (https://github.com/THU-MIG/yolov10)."""

_STAGES = (2, 4, 6, 8, 13, 16, 19, 22)


@dataclass(frozen=True)
class YOLOv10Config:
    """Defaults are those of yolov10n.

    depth, width: of which the published numbers of blocks and channels are multiplied; cib_layers: the stages made of
    compact inverted blocks, large_kernel_layers: those of them with 7 x 7 kernels. image_size: pixels a side that the
    pipeline fits a picture into. names: of the classes, in the order of their numbers.
    Errors:  ValueError when sizes do not fit together.
    """

    depth: float = 0.33
    width: float = 0.25
    max_channels: int = 1024
    num_classes: int = 80
    reg_max: int = 16
    max_detections: int = 300
    image_size: int = 640
    cib_layers: tuple[int, ...] = (22,)
    large_kernel_layers: tuple[int, ...] = (22,)
    names: tuple[str, ...] = ()
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("cib_layers", "large_kernel_layers", "names"):  # lists where they were read from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("depth", "width", "max_channels", "num_classes", "reg_max", "max_detections"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size is a multiple of 32, got {self.image_size}.")
        if not set(self.large_kernel_layers) <= set(self.cib_layers) <= set(_STAGES):
            raise ValueError(f"cib_layers are some of {_STAGES}, and large_kernel_layers some of them.")
        if self.names and len(self.names) != self.num_classes:
            raise ValueError(f"{len(self.names)} names do not fit num_classes {self.num_classes}.")

    def channels(self, published: int) -> int:
        """Of a layer that has `published` channels at width 1: a multiple of 8."""
        return ceil(min(published, self.max_channels) * self.width / 8) * 8

    def repeats(self, published: int) -> int:
        return max(round(published * self.depth), 1)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> YOLOv10Config:
        """From a config.json: ours, or that of the hub's checkpoints, which names a yolov10?.yaml and the classes.

        Errors: CheckpointError when it is another model's; those of the class.
        """
        given = dict(config)
        if "depth" not in given:
            scale = re.search(r"yolov10([a-z])\.", str(given.get("model", "")))
            if scale is None or scale[1] not in _SCALES:
                raise CheckpointError(f"config.json names the model {given.get('model')!r}, not yolov10n to yolov10x.")
            given |= _SCALES[scale[1]]
        names = given.get("names") or ()
        if isinstance(names, Mapping):
            names = [names[key] for key in sorted(names, key=int)]
        if names:
            given["num_classes"] = len(names)
        known = {f.name: given[f.name] for f in fields(cls) if given.get(f.name) is not None}
        known |= {n: tuple(known[n]) for n in ("cib_layers", "large_kernel_layers") if n in known}
        dtype = given.get("dtype") or given.get("torch_dtype") or "float32"
        return cls(**{**known, "names": tuple(map(str, names)), "torch_dtype": dtype})

    @classmethod
    def tiny(cls, **changes: Any) -> YOLOv10Config:
        """An eighth of the channels, five classes."""
        sizes: dict[str, Any] = {"width": 0.125, "num_classes": 5, "image_size": 64}
        return cls(**{**sizes, **changes})
