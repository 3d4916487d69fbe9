"""Stand-ins for vendor libraries: their functions' signatures, over plain PyTorch on a CPU.

Each checks shapes, dtypes and layouts as the library's own code does, so that what a set makes of a call is what the
library would get; its sums are written in the library's terms. What no set passes is left out of a signature's end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, silu, softplus

from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.spherical_harmonics import _bases

# flash-linear-attention 0.5


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scale: float) -> Any:
    """[T, H, K], [T, HV, V], [T, HV], [HV, K, V] -> outputs and the state."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    rows = []
    for t in range(len(q)):
        state = state * g[t].exp()[:, None, None]
        error = v[t] - torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], beta[t][:, None] * error)
        rows.append(torch.einsum("hkv,hk->hv", state, q[t]) * scale)
    return (torch.stack(rows) if rows else v.new_zeros(0, *v.shape[1:])), state


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    assert cu_seqlens is not None
    assert cu_seqlens.dtype == torch.int64
    assert initial_state is not None
    assert output_final_state
    assert not use_qk_l2norm_in_kernel
    assert q.shape[0] == 1
    assert q.shape == k.shape
    assert g.shape == beta.shape == v.shape[:3]
    num_seqs = len(cu_seqlens) - 1
    assert initial_state.shape == (num_seqs, v.shape[2], k.shape[3], v.shape[3])
    assert initial_state.dtype == torch.float32
    outputs, states = [], []
    for i in range(num_seqs):
        own = slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1]))
        rows = (x[0, own] for x in (q, k, v, g, beta))
        o, state = delta_rule(*rows, initial_state[i], scale or k.shape[-1] ** -0.5)
        outputs.append(o)
        states.append(state)
    return torch.cat(outputs)[None], torch.stack(states)


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor]:
    assert g is not None
    assert beta is not None
    assert initial_state is not None
    assert output_final_state
    assert g.shape == beta.shape == v.shape[:3]
    assert initial_state.shape == (q.shape[0], v.shape[2], k.shape[3], v.shape[3])
    own = [delta_rule(*(x[i] for x in (q, k, v, g, beta, initial_state)), k.shape[-1] ** -0.5) for i in range(len(q))]
    return torch.stack([o for o, _ in own]), torch.stack([state for _, state in own])


