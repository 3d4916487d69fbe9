"""Partial self-attention: half of the channels attend over all places of the image."""

from __future__ import annotations

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.baseline.side_by_side import in_one

_HEAD_SIZE = 64
_IMAGES = TensorSpec(("batch", "channels", "height", "width"))
_AXES = {"batch": (2, 1), "height": (4, 5), "width": (16, 3)}


class PSAAttention(Op):
    """y = proj(attention(q, k, v) + pe(v)) with [q, k, v] = qkv(x) head by head, pe a depthwise convolution.

    Shapes:  x, y: [batch, channels, height, width]; a head has channels / num_heads numbers of v and half of them of q
             and k.
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when heads do not split the channels evenly.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458), figure 3c; as Attention of ultralytics.
    """

    spec = OpSpec(
        inputs={"x": _IMAGES},
        outputs={"y": _IMAGES},
        examples=({"channels": 24, "num_heads": 1}, {"channels": 36, "num_heads": 2}),
        example_axes=_AXES,
    )

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % (2 * num_heads):
            raise ValueError(f"PSAAttention splits {channels} channels over {num_heads} heads of an even size.")
        self.channels, self.num_heads = channels, num_heads
        self.value_size = channels // num_heads
        self.key_size = self.value_size // 2
        self.qkv = ConvBNSiLU(channels, 2 * channels, has_act=False)
        self.proj = ConvBNSiLU(channels, channels, has_act=False)
        self.pe = ConvBNSiLU(channels, channels, 3, groups=channels, has_act=False)
        self.attn = DenseAttention(num_heads, self.key_size, value_head_size=self.value_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused([x])

    def fused(self, parts: list[Tensor], residual: Tensor | None = None) -> Tensor:
        """forward(the parts side by side) (+ residual). Pixels of channels last are rows of tokens as they lie."""
        qkv = in_one(self.qkv, parts)
        places = qkv.shape[2:]
        heads = qkv.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (self.num_heads, -1))
        q, k, v = heads.split([self.key_size, self.key_size, self.value_size], dim=-1)
        seen, value = (t.flatten(2).transpose(1, 2).unflatten(2, places) for t in (self.attn(q, k, v), v))
        return in_one(self.proj, [in_one(self.pe, [value], seen)], residual)


class PSA(Op):
    """y = cv2([a, b2]) with [a, b] = cv1(x), b1 = b + attn(b), b2 = b1 + ffn(b1).

    Shapes:  x, y: [batch, channels, height, width].
    Dtypes:  bf16, fp16 or fp32; softmax and sums in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2405.14458), figure 3c; as PSA of ultralytics.
    """

    spec = OpSpec(
        inputs={"x": _IMAGES},
        outputs={"y": _IMAGES},
        examples=({"channels": 40}, {"channels": 256}),
        example_axes=_AXES,
    )

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        half = channels // 2
        self.cv1 = ConvBNSiLU(channels, 2 * half)
        self.cv2 = ConvBNSiLU(2 * half, channels)
        self.attn = PSAAttention(half, max(half // _HEAD_SIZE, 1))
        self.ffn = nn.Sequential(ConvBNSiLU(half, 2 * half), ConvBNSiLU(2 * half, half, has_act=False))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        b = in_one(self.attn, [b], b)
        b = in_one(self.ffn[1], [self.ffn[0](b)], b)
        return in_one(self.cv2, [a, b])
