"""Masks of transformers: which can be expressed, and a padded batch as lengths and row numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Mask functions of transformers.masking_utils that a layer states itself (is_causal, sliding_window).
_EXPRESSED = ("causal_mask_function", "bidirectional_mask_function",
              "sliding_window_overlay.<locals>.inner_mask")


def padding_mask(batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, kv_offset: int = 0,
                 mask_function: Callable[..., Any] | None = None, attention_mask: Tensor | None = None,
                 **kwargs: Any) -> Tensor | None:
    """transformers' mask function of "hal": None, or bool [batch, kv_len] where there is padding.

    Raises ValueError for masks that are more than causal, sliding or bidirectional, and for an attention_mask
    whose length is not that of the tokens seen.
    """
    import torch
    from transformers import masking_utils as theirs

    function = theirs.causal_mask_function if mask_function is None else mask_function
    unknown = [part for part in _parts(function) if part not in _EXPRESSED]
    if unknown:
        raise ValueError(f"an attention mask of {', '.join(unknown)} is not supported by attn_implementation "
                         "'hal' (supported: causal, sliding window, bidirectional, and padding)")
    if function is not theirs.bidirectional_mask_function:
        cached, places = int(q_offset), kv_offset + kv_length
        seen = cached + q_length
        if attention_mask is not None and attention_mask.shape[1] != seen:
            raise ValueError(f"attention_mask has {attention_mask.shape[1]} columns, expected {seen}: one "
                             f"for each of {cached} cached and {q_length} new tokens")
        if attention_mask is None and places != seen:
            # A static cache has more places than tokens: what is not there yet is padding.
            attention_mask = torch.ones(batch_size, seen, dtype=torch.bool, device=kwargs.get("device"))
    mask: Tensor | None = theirs.flash_attention_mask(batch_size, q_length, kv_length, q_offset, kv_offset,
                                                      function, attention_mask)
    return mask


def _parts(function: Any) -> list[str]:
    """Names of the mask functions that transformers' and_masks() combined, or of the one given."""
    if function.__qualname__ != "and_masks.<locals>.and_mask":
        return [str(function.__qualname__)]
    return [name for cell in function.__closure__ for part in cell.cell_contents for name in _parts(part)]


class Padding:
    """What a padding mask says, each part computed once and only when asked for.

    mask: bool [batch, places], False for padding. Lengths are int32, row numbers int64 and count over the
    flattened [batch * places]; all on the mask's device.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._last: dict[int, Padding] = {}

    @cached_property
    def lengths(self) -> Tensor:
        """[batch] tokens per sequence."""
        import torch

        return self.mask.sum(1, dtype=torch.int32)

    @cached_property
    def max_length(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """[batch + 1]"""
        import torch

        return torch.nn.functional.pad(self.lengths.cumsum(0, dtype=torch.int32), (1, 0))

    @cached_property
    def rows(self) -> Tensor:
        """[total] rows that are tokens, in order."""
        return self.mask.flatten().nonzero().flatten()

    @cached_property
    def left_aligned(self) -> Tensor:
        """[batch, max_length] rows of each sequence's tokens, in order; shorter ones go on with padding."""
        import torch

        batch, places = self.mask.shape
        order = self.mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, :self.max_length]
        return order + torch.arange(batch, device=order.device)[:, None] * places

    @cached_property
    def has_holes(self) -> bool:
        """Some sequence has padding between its tokens."""
        begins = (self.mask[:, 1:] & ~self.mask[:, :-1]).sum(1) + self.mask[:, 0]
        return bool((begins > 1).any())

    def last(self, length: int) -> Padding:
        """The padding of the last `length` places."""
        if length not in self._last:
            self._last[length] = Padding(self.mask[:, -length:])
        return self._last[length]


_memo: Any = None  # made on first use: its class lives in torch


def padding_of(mask: Tensor) -> Padding:
    """The Padding of a mask, one object for one tensor object: all layers of a forward share it."""
    global _memo
    if _memo is None:
        from torch.utils.weak import WeakIdKeyDictionary

        _memo = WeakIdKeyDictionary()
    found: Padding | None = _memo.get(mask)
    if found is None:
        # A copy: holding the key itself, or a view of it, would keep both for ever.
        found = _memo[mask] = Padding(mask.clone())
    return found


def even_cu_seqlens(batch: int, length: int, device: Any) -> Tensor:
    """[batch + 1] int32: the cumulative lengths of a batch without padding."""
    import torch

    return torch.arange(batch + 1, dtype=torch.int32, device=device) * length
