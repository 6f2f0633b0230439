"""Faults of attention kernels, as data: how each is made from the torch backend, the case it turns red, a control.

Every fault is one that a kernel or an adapter has had, or easily could. It is made on the outside where a wrong kernel
would differ there (another argument, another result), else by replacing text of the backend's source.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mutants_torch import NAME, made, sources

from hal import registry
from hal.backend import AttentionBackend, Bound

if TYPE_CHECKING:
    from torch import Tensor

Arguments = dict[str, Any]
Change = tuple[str, str]  # text that the two files hold once, and what it becomes


@dataclass(frozen=True)
class Fault:
    """One wrong backend.

    case: the conformance case that must fail; control: one that must pass, as it does not use what is broken.
    source: replacements in the backend's text. arguments(a): changes the call's arguments in place. result(got, a):
    what is returned instead. write(write, k, v, k_cache, v_cache, slots, scales): in place of write_kv_cache.
    """

    name: str
    case: str
    control: str
    source: tuple[Change, ...] = ()
    arguments: Callable[[Arguments], None] | None = None
    result: Callable[[Any, Arguments], Any] | None = None
    write: Callable[..., None] | None = None

    def backend(self) -> type[AttentionBackend]:
        """Raises AssertionError where the text to replace is not in the source exactly once."""
        return _wrapped(_replaced(self.source), self)


def _replaced(changes: tuple[Change, ...]) -> type[AttentionBackend]:
    if not changes:
        return registry.get("torch")
    texts = dict(sources())
    for old, new in changes:
        holders = [file for file, text in texts.items() for _ in range(text.count(old))]
        assert len(holders) == 1, (f"the source of the torch backend holds {old!r} {len(holders)} times: write this "
                                   "fault anew in tests/faults_torch.py")
        texts[holders[0]] = texts[holders[0]].replace(old, new)
    return made({file: ast.parse(text) for file, text in texts.items()})


def _wrapped(base: type[AttentionBackend], fault: Fault) -> type[AttentionBackend]:
    """`base` under the name of mutants, its functions and its cache writer made wrong."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(**given: Any) -> Any:
            a = dict(given)
            if fault.arguments is not None:
                fault.arguments(a)
            got = function(**a)
            return got if fault.result is None else fault.result(got, given)

        return faulty

    class Faulty(base):  # type: ignore[misc, valid-type]
        name = NAME

        @classmethod
        def bind(cls, config: Any, platform: Any, package: Any) -> Bound:
            bound = super().bind(config, platform, package)
            return Bound(around(bound.flash_attn_with_kvcache), around(bound.flash_attn_varlen_func))

        @classmethod
        def write_kv_cache(cls, config: Any) -> Callable[..., None]:
            right = super().write_kv_cache(config)
            if fault.write is None:
                return right

            def wrong(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, **scales: Any) -> None:
                assert fault.write is not None
                fault.write(right, k, v, k_cache, v_cache, slots, scales)

            return wrong

    return Faulty


# What happens to arguments.


def drop(*names: str) -> Callable[[Arguments], None]:
    def dropped(a: Arguments) -> None:
        for name in names:
            a.pop(name, None)

    return dropped


def replace(name: str, new: Callable[[Any, Arguments], Any]) -> Callable[[Arguments], None]:
    """The argument, where it is given, becomes new(argument, all arguments)."""
    def replaced(a: Arguments) -> None:
        if a.get(name) is not None:
            a[name] = new(a[name], a)

    return replaced


def many_see_all(a: Arguments) -> None:
    if a["q"].dim() == 4 and a["q"].shape[1] > 1:
        a["causal"] = False


def scale_of_key_width(a: Arguments) -> None:
    a["softmax_scale"] = a["q"].shape[-1] ** -0.5


def scale_of_value_width(a: Arguments) -> None:
    v = a["v_cache"] if "v_cache" in a else a["v"]
    a.setdefault("softmax_scale", v.shape[-1] ** -0.5)


