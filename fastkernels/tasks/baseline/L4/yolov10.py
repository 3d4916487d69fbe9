"""YOLOv10: image in, boxes with scores and classes out, without suppressing duplicates afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.dfl_boxes import DFLBoxes
from fastkernels.tasks.baseline.L1.gather_tokens import GatherTokens
from fastkernels.tasks.baseline.L1.sigmoid import Sigmoid
from fastkernels.tasks.baseline.L1.top_k_per_row import TopKPerRow
from fastkernels.tasks.baseline.L3.yolov10_backbone import YOLOv10Backbone
from fastkernels.tasks.baseline.L3.yolov10_head import YOLOv10Head
from fastkernels.tasks.baseline.L3.yolov10_neck import YOLOv10Neck
from fastkernels.tasks.configs.yolov10 import YOLOv10Config

_STRIDES = (8, 16, 32)


class YOLOv10(Op):
    """(sides, logits) = head(neck(backbone(x))); `detect` makes boxes, scores and labels of them.

    Shapes:  x: [batch, 3, 32 height, 32 width]; sides: [batch, 21 height width, 4 * reg_max]; logits: [batch,
             21 height width, num_classes].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax computed in fp32.
    Units:   x in [0, 1].
    Returns: (sides, logits). No argument is written to.
    Errors:  ValueError when a side of x is no multiple of 32.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458); as ultralytics' DetectionModel of yolov10n.yaml whose
             head is end2end.
    """

    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(model\.)+23\.one2one_", "head."),
        (r"^(model\.)+23\..*$", "head.of_training"),
        (r"^(model\.)+(\d|10)\.", r"backbone.layers.\2."),
        (r"^(model\.)+(\d+)\.", r"neck.layers.\2."),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("head.of_training",)
    """The one-to-many head, and the numbers of the bins, which are the same in every checkpoint."""

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "3", "32*height", "32*width"))},
        outputs={
            "sides": TensorSpec(("batch", "num_places", "num_sides")),
            "logits": TensorSpec(("batch", "num_places", "num_classes")),
        },
        dtypes=("float32",),  # of drawn cases: weights by seed leave rows of half precisions ill-conditioned
        examples=({"config": YOLOv10Config.tiny()},),
        example_axes={"batch": (2, 1), "height": (2, 1), "width": (1, 3)},
    )

    def __init__(self, config: YOLOv10Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.max_detections, self.num_classes = config.max_detections, config.num_classes
        self.num_sides = 4 * config.reg_max
        self.backbone = YOLOv10Backbone(config, f"{prefix}backbone")
        self.neck = YOLOv10Neck(config, f"{prefix}neck")
        self.head = YOLOv10Head(config, f"{prefix}head")
        self.dfl = nn.ModuleList(DFLBoxes(config.reg_max, stride) for stride in _STRIDES)
        self.top_k = TopKPerRow()
        self.gather_tokens = GatherTokens()
        self.sigmoid = Sigmoid()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[2] % _STRIDES[-1] or x.shape[3] % _STRIDES[-1]:
            raise ValueError(f"YOLOv10 takes [batch, 3, height, width], multiples of 32, got {tuple(x.shape)}.")
        return self.head(*self.neck(*self.backbone(x)))

    def detect(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The max_detections best pairs of a place and a class, the best first: (boxes, scores, labels).

        boxes: [batch, detections, 4] float32, (left, top, right, bottom) in pixels of x; scores, labels: [batch,
        detections], at most as many as there are places.
        """
        sides, logits = self(x)
        shapes = [(x.shape[2] // stride, x.shape[3] // stride) for stride in _STRIDES]
        levels = sides.transpose(1, 2).split([height * width for height, width in shapes], dim=2)
        boxes = torch.cat(
            [dfl(level.unflatten(2, shape)) for dfl, level, shape in zip(self.dfl, levels, shapes, strict=True)], 1
        )
        pairs = logits.flatten(1)
        best = self.top_k(pairs, min(self.max_detections, boxes.shape[1]))
        scores = self.sigmoid(self.gather_tokens(pairs[..., None], best)[..., 0])
        return self.gather_tokens(boxes, best // self.num_classes), scores, best % self.num_classes

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_places": 21 * sizes["height"] * sizes["width"]}
