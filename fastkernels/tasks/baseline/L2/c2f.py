"""Cross-stage blocks of YOLO: a part of the channels goes through a chain of blocks, every link of which is kept."""

from __future__ import annotations

from torch import Tensor, nn

from fastkernels.op import Op, is_baseline
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv_norm_act import ConvNormAct
from fastkernels.tasks.baseline.L1.silu import SiLU
from fastkernels.tasks.baseline.L2.conv_bn_silu import EPS, ConvBNSiLU
from fastkernels.tasks.baseline.side_by_side import in_one

_X = {"x": TensorSpec(("batch", "in_channels", "height", "width"))}
_Y = {"y": TensorSpec(("batch", "out_channels", "height", "width"))}
_AXES = {"batch": (2, 1), "height": (8, 5), "width": (18, 9)}


class C2fBottleneck(Op):
    """y = cv2(cv1(x)) (+ x), two 3 x 3 convolutions.

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  He et al. 2015 (https://arxiv.org/abs/1512.03385); as Bottleneck of ultralytics with e = 1.
    """

    spec = OpSpec(
        inputs=_X,
        outputs=_Y,
        examples=({"in_channels": 16, "out_channels": 16}, {"in_channels": 13, "out_channels": 13, "shortcut": False}),
        example_axes=_AXES,
    )

    def __init__(self, in_channels: int, out_channels: int, shortcut: bool = True) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.cv1 = ConvBNSiLU(in_channels, out_channels, 3)
        self.cv2 = ConvBNSiLU(out_channels, out_channels, 3)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return in_one(self.cv2, [self.cv1(x)], x if self.add else None)


class RepVGGDW(Op):
    """y = silu(conv(x) + conv1(x)), depthwise kernels of 7 x 7 and of 3 x 3.

    Shapes:  x, y: [batch, channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  Ding et al. 2021 (https://arxiv.org/abs/2101.03697), Wang et al. 2024 (https://arxiv.org/abs/2405.14458);
             as RepVGGDW of ultralytics.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "channels", "height", "width"))},
        outputs={"y": TensorSpec(("batch", "channels", "height", "width"))},
        examples=({"channels": 19},),
        example_axes=_AXES,
    )

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = ConvBNSiLU(channels, channels, 7, groups=channels, has_act=False)
        self.conv1 = ConvBNSiLU(channels, channels, 3, groups=channels, has_act=False)
        self.act = SiLU()
        self.conv_norm_act = ConvNormAct(channels, channels, 7, 1, channels, EPS, "silu", residual_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        if is_baseline(self.conv) and is_baseline(self.act):
            both = self.conv.fused([x], y, self.conv_norm_act)
            if both is not None:
                return both
        return self.act(self.conv(x) + y)


class CIB(Op):
    """Compact inverted block: depthwise, 1 x 1 to twice the channels, depthwise, 1 x 1 back, depthwise (+ x).

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458), figure 3b; as CIB of ultralytics with e = 1.
    """

    spec = OpSpec(
        inputs=_X,
        outputs=_Y,
        examples=(
            {"in_channels": 16, "out_channels": 16, "large_kernel": True},
            {"in_channels": 11, "out_channels": 11},
        ),
        example_axes=_AXES,
    )

    def __init__(self, in_channels: int, out_channels: int, shortcut: bool = True, large_kernel: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        wide = 2 * out_channels
        self.cv1 = nn.Sequential(
            ConvBNSiLU(in_channels, in_channels, 3, groups=in_channels),
            ConvBNSiLU(in_channels, wide),
            RepVGGDW(wide) if large_kernel else ConvBNSiLU(wide, wide, 3, groups=wide),
            ConvBNSiLU(wide, out_channels),
            ConvBNSiLU(out_channels, out_channels, 3, groups=out_channels),
        )
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in list(self.cv1)[:-1]:
            y = layer(y)
        return in_one(self.cv1[-1], [y], x if self.add else None)


class C2f(Op):
    """y = cv2([a, b, m0(b), m1(m0(b)), ...]) with [a, b] = cv1(x).

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  Jocher et al. (https://github.com/ultralytics/ultralytics); signature as its C2f.
    """

    spec = OpSpec(
        inputs=_X,
        outputs=_Y,
        examples=(
            {"in_channels": 12, "out_channels": 16, "n": 2, "shortcut": True},
            {"in_channels": 21, "out_channels": 26},
        ),
        example_axes=_AXES,
    )

    def __init__(self, in_channels: int, out_channels: int, n: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        half = out_channels // 2
        self.cv1 = ConvBNSiLU(in_channels, 2 * half)
        self.cv2 = ConvBNSiLU((2 + n) * half, out_channels)
        self.m = nn.ModuleList(C2fBottleneck(half, half, shortcut) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.fused([x])

    def fused(self, parts: list[Tensor], residual: Tensor | None = None) -> Tensor:
        """forward(the parts side by side) (+ residual)."""
        both = in_one(self.cv1, parts)
        kept, y = [both], both.chunk(2, 1)[1]
        for block in self.m:
            y = block(y)
            kept.append(y)
        return in_one(self.cv2, kept, residual)


class C2fCIB(C2f):
    """C2f whose blocks are compact inverted ones.

    Shapes:  x: [batch, in_channels, height, width]; y: [batch, out_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32, norms and activations computed in fp32.
    Returns: y. No argument is written to.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458); signature as C2fCIB of ultralytics.
    """

    spec = OpSpec(
        inputs=_X,
        outputs=_Y,
        examples=(
            {"in_channels": 12, "out_channels": 16, "shortcut": True, "large_kernel": True},
            {"in_channels": 21, "out_channels": 26, "n": 2},
        ),
        example_axes=_AXES,
    )

    def __init__(
        self, in_channels: int, out_channels: int, n: int = 1, shortcut: bool = False, large_kernel: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, n, shortcut)
        half = out_channels // 2
        self.m = nn.ModuleList(CIB(half, half, shortcut, large_kernel) for _ in range(n))
