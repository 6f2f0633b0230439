"""flash_attn.layers.rotary: the function that models call beside attention, in plain torch. No modules."""

from typing import Optional, Union

import torch
import torch.nn.functional as F


def apply_rotary_emb(
    x,
    cos,
    sin,
    interleaved=False,
    inplace=False,
    seqlen_offsets: Union[int, torch.Tensor] = 0,
    cu_seqlens: Optional[torch.Tensor] = None,
    max_seqlen: Optional[int] = None,
):
    """x rotated at its positions, in float32, in x's dtype: the first 2 * cos.shape[1] elements of each head.

    x: [B, S, H, D], or with cu_seqlens (int32 [B + 1]) packed [total, H, D]. cos, sin: [positions, rotary_dim / 2].
    interleaved: pairs (0, 1), (2, 3).. rather than halves. seqlen_offsets: the position of a sequence's first token,
    one or [B]. inplace: write into x and return it. max_seqlen has no effect on the result. Packed rows past the last
    sequence stay as they are. So do tokens past the last position where only the device knows theirs, as with the real
    kernel (ops/triton/rotary.py masks its loads of cos and sin); where the host knows, that raises ValueError.
    """
    half = cos.shape[-1]
    if cos.shape != sin.shape or cos.dim() != 2 or 2 * half > x.shape[-1]:
        raise ValueError(f"cos and sin: got shapes {tuple(cos.shape)} and {tuple(sin.shape)}, expected one shape "
                         f"[positions, rotary_dim / 2] with rotary_dim up to {x.shape[-1]}")
    positions, inside = _positions(x, cu_seqlens, seqlen_offsets)
    if cu_seqlens is None and not isinstance(seqlen_offsets, torch.Tensor):
        if x.shape[1]:
            _check_offsets(seqlen_offsets, seqlen_offsets, seqlen_offsets + x.shape[1] - 1, cos.shape[0])
    elif x.device.type == "cpu":
        seen = positions[inside]
        if seen.numel():
            _check_offsets(seqlen_offsets, int(seen.min()), int(seen.max()), cos.shape[0])
    inside = inside & (positions >= 0) & (positions < cos.shape[0])
    at = positions.clamp(0, max(cos.shape[0] - 1, 0))
    c = torch.where(inside[..., None], cos.float()[at], 1.0).unsqueeze(-2)
    s = torch.where(inside[..., None], sin.float()[at], 0.0).unsqueeze(-2)
    head = x[..., :2 * half].float()
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, dim=-1)
    turned = (a * c - b * s, a * s + b * c)
    joined = (torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)).to(x.dtype)
    if inplace:
        x[..., :2 * half] = joined
        return x
    return torch.cat((joined, x[..., 2 * half:]), dim=-1)


def _positions(x, cu_seqlens, offsets):
    """(int64 [B or 1, S], or packed [total]: where each token stands; bool, whether it is of a sequence).

    Raises ValueError for x's dimensions.
    """
    packed = cu_seqlens is not None
    if x.dim() != (3 if packed else 4):
        expected = "[total, H, D] with" if packed else "[B, S, H, D] without"
        raise ValueError(f"x: got {tuple(x.shape)}, expected {expected} cu_seqlens")
    steps = torch.arange(x.shape[0 if packed else 1], device=x.device)
    given = isinstance(offsets, torch.Tensor)
    if packed:
        sequence = torch.searchsorted(cu_seqlens[1:], steps.to(cu_seqlens.dtype), right=True)
        steps = steps - cu_seqlens[sequence]
        positions = steps + (F.pad(offsets, (0, 1))[sequence] if given else offsets)
        inside = sequence < cu_seqlens.shape[0] - 1
    else:
        positions = steps + (offsets[:, None] if given else offsets)
        inside = torch.ones_like(positions, dtype=torch.bool)
    return positions, inside


def _check_offsets(offsets, lowest, highest, count):
    if lowest < 0:
        raise ValueError(f"seqlen_offsets: got {offsets}, expected 0 or more")
    if highest >= count:
        raise ValueError(f"cos: got {count} positions, expected at least {highest + 1}")


apply_rotary_emb_func = apply_rotary_emb  # its older name
