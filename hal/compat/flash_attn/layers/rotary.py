"""flash_attn.layers.rotary: the function that models call beside attention, in plain torch. No modules."""

from typing import Optional, Union

import torch


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
    one or [B]. inplace: write into x and return it. max_seqlen has no effect on the result.
    """
    half = cos.shape[-1]
    if cos.shape != sin.shape or cos.dim() != 2 or 2 * half > x.shape[-1]:
        raise ValueError(f"cos and sin: got shapes {tuple(cos.shape)} and {tuple(sin.shape)}, expected one shape "
                         f"[positions, rotary_dim / 2] with rotary_dim up to {x.shape[-1]}")
    positions = _positions(x, cu_seqlens, seqlen_offsets)
    if positions.numel() and (int(positions.max()) >= cos.shape[0] or int(positions.min()) < 0):
        raise ValueError(f"cos: got {cos.shape[0]} positions, expected at least {int(positions.max()) + 1}")
    c, s = cos.float()[positions].unsqueeze(-2), sin.float()[positions].unsqueeze(-2)
    head = x[..., :2 * half].float()
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, dim=-1)
    turned = (a * c - b * s, a * s + b * c)
    joined = (torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)).to(x.dtype)
    if inplace:
        x[..., :2 * half] = joined
        return x
    return torch.cat((joined, x[..., 2 * half:]), dim=-1)


def _positions(x, cu_seqlens, offsets):
    """int64 [B or 1, S], or packed [total]: where each token stands."""
    if cu_seqlens is None:
        steps = torch.arange(x.shape[1], device=x.device)
        return steps + (offsets[:, None] if isinstance(offsets, torch.Tensor) else offsets)
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - starts
    shift = (offsets.long() if isinstance(offsets, torch.Tensor) else offsets) - starts
    return torch.arange(x.shape[0], device=x.device) + shift.repeat_interleave(lengths)


apply_rotary_emb_func = apply_rotary_emb  # its older name
