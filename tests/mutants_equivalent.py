"""Drawn mutants of the torch backend that no case turns red, and why. Each was looked at by hand."""

# ruff: noqa: E501

EQUIVALENT: dict[str, str] = {
    "torch_sequence._sparse: arms swapped: store.view(torch.uint8)[slots // size, slots % size].view(store.dtype) if store.dtype.itemsize == 1 else store[slots // size, slots % size] -> store[slots // size, slots % size] if store.dtype.itemsize == 1 else store.view(torch.uint8)[slots // size, slots % size].view(store.dtype)":
        "equivalent on a CPU: it gathers fp8 too, and bytes of any dtype; the detour is for devices that have no fp8 gather",
    "torch_sequence.sequence: arithmetic: local * (1 if plain else heads) -> local + (1 if plain else heads)":
        "equivalent but for memory: only the size of a block of rows changes, and blocks are independent",
    "torch_sequence.sequence: function: max(1, BLOCK // max(1, local * (1 if plain else heads))) -> min(1, BLOCK // max(1, local * (1 if plain else heads)))":
        "equivalent but for speed: blocks of one row; BLOCK keys (16 million) would be needed for a block of none",
    "torch_sequence._mask: arithmetic: tree.shape[1] - 1 -> tree.shape[1] + 1":
        "equivalent: a key is before len_k, so its place among the step's tokens is before the tree's width; the clamp acts below 0 only",
    "torch_native._append: term dropped: sin is not None":
        "equivalent: the check of the call refuses cos without sin",
    "torch_native._with_kvcache: and/or: k is not None and v is not None -> k is not None or v is not None":
        "equivalent: the check of the call refuses k without v, and v without k",
    "torch_sequence._span: comparison: high > low -> high >= low":
        "equivalent: a position with high == low sees nothing, so a span that begins there only holds more keys to be masked",
    "torch_sequence.sequence: comparison: high <= low -> high < low":
        "equivalent: a softmax over no keys gives 0 and -inf (or the sink) in torch as well; the shortcut only spares the call",
}

# Killed, but by no case: what they need can't be asked for by the kit. Mutant -> a check of mutants_cases.CHECKS.
ELSEWHERE: dict[str, str] = {
    "torch_sequence.sequence: term dropped: a['k_descale'] is None": "descales of a 16-bit cache",
    "torch_sequence.sequence: comparison: a['k_descale'] is None -> a['k_descale'] is not None": "descales of a 16-bit cache",
    "torch_sequence.sequence: statement deleted: if not free: ...": "NaN that no query sees",
}