def no_right_window(a: Arguments) -> None:
    if not a["causal"] and "window_size" in a:
        a["window_size"] = (a["window_size"][0], -1)


def one_kv_head(a: Arguments) -> None:
    for name in ("k_cache", "v_cache"):
        a[name] = a[name][:, :, :1].expand_as(a[name])


def as_contiguous(a: Arguments) -> None:
    """The cache's memory read in the order that a contiguous tensor of its shape has."""
    import torch

    for name in ("k_cache", "v_cache"):
        x = a[name]
        strides = torch.empty(x.shape, device="meta").stride()
        a[name] = x.as_strided(x.shape, strides, x.storage_offset())


def interleaved(a: Arguments, back: bool = False) -> list[int]:
    """Order of query heads in which head h % Hkv is what h // group was."""
    heads, kv_heads = a["q"].shape[-2], (a["k_cache"] if "k_cache" in a else a["k"]).shape[-2]
    order = sorted(range(heads), key=lambda h: (h % kv_heads, h))
    return sorted(range(heads), key=order.__getitem__) if back else order


def keys_at_query_offsets(a: Arguments) -> None:
    """Cross-attention that takes the queries' offsets for the keys'."""
    total = int(a["cu_seqlens_q"][-1])
    a |= {"cu_seqlens_k": a["cu_seqlens_q"], "max_seqlen_k": a["max_seqlen_q"], "k": a["k"][:total],
          "v": a["v"][:total]}


def page_of(a: Arguments) -> int:
    size: int = a["k_cache"].shape[1]
    return size


def whole_pages(x: Tensor, a: Arguments) -> Tensor:
    whole = x // page_of(a) * page_of(a)
    return whole.where(whole > 0, x)


# What happens to results.


def on_lse(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Arguments], Any]:
    return lambda got, a: (got[0], change(got[1]).contiguous()) if isinstance(got, tuple) else got


def jitter(got: Any, a: Arguments) -> Any:
    """The last bit of some small numbers, other ones each time."""
    import torch

    return torch.where(got.abs() < 0.5, got * (1 + 2**-7 * torch.randint(0, 2, got.shape)).to(got.dtype), got)


# What happens to writes into the cache.


def first_slot(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, scales: Any) -> None:
    write(k, v, k_cache, v_cache, slots.clamp(min=0), **scales)


def next_slot(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, scales: Any) -> None:
    end = k_cache.shape[0] * k_cache.shape[1]
    write(k, v, k_cache, v_cache, ((slots + 1) % end).where(slots >= 0, slots), **scales)


def last_slot(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, scales: Any) -> None:
    write(k, v, k_cache, v_cache, slots % (k_cache.shape[0] * k_cache.shape[1]), **scales)


def cast_unscaled(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor,
                  scales: Any) -> None:
    write(k, v, k_cache, v_cache, slots, **dict.fromkeys(scales, 1.0))


def scaled_the_other_way(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor,
                         scales: Any) -> None:
    write(k, v, k_cache, v_cache, slots, **{name: 1 / x for name, x in scales.items()})


def only_keys_written(write: Any, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor,
                      scales: Any) -> None:
    write(k, v, k_cache, v_cache.clone(), slots, **scales)


# The cases' names. D: dense, M: MLA; of the bfloat16 base shape.
def D(group: str, rest: str = "") -> str:
    return _name("dense", group, "8/2x128", rest)


def M(group: str, rest: str = "") -> str:
    return _name("mla", group, "16/1x576-512", rest)


def _name(family: str, group: str, heads: str, rest: str) -> str:
    word, _, phase = group.partition(": ")
    return f"{family} {word}: {phase} bfloat16 {heads} {rest}".strip()