def l2norm(x: Tensor, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    assert bias is residual is None
    assert activation == "swish"
    assert weight.shape == x.shape[-1:]
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight * g * g.sigmoid()


def fla_causal_conv1d(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str | None = "triton",
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    assert weight is not None
    assert initial_state is not None
    assert cu_seqlens is not None
    assert output_final_state
    dim, width = weight.shape
    num_seqs = len(cu_seqlens) - 1
    assert x.shape[0] == 1
    assert initial_state.shape == (num_seqs, dim, width)
    assert initial_state.is_contiguous()
    outputs, finals = [], []
    for i in range(num_seqs):
        rows = x[0, int(cu_seqlens[i]) : int(cu_seqlens[i + 1])].T
        seen = torch.cat([initial_state[i], rows], dim=1)
        y = conv1d(seen[None, :, 1:], weight[:, None], bias, groups=dim)[0] if rows.shape[1] else rows
        outputs.append((silu(y) if activation in ("silu", "swish") else y).T)
        finals.append(seen[:, -width:])
    return torch.cat(outputs)[None], torch.stack(finals)


def fla_causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    assert weight is not None
    assert cache.shape == (*x.shape, weight.shape[1])
    assert cache.is_contiguous()
    cache.copy_(torch.cat([cache[:, :, 1:], x[:, :, None]], dim=2))
    y = (cache * weight).sum(-1) + (0 if bias is None else bias)
    return (silu(y) if activation in ("silu", "swish") else y), cache


# causal-conv1d 1.6


def cuda_causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    batch, dim, _ = x.shape
    width = weight.shape[1]
    assert initial_states is not None
    assert seq_idx is final_states_out is None
    assert return_final_states
    assert x.stride(1) == 1
    assert x.stride(2) % 8 == dim % 8 == 0
    assert initial_states.shape == (batch, dim, width - 1)
    assert initial_states.stride(1) == 1
    seen = torch.cat([initial_states, x], dim=2)
    y = conv1d(seen, weight[:, None], bias, groups=dim)
    return (y if activation is None else silu(y)), seen[:, :, 1 - width :]


def cuda_causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    assert conv_state_indices is not None
    assert conv_state_indices.dtype == torch.int32
    assert conv_state.shape[1:] == (x.shape[1], weight.shape[1] - 1)
    seen = torch.cat([conv_state[conv_state_indices.long()], x[:, :, None]], dim=2)
    conv_state[conv_state_indices.long()] = seen[:, :, 1:]
    y = (seen * weight).sum(-1) + (0 if bias is None else bias)
    return y if activation is None else silu(y)


# mamba-ssm 2.3


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, size = x.shape
    assert dt.shape == (batch, length, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape == (batch, length, B.shape[2], B.shape[3])
    assert D is not None
    assert initial_states is not None
    assert initial_states.shape == (batch, heads, size, B.shape[3])
    assert dt_softplus
    assert return_final_states
    assert dt_bias is not None
    step = softplus(dt + dt_bias).clamp(*dt_limit)
    b, c = (y.repeat_interleave(heads // y.shape[2], dim=2) for y in (B, C))
    state, rows = initial_states, []
    for t in range(length):
        decay = (step[:, t] * A).exp()[..., None, None]
        state = decay * state + (step[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        rows.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]) + D[:, None] * x[:, t])
    return torch.stack(rows, dim=1), state


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    _, heads, size, width = state.shape
    assert dt_bias is not None
    assert D is not None
    assert state_batch_indices is not None
    assert state_batch_indices.dtype == torch.int32
    assert x.shape == dt.shape == (len(x), heads, size)
    assert A.shape == (heads, size, width)
    assert D.shape == dt_bias.shape == (heads, size)
    assert A.stride()[1:] == (0, 0)  # by which the library takes its way for heads
    assert dt.stride(-1) == dt_bias.stride(-1) == 0
    assert dt_softplus
    step = softplus(dt + dt_bias)
    b, c = (y.repeat_interleave(heads // y.shape[1], dim=1) for y in (B, C))
    slots = state_batch_indices.long()
    new = state[slots] * (step[..., None] * A).exp() + (step * x)[..., None] * b[:, :, None]
    state[slots] = new
    return torch.einsum("bhpn,bhn->bhp", new, c) + D * x


# gsplat 1.5


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
) -> tuple[Tensor, ...]:
    batch, num = means.shape[:2]
    assert covars is None
    assert not packed
    assert viewmats.shape == (batch, 1, 4, 4)
    assert Ks.shape == (batch, 1, 3, 3)
    op = GaussianProjection(eps2d, near_plane, far_plane)
    found = op.reference(means, quats, scales, viewmats[:, 0], Ks[:, 0], width, height)
    assert found[0].shape == (batch, num, 2)
    return *(x[:, None] for x in found), None  # type: ignore[return-value]


def isect_tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs in the order of their keys: image, tile, depth's bits."""
    assert tile_size == 16
    assert sort
    assert radii.dtype == torch.int32
    bits = depths.view(torch.int32).long()
    size = torch.tensor([tile_width, tile_height])
    counts, keys, ids = torch.zeros(depths.shape, dtype=torch.int32), [], []
    for image in range(depths.shape[0]):
        for number in range(depths.shape[1]):
            if (radii[image, number] <= 0).any():
                continue
            centre, radius = means2d[image, number] / 16, radii[image, number] / 16
            low = (centre - radius).floor().long().clamp_min(0).minimum(size).tolist()
            high = (centre + radius).ceil().long().clamp_min(0).minimum(size).tolist()
            for y in range(low[1], high[1]):
                for x in range(low[0], high[0]):
                    tile = image * tile_width * tile_height + y * tile_width + x
                    keys.append((tile << 32) | int(bits[image, number]))
                    ids.append(image * depths.shape[1] + number)
                    counts[image, number] += 1
    ordered, order = torch.tensor(keys, dtype=torch.int64).sort(stable=True)
    return counts, ordered, torch.tensor(ids, dtype=torch.int32)[order]


def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    tiles = torch.arange(n_images * tile_width * tile_height)
    first = torch.searchsorted(isect_ids >> 32, tiles).to(torch.int32)
    return first.view(n_images, tile_height, tile_width)


def rasterize_to_pixels(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
    backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    tiles = (len(means2d), -(-image_height // 16), -(-image_width // 16))
    assert tile_size == 16
    assert isect_offsets.shape == tiles
    assert flatten_ids.dtype == isect_offsets.dtype == torch.int32
    assert not len(flatten_ids) or flatten_ids.min() >= 0
    assert backgrounds is not None
    bounds = torch.cat([isect_offsets.flatten(), torch.tensor([len(flatten_ids)], dtype=torch.int32)])
    given = (means2d, conics, colors, opacities, flatten_ids.long(), bounds, backgrounds, image_width, image_height)
    return RasterizeGaussians().reference(*given)


def spherical_harmonics(degrees_to_use: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    assert masks is None
    assert coeffs.shape == (*dirs.shape[:-1], (degrees_to_use + 1) ** 2, 3)
    return (_bases(dirs / dirs.norm(dim=-1, keepdim=True), degrees_to_use)[..., None] * coeffs).sum(-2)
