"""flash_attn.bert_padding: padded batches to packed sequences and back, in plain torch. Differentiable, as torch is."""

import torch
import torch.nn.functional as F


def index_first_axis(input, indices):
    """Rows `indices` [n] of input [total, ...]."""
    if input.ndim < 2:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected at least 2 dimensions")
    _check(indices, "whole numbers", torch.bool, torch.uint8)
    return input.index_select(0, indices.long())


def index_put_first_axis(values, indices, first_axis_dim):
    """Zeros [first_axis_dim, ...] with row indices[i] = values[i]. indices: whole numbers, negative ones from the
    end, or a mask [first_axis_dim]."""
    if indices.ndim != 1 or values.ndim < 2:
        raise ValueError(f"indices and values: got shapes {tuple(indices.shape)} and {tuple(values.shape)}, expected "
                         "[n] and [n, ...]")
    _check(indices, "whole numbers or a mask", torch.uint8)
    return values.new_zeros(first_axis_dim, *values.shape[1:]).index_put((indices,), values)


def index_first_axis_residual(input, indices):
    """(input[indices], input): the gradients of both add up in input's. indices: as of index_put_first_axis."""
    _check(indices, "whole numbers or a mask", torch.uint8)
    return input[indices], input


def unpad_input(hidden_states, attention_mask, unused_mask=None):
    """(tokens [total, ...], their places in the flattened batch, cu_seqlens int32 [B + 1], longest, seqused [B]).

    hidden_states: [B, S, ...]; attention_mask: [B, S], 1 for a token. unused_mask: [B, S], 1 for a place that is kept
    without being a token: it counts in all but seqused.
    """
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = kept.sum(dim=-1, dtype=torch.int32)
    used = attention_mask.sum(dim=-1, dtype=torch.int32)
    places = kept.flatten().nonzero().flatten()
    tokens = index_first_axis(hidden_states.flatten(0, 1), places)
    return tokens, places, _cumulative(lengths), int(lengths.max()), used


def unpad_input_for_concatenated_sequences(hidden_states, attention_mask_in_length):
    """(tokens [total, ...], their places, cu_seqlens int32, longest length) of rows that hold several sequences.

    attention_mask_in_length: [B, S]; row b begins with the lengths of its sequences, then zeros.
    """
    filled = attention_mask_in_length.sum(dim=-1, keepdim=True)
    columns = torch.arange(attention_mask_in_length.shape[-1], device=filled.device, dtype=filled.dtype)
    places = (columns < filled).flatten().nonzero().flatten()
    lengths = attention_mask_in_length.flatten()
    lengths = lengths[lengths != 0]
    return index_first_axis(hidden_states.flatten(0, 1), places), places, _cumulative(lengths), int(lengths.max())


def pad_input(hidden_states, indices, batch, seqlen):
    """[batch, seqlen, ...] with the tokens [total, ...] at their places `indices`, zeros elsewhere."""
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))


def _check(indices, expected, *others):
    """uint8 is a mask to torch, and was meant as numbers or not: nobody knows."""
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype in others:
        raise ValueError(f"indices: got {indices.dtype}, expected {expected}")


def _cumulative(lengths):
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