PREFILL, DECODE, EXTEND = D("plain: prefill"), D("plain: decode"), D("plain: extend")
ONE_PAGE = D("lengths: decode", "one page")
LIMITS = "    return low, high\n"
ATTEND = "return out.view(heads, n, -1).transpose(0, 1), lse"
POSITION = "p0 = i0 - first + call.len_k[b] - (last - first)"
LOCAL = "    local = call.end[b] - call.start[b]\n"
CHUNK = "low, high = max(low, p // chunk * chunk), min(high, (p // chunk + 1) * chunk)"
CHUNK_FROM = ('o = a["o"]\n        low, high = max(low, (p - o) // chunk * chunk + o), '
              'min(high, ((p - o) // chunk + 1) * chunk + o)')
SOFTCAP = "        scores = softcap * torch.tanh(scores / softcap)\n"
HIDE = '    if mask is not None:\n        scores = scores.masked_fill(~mask, float("-inf"))\n'
APPEND = ("        _append(call, k, v, k_cache, v_cache, page_table, starts, rotary_cos, rotary_sin, "
          "rotary_interleaved)\n")
ATTENTION = ("    return _attention(call, flat_q, flat_qv, keys, k_cache, v_cache, q, cu_seqlens_q is not None, out,\n"
             "                      return_softmax_lse, a)\n")
GATHER = "        pages = cache[ids]\n"
FOLDED = "        out = scaled_dot_product_attention(folded, kk, vv, scale=scale)\n"
# A sum over keys that is rounded to bfloat16 after every 16 of them.
IN_BFLOAT16 = """        import torch
        w = torch.softmax(folded.float() @ kk.float().transpose(-1, -2) * scale, -1)
        out = torch.zeros(1, heads // group, group * n, v.shape[-1], dtype=torch.bfloat16)
        for j in range(0, k.shape[0], 16):
            out = (out.float() + w[..., j : j + 16] @ vv[..., j : j + 16, :].float()).to(torch.bfloat16)
        out = out.to(q.dtype)
"""

FAULTS = [
    # masks
    Fault("a window one key too wide", D("sliding_window: prefill", "sliding_window=9"), PREFILL,
          (("max(0, p - left)", "max(0, p - left - 1)"),)),
    Fault("a window one key too narrow", D("sliding_window: prefill", "sliding_window=9"), PREFILL,
          (("max(0, p - left)", "max(0, p - left + 1)"),)),
    Fault("a both-sided window one key too wide on the right",
          D("types: prefill", "sliding_window=9 non_causal encoder"), D("sliding_window: prefill", "sliding_window=9"),
          (("p + right + 1)", 'p + right + 1 + (not a["causal"]))'),)),
    Fault("a both-sided window is unbounded on the right", D("types: prefill", "sliding_window=9 non_causal encoder"),
          D("sliding_window: prefill", "sliding_window=9"), arguments=no_right_window),
    Fault("the window of a block is that of its first row", D("sliding_window: prefill", "sliding_window=9"), PREFILL,
          (("[_limits(p, len_k, a) for p in", "[(_limits(p0, len_k, a)[0], _limits(p, len_k, a)[1]) for p in"),)),
    Fault("the window is ignored", D("sliding_window: extend", "sliding_window=9"), EXTEND,
          arguments=drop("window_size")),
    Fault("causal is aligned top left", EXTEND, PREFILL, ((POSITION, "p0 = i0 - first"),)),
    Fault("a window is aligned top left, causal is not", D("sliding_window: extend", "sliding_window=9"), EXTEND,
          ((LOCAL, LOCAL + '    a = {**a, "o": call.len_k[b] - (last - first)}\n'),
           ("max(0, p - left)", 'max(0, p - left - a["o"])'))),
    Fault("several tokens of a decode step see each other", D("calls: decode-q4", "append four each"),
          D("calls: decode", "append one each"), arguments=many_see_all),
    Fault("masks are ignored past position 512", D("sliding_window: prefill", "sliding_window=9 long"),
          D("sliding_window: prefill", "sliding_window=9"),
          ((LIMITS, "    return (low, high) if p < 512 else (0, len_k)\n"),)),
    Fault("masks are ignored past position 2048", D("sliding_window: extend", "sliding_window=9 long"),
          D("sliding_window: prefill", "sliding_window=9 long"),
          ((LIMITS, "    return (low, high) if p < 2048 else (0, len_k)\n"),)),
    Fault("causal is ignored past position 2048", D("long: extend", "long"), EXTEND,
          ((LIMITS, "    return (low, high) if p < 2048 else (low, len_k)\n"),)),
    Fault("chunks are counted from the first query", D("attention_chunk: extend", "attention_chunk=16"),
          D("attention_chunk: prefill", "attention_chunk=16"),
          ((LOCAL, LOCAL + '    a = {**a, "o": call.len_k[b] - (last - first)}\n'), (CHUNK, CHUNK_FROM))),
    Fault("chunks are counted from the left padding",
          D("calls: extend", "attention_chunk=7 cache_batch_idx cache_leftpad"), D("calls: extend", "cache_leftpad"),
          ((LOCAL, LOCAL + '    a = {**a, "o": -call.start[b]}\n'), (CHUNK, CHUNK_FROM))),
    Fault("a chunk is a window", D("attention_chunk: prefill", "attention_chunk=16"), PREFILL,
          ((CHUNK, "low = max(low, p - chunk + 1)"),)),
    Fault("a chunk is seen to its end", D("attention_chunk: prefill", "attention_chunk=16"), PREFILL,
          ((CHUNK, "low, high = p // chunk * chunk, min(len_k, (p // chunk + 1) * chunk)"),)),
    Fault("the tree mask is transposed", D("tree_mask: decode-q4", "tree_mask"), DECODE,
          arguments=replace("tree_mask", lambda x, a: x.transpose(-1, -2))),
    Fault("the tree mask is counted from the cache's start", D("tree_mask: extend", "tree_mask"),
          D("tree_mask: prefill", "tree_mask"), (("own = key - (len_k - (last - first))", "own = key"),)),
    Fault("the tree mask hides the cache", D("tree_mask: extend", "tree_mask"), D("tree_mask: prefill", "tree_mask"),
          (("tree.shape[1] - 1)], mask)", "tree.shape[1] - 1)], torch.zeros_like(mask))"),)),
    Fault("the tree is the first sequence's", D("tree_mask: decode-q4", "tree_mask"), DECODE,
          (('a["tree_mask"][b, i0 - first', 'a["tree_mask"][0, i0 - first'),)),
    Fault("prefix ranges include their end", D("mm_prefix: prefill", "mm_prefix"), PREFILL,
          (("(p >= start) & (p < end)", "(p >= start) & (p <= end)"),
           ("(key >= start) & (key < end)", "(key >= start) & (key <= end)"))),
    Fault("prefix ranges are ignored", D("mm_prefix: prefill", "mm_prefix"), PREFILL,
          arguments=drop("mm_prefix_ranges")),
    Fault("only the first prefix range counts", D("mm_prefix: prefill", "mm_prefix"), PREFILL,
          (('a["mm_prefix_ranges"][b].tolist()', 'a["mm_prefix_ranges"][b, :1].tolist()'),)),
    Fault("prefix ranges are the first sequence's", D("mm_prefix: prefill", "mm_prefix"), PREFILL,
          (('a["mm_prefix_ranges"][b]', 'a["mm_prefix_ranges"][0]'),)),
    Fault("every query sees the prefix ranges", D("mm_prefix: prefill", "mm_prefix"), PREFILL,
          (("(((p >= start) & (p < end))[:, None] &", "((p >= 0)[:, None] &"),)),
    # scores
    Fault("softmax_scale is ignored", D("scale: prefill", "scale=0.31"), PREFILL, arguments=scale_of_key_width),
    Fault("the default scale is of V's width", "dense head_dim: prefill bfloat16 8/2x192-128", PREFILL,
          arguments=scale_of_value_width),
    Fault("softcap comes after the mask", D("softcap: prefill", "softcap=5.0"), PREFILL,
          ((HIDE, ""), ("    if softcap > 0:\n" + SOFTCAP, HIDE + "    if softcap > 0:\n" + SOFTCAP))),
    Fault("softcap comes before the scale", D("softcap: prefill", "softcap=5.0"), PREFILL,
          ((SOFTCAP, "        scores = softcap * torch.tanh(scores / scale / softcap) * scale\n"),)),
    Fault("softcap multiplies where it should divide", D("softcap: prefill", "softcap=5.0"), PREFILL,
          ((SOFTCAP, "        scores = softcap * torch.tanh(scores * softcap)\n"),)),
    Fault("softcap is ignored", D("softcap: decode", "softcap=5.0"), DECODE, arguments=drop("softcap")),
    Fault("the sink is ignored", D("sinks: prefill", "sinks"), PREFILL, arguments=drop("sinks")),
    Fault("the sink is in both parts of a split", D("sinks: decode", "sinks"), DECODE,
          arguments=replace("sinks", lambda x, a: x + math.log(2))),
    Fault("the sink is scaled", D("sinks: prefill", "sinks"), PREFILL,
          arguments=replace("sinks", lambda x, a: x * a["q"].shape[-1] ** -0.5)),
    Fault("the sink is softcapped", D("pairs: prefill", "softcap=5.0 sinks"), D("sinks: prefill", "sinks"),
          arguments=replace("sinks", lambda x, a: a["softcap"] * (x / a["softcap"]).tanh() if a["softcap"] else x)),
    Fault("sinks are in another head order", D("sinks: prefill", "sinks"), PREFILL,
          arguments=replace("sinks", lambda x, a: x[interleaved(a)])),
    Fault("sinks are read per KV head", D("sinks: decode", "sinks"), DECODE,
          arguments=replace("sinks", lambda x, a: x[:2].repeat_interleave(4))),
    # LSE
    Fault("the LSE is base 2", D("return_softmax_lse: prefill", "return_softmax_lse"), PREFILL,
          result=on_lse(lambda x: x / math.log(2))),
    Fault("the LSE lacks the sink", D("pairs: prefill", "sinks return_softmax_lse"),
          D("return_softmax_lse: prefill", "return_softmax_lse"),
          ((ATTEND, "return out.view(heads, n, -1).transpose(0, 1), torch.logsumexp(scores, dim=-1)"),)),
    Fault("the LSE of a row without keys is +inf", D("return_softmax_lse: decode", "return_softmax_lse"),
          D("return_softmax_lse: prefill", "return_softmax_lse"),
          result=on_lse(lambda x: x.where(x != -math.inf, math.inf))),
    Fault("the LSE of a row without keys is 0", D("return_softmax_lse: decode", "return_softmax_lse"),
          D("return_softmax_lse: prefill", "return_softmax_lse"),
          result=on_lse(lambda x: x.where(x != -math.inf, 0.0))),
    Fault("the LSE of a batch is not transposed", D("return_softmax_lse: decode-q4", "return_softmax_lse"),
          D("return_softmax_lse: prefill", "return_softmax_lse"),
          result=on_lse(lambda x: x.transpose(1, 2).reshape(x.shape) if x.dim() == 3 else x)),
    Fault("the LSE is rounded to bfloat16", D("return_softmax_lse: prefill", "return_softmax_lse"), PREFILL,
          result=on_lse(lambda x: x.bfloat16().float())),
    # rows that see nothing
    Fault("a sequence without keys gives NaN", DECODE, PREFILL,
          (("            continue  # no key is visible", "            result[i0:i1] = float('nan')\n"
                                                          "            continue  # no key is visible"),)),
    Fault("a row that sees no key is the mean of V", D("lengths: prefill", "fewer keys than queries"), PREFILL,
          (("out.masked_fill(~mask.any(-1)[:, None, None], 0.0)",
            "out.nan_to_num(0).where(mask.any(-1)[:, None, None], v.mean(0).repeat_interleave(group, 0))"),)),
    # heads and widths
    Fault("query head h reads KV head h % Hkv", PREFILL, "dense heads: prefill bfloat16 4/4x128",
          arguments=lambda a: a.update(q=a["q"][..., interleaved(a), :]),
          result=lambda got, a: got[..., interleaved(a, back=True), :]),
    Fault("the group is folded in the wrong order", DECODE, "dense heads: decode bfloat16 4/4x128",
          (("q.view(n, heads // group, group, dim).permute(1, 2, 0, 3)",
            "q.view(n, group, heads // group, dim).permute(2, 1, 0, 3)"),
           ("out.view(heads, n, -1).transpose(0, 1)\n    out =",
            "out.reshape(heads, n, -1).transpose(0, 1)\n    out ="))),
    Fault("all heads read KV head 0", DECODE, "dense heads: decode bfloat16 8/1x128", arguments=one_kv_head),
    Fault("V is read at q's width", "dense head_dim: prefill bfloat16 8/2x64-128",
          "dense head_dim: prefill bfloat16 8/2x192-128",
          (("pad(v, (0, width - v.shape[-1]))", "pad(v[..., :dim], (0, width - min(dim, v.shape[-1])))"),)),
    Fault("float32 is computed in bfloat16", "dense plain: prefill float32 8/2x128", PREFILL,
          arguments=lambda a: a.update({n: a[n].bfloat16().to(a[n].dtype) for n in ("q", "k", "v") if n in a})),
    Fault("sums are rounded to bfloat16", D("long: decode", "32k"), DECODE, ((FOLDED, IN_BFLOAT16),)),
    Fault("the latent part of q is ignored", M("plain: decode", "mla"), DECODE,
          (("scores = scores + fold(qv) @ v.permute(1, 2, 0)", "pass"),)),
    # the cache
    Fault("a page's tokens and heads are swapped", DECODE, "dense heads: decode bfloat16 8/1x128",
          ((GATHER, "        pages = cache[ids].transpose(1, 2).reshape(cache[ids].shape)\n"),)),
    Fault("pages are read in the order they are stored in", DECODE, D("calls: decode", "unpaged"),
          arguments=replace("page_table", lambda x, a: x.argsort().argsort().to(x.dtype))),
    Fault("the last page is dropped", DECODE, ONE_PAGE, arguments=replace("cache_seqlens", whole_pages)),
    Fault("the tail of the last page is read", DECODE, ONE_PAGE,
          arguments=replace("cache_seqlens", lambda x, a: -(-x // page_of(a)) * page_of(a))),
    Fault("the last key is dropped", D("lengths: decode", "many"), PREFILL,
          arguments=replace("cache_seqlens", lambda x, a: (x - 1).clamp(min=0))),
    Fault("one key too many is read", DECODE, PREFILL, arguments=replace("cache_seqlens", lambda x, a: x + 1)),
    Fault("the first key is dropped", D("lengths: decode", "many"), PREFILL,
          (("call.start[b] + low, call.start[b] + high)",
            "call.start[b] + low + (low < high - 1), call.start[b] + high)"),)),
    Fault("an unreferenced page is read and multiplied by zero", DECODE, D("calls: decode", "unpaged"),
          ((GATHER, "        pages = cache[ids] + 0 * cache[page_table[owner, -1].long()]\n"),)),
    Fault("lengths are taken for cumulated ones", DECODE, ONE_PAGE,
          arguments=replace("cache_seqlens", lambda x, a: x.diff(prepend=x.new_zeros(1)).clamp(min=0))),
    Fault("page_table's row is the batch's, not cache_batch_idx's", D("calls: decode", "cache_batch_idx"), DECODE,
          arguments=drop("cache_batch_idx")),
    Fault("left padding is ignored", D("calls: decode", "cache_leftpad"), DECODE, arguments=drop("cache_leftpad")),
    Fault("a strided cache is read as a contiguous one", D("calls: decode", "strided_cache"), DECODE,
          arguments=as_contiguous),
    Fault("every sequence reads the first one's pages", D("calls: paged_varlen", "paged_varlen"), DECODE,
          (("return _read(k, page_table, b, first, last), _read(v, page_table, b, first, last)",
            "return _read(k, page_table, 0, first, last), _read(v, page_table, 0, first, last)"),)),
    # writes
    Fault("slot -1 writes slot 0", DECODE, PREFILL, write=first_slot),
    Fault("slot -1 writes the last slot", DECODE, PREFILL, write=last_slot),
    Fault("everything is written one slot late", DECODE, D("calls: decode", "unpaged"), write=next_slot),
    Fault("values are not written", DECODE, D("calls: decode", "unpaged"), write=only_keys_written),
    Fault("the cast to fp8 does not scale", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128", DECODE,
          write=cast_unscaled),
    Fault("the cast to fp8 multiplies by the scale", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128", DECODE,
          write=scaled_the_other_way),
    # descales
    Fault("V is descaled as K", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128", DECODE,
          arguments=replace("v_descale", lambda x, a: a["k_descale"])),
    Fault("descales are ignored", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128", DECODE,
          arguments=drop("k_descale", "v_descale")),
    Fault("descales are the first sequence's", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128 descale_per_head",
          "dense fp8: decode bfloat16+fp8_e4m3 8/2x128",
          arguments=replace("k_descale", lambda x, a: x[:1].expand_as(x).contiguous() if x.dim() else x)),
    Fault("descales are the first head's", "dense fp8: decode bfloat16+fp8_e4m3 8/2x128 descale_per_head",
          "dense fp8: decode bfloat16+fp8_e4m3 8/2x128",
          arguments=replace("v_descale", lambda x, a: x[:, :1].expand_as(x).contiguous() if x.dim() else x)),
    # the append
    Fault("the append comes after attending", D("calls: extend", "append"), EXTEND,
          ((APPEND, ""), (ATTENTION, ATTENTION.replace("return", "got =", 1) +
                          "    if k is not None and v is not None:\n" + APPEND + "    return got\n"))),
    Fault("appended tokens are not attended to", D("calls: extend", "append"), EXTEND,
          ((APPEND, APPEND + "        import dataclasses\n\n        call = dataclasses.replace(call, end=call.before, "
                             "len_k=[e - s for e, s in zip(call.before, call.start)])\n"),)),
    Fault("the append counts from the left padding", D("calls: extend", "sliding_window=9 append cache_leftpad"),
          D("calls: extend", "append"),
          (("torch.arange(call.before[b], call.before[b] + last - first, device=k.device)",
            "torch.arange(call.before[b], call.before[b] + last - first, device=k.device) - call.start[b]"),)),
    Fault("the append lands one slot late", D("calls: extend", "append"), EXTEND,
          (("torch.arange(call.before[b], call.before[b] + last - first, device=k.device)",
            "torch.arange(call.before[b], call.before[b] + last - first, device=k.device) + 1"),)),
    Fault("appended tokens are packed as q is", D("calls: extend", "append"), D("calls: decode", "append one each"),
          (("                cache[page, offset] = new[first:last]",
            "                row = call.rows[b][0]\n"
            "                cache[page, offset] = torch.cat([new, new, new])[row : row + last - first]"),)),
    Fault("what is appended stays in one page", D("calls: extend", "append"), D("calls: decode", "append one each"),
          ((".long()[token // size], token % size", ".long()[token[:1] // size].expand_as(token), token % size"),)),
    # rotary
    Fault("rotary positions are one late", D("calls: decode", "append rotary packed_decode interleaved"),
          D("calls: decode", "append packed_decode"),
          (("position[first:last] = start + steps", "position[first:last] = start + steps + 1"),)),
    Fault("q is not rotated", D("calls: extend", "append rotary interleaved"), D("calls: extend", "append"),
          (("            flat_q = _rotate_rows(flat_q, call.rows, starts, rotary_cos, rotary_sin, rotary_interleaved, "
            "whole)\n", ""),)),
    Fault("appended keys are not rotated", D("calls: extend", "append rotary interleaved"),
          D("calls: extend", "append"),
          (("        flat_k = _rotate_rows(flat_k, call.new_rows, starts, cos, sin, interleaved, True)\n",
            "        pass\n"),)),
    Fault("rotary pairs neighbours where it should pair halves",
          D("calls: extend", "append rotary interleaved=False"), D("calls: extend", "append rotary interleaved"),
          arguments=replace("rotary_interleaved", lambda x, a: True)),
    Fault("rotary pairs halves where it should pair neighbours",
          D("calls: extend", "append rotary interleaved"),
          D("calls: extend", "append rotary interleaved=False"),
          arguments=replace("rotary_interleaved", lambda x, a: False)),
    Fault("rotary turns the other way", D("calls: extend", "append rotary interleaved"), D("calls: extend", "append"),
          arguments=replace("rotary_sin", lambda x, a: -x)),
    Fault("rotary positions count from the left padding",
          D("calls: extend", "append rotary cache_leftpad interleaved=False"),
          D("calls: extend", "append rotary interleaved=False"),
          (("starts = call.before if rotary_seqlens is None",
            "starts = [n - s for n, s in zip(call.before, call.start)] if rotary_seqlens is None"),)),
    Fault("rotary_seqlens is ignored", D("calls: extend", "append rotary interleaved seqlens half"),
          D("calls: extend", "append rotary interleaved"),
          (("rotary_seqlens is None else rotary_seqlens.tolist()",
            "rotary_seqlens is None else [0] * len(call.before)"),)),
    Fault("the last of a head's numbers are rotated", D("calls: extend", "append rotary interleaved seqlens half"),
          D("calls: extend", "append rotary interleaved"),
          (("x[..., :width].float(), x[..., width:]",
            "x[..., x.shape[-1] - width :].float(), x[..., : x.shape[-1] - width]"),
           ("torch.cat((turned.to(x.dtype), rest), dim=-1)", "torch.cat((rest, turned.to(x.dtype)), dim=-1)"))),
    Fault("full attention rotates q along", D("calls: extend", "non_causal append rotary interleaved"),
          D("calls: extend", "append rotary interleaved"),
          (("rotary_interleaved, whole)", "rotary_interleaved, True)"),)),
    # kinds of call
    Fault("out is not written", D("calls: decode", "out"), DECODE, result=lambda got, a: got.clone()),
    Fault("out is ignored", D("calls: prefill", "out"), PREFILL, arguments=drop("out")),
    Fault("a second call gives other bits", D("deterministic: prefill", "deterministic"), PREFILL, result=jitter),
    Fault("seqused_k is ignored", D("calls: prefill", "seqused"), PREFILL, arguments=drop("seqused_k")),
    Fault("seqused_q is ignored", D("calls: prefill", "seqused"), PREFILL, arguments=drop("seqused_q")),
    Fault("the keys of cross-attention are at the queries' offsets",
          D("types: prefill", "non_causal encoder_decoder cross"), PREFILL, arguments=keys_at_query_offsets),
    Fault("a sparse slot's page and offset are swapped", D("sparse: extend", "sparse"), EXTEND,
          (("else store[slots // size, slots % size] for",
            "else store[slots % size % store.shape[0], slots // size % size] for"),)),
    Fault("sparse index -1 is the last slot", D("sparse: extend", "sparse"), EXTEND,
          (("slots = slots[slots >= 0]", "slots = slots % (size * k_store.shape[0])"),)),
    Fault("ranks are off by one", D("context_parallel: prefill", "context_parallel=2 rank0"), PREFILL,
          (("* world + rank", "* world + (rank + 1) % world"),)),
    Fault("ranks hold blocks, not strides", D("context_parallel: prefill", "context_parallel=2 rank1"), PREFILL,
          (("* world + rank", "+ rank * local"),)),
    Fault("context parallelism counts from local lengths", D("context_parallel: extend", "context_parallel=2 rank0"),
          PREFILL, ((POSITION, POSITION.replace("call.len_k[b]", "local")),)),
]
