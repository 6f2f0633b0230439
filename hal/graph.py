"""Static buffers and plans of captured graphs (CUDA graphs, NPUGraph): all host work happens before a replay.

    state = attn.graph_state(max_batch=64, max_tokens=64, max_pages=2048)
    batch = state.prepare_capture(8)                     # once per batch size
    with batch.warm_up(): model(...)                     # eager, on the batch's tensors: plans are made here
    with batch.capture(), torch.cuda.graph(graph): model(...)
    state.prepare_replay(8, cache_seqlens=lens, page_table=table)    # each step, up to 8 sequences
    graph.replay()                                       # on the stream of prepare_replay, or ordered after it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hal import env
from hal.backend import AttentionBackend
from hal.checks import int32, is_int, need
from hal.context import STATE, Epoch, ForwardContext, identity, owner
from hal.torch_import import load_torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class GraphBatch:
    """One batch size of a GraphState: views of its static buffers, to be passed to the captured calls.

    cache_seqlens: int32 [batch]. page_table: int32 [batch, max_pages]. cu_seqlens_q: int32 [batch + 1]. slot_mapping:
    int64 [batch * query_len], skipped tokens as the backend wants them (-1, or a slot each in the padding pages): what
    write_kv_cache takes in a graph. max_seqlen_q is query_len, max_seqlen_k what page_table can hold, in tokens.
    """

    batch: int
    query_len: int
    cache_seqlens: Tensor
    page_table: Tensor
    cu_seqlens_q: Tensor
    slot_mapping: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    _state: GraphState = field(repr=False)
    _epoch: Epoch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = {name: getattr(self, name) for name in ("cache_seqlens", "page_table", "cu_seqlens_q")}
        bounds = {"max_seqlen_q": self.max_seqlen_q, "max_seqlen_k": self.max_seqlen_k}
        # Never checked against its first content: prepare_replay writes here, and a capture can't read.
        self._epoch = Epoch(tensors, bounds, {}, check=False)
        self._epoch.graph = "closed"

    def warm_up(self) -> ForwardContext:
        """The forward context of the eager run before the capture, which makes the plans. May be used repeatedly.

        Where the buffers were prepared for another batch since, this one's rows are padding rows again.
        """
        return GraphContext(self, "warm-up")

    def capture(self) -> ForwardContext:
        """The forward context of the captured run: plans are found, and a call that would need host work raises.

        Entering it refreshes the plans, so enter it before the capture begins. Padding rows as in warm_up. Of a batch
        that is captured again, prepare_replay() serves the new graph alone; several graphs of one batch go into one.
        """
        return GraphContext(self, "capture")

    def _settle(self, refresh: bool) -> None:
        """The buffers as this batch left them or as padding, and the plans to fit."""
        if self._state.current is not self:
            self._state._pad(self, 0, 0)
            refresh = True
        if refresh:
            self._refresh({})

    def _forget(self) -> None:
        """The plans without what a capture left in them."""
        for planner, *_, plan in self._epoch.made:
            if planner.forget is not None:
                planner.forget(plan)

    def _refresh(self, copies: dict[str, Any]) -> None:
        """Every plan as if just made, in the memory it has. copies: host copies that are at hand, or how they are got
        where a plan needs one, by name."""
        torch = load_torch()
        self._epoch.copies, self._epoch.hosts, self._epoch.kept = copies, None, []
        # Plans made in inference mode can be written only there.
        with torch.inference_mode(), GraphContext(self, "refresh"):
            for planner, device, lengths, params, plan in self._epoch.made:
                planner.refresh(plan, device, *lengths, *params)


class GraphContext(ForwardContext):
    """The forward context of a GraphBatch, whose epoch outlives it; one of a batch is open at a time.

    mode: "warm-up" (plans are made), "capture" (they are found) or "refresh". The epoch's `graph` between: "closed".
    """

    __slots__ = ("batch", "mode")

    def __init__(self, batch: GraphBatch, mode: str) -> None:
        super().__init__(batch._epoch)
        self.batch, self.mode = batch, mode

    def __enter__(self) -> ForwardContext:
        epoch = self.batch._epoch
        if epoch.graph != "closed":
            raise RuntimeError(f"{self.mode} of batch {self.batch.batch} inside its {epoch.graph}: leave that first")
        if self.mode == "warm-up" and captures():
            raise RuntimeError(f"warm-up of batch {self.batch.batch} inside a capture: warm up every batch before")
        if self.mode == "capture" and self._given is not None:
            self.batch._forget()
        if self.mode != "refresh" and self._given is not None:
            self.batch._settle(refresh=self.mode == "capture")
        super().__enter__()
        epoch.graph = self.mode
        return self

    def __exit__(self, *error: Any) -> None:
        if self.epoch is not None:
            self.epoch.graph = "closed"
            if self.mode == "capture" and error[0] is not None:
                self.batch._forget()
        super().__exit__(*error)


def captures() -> bool:
    """Whether this thread is inside the capture() of a batch."""
    context = STATE.current
    return context is not None and context.epoch is not None and context.epoch.graph == "capture"


def in_graph(tensor: Tensor, name: str) -> bool:
    """Whether a call is inside a graph's context, whose buffers it must be on then.

    Raises RuntimeError for a tensor that is none of an open batch's `name`: a replay would not follow it.
    """
    context, found = STATE.current, False
    while context is not None:
        if isinstance(context, GraphContext):
            found = True
            if identity(getattr(context.batch, name)) == identity(tensor):
                return True
        context = context.outer
    if found:
        raise RuntimeError(f"{name} of {len(tensor)} inside the warm_up() or capture() of a graph is not its batch's "
                           f"{name}: pass that, and the step's own to prepare_replay()")
    return False


class GraphState:
    """The static buffers of one kind of layer, for batches of up to max_batch sequences. Made by AttentionImpl.

    Its graphs share the buffers, so they are replayed one after another, by one thread at a time.
    """

    def __init__(self, backend: type[AttentionBackend], device: str, page_size: int | None, max_batch: int,
                 max_tokens: int, max_pages: int, padding_page: int = 0, padding_pages: int = 1) -> None:
        level, name = backend.graph_level, backend.name
        for argument, value in (("max_batch", max_batch), ("max_tokens", max_tokens), ("max_pages", max_pages)):
            need(is_int(value, 1), argument, value, "a whole number >= 1")
        need(is_int(padding_page, 0), "padding_page", padding_page, "a whole number >= 0, a page of the cache")
        need(is_int(padding_pages, 1), "padding_pages", padding_pages, "a whole number >= 1")
        if level == "never":
            raise ValueError(f"graph_state is not supported ({name}: graph level never): nothing of its calls can be "
                             "captured")
        if level == "single-token decode" and max_tokens > max_batch:
            raise ValueError(f"max_tokens {max_tokens} with max_batch {max_batch} is not supported ({name}: graph "
                             f"level {level}, so max_tokens up to {max_batch})")
        if page_size is None:
            raise ValueError(f"graph_state needs a paged cache, and {name} was bound without a page size")
        if not backend.graph_skips_slots and max_tokens > padding_pages * page_size:
            raise ValueError(f"max_tokens {max_tokens} is not supported ({name}: up to {padding_pages * page_size}, "
                             f"what padding_pages {padding_pages} of {page_size} tokens can hold; each token that is "
                             "not written needs a slot of its own there)")
        torch = load_torch()
        self.backend, self.page_size, self.padding_page = backend, page_size, padding_page
        self.max_batch, self.max_tokens, self.max_pages = max_batch, max_tokens, max_pages
        self.batches: dict[tuple[int, int], GraphBatch] = {}
        self.current: GraphBatch | None = None  # whose lengths the buffers hold
        # Normal tensors even under inference_mode: they are written outside it too.
        with torch.inference_mode(False):
            self._cache_seqlens = torch.zeros(max_batch, dtype=torch.int32, device=device)
            self._page_table = torch.zeros(max_batch, max_pages, dtype=torch.int32, device=device)
            self._cu_seqlens_q = torch.zeros(max_batch + 1, dtype=torch.int32, device=device)
            self._slot_mapping = torch.zeros(max_tokens, dtype=torch.int64, device=device)
            self._skipped = torch.full_like(self._slot_mapping, -1)  # the slots of tokens that are not written
            if not backend.graph_skips_slots:
                torch.arange(padding_page * page_size, padding_page * page_size + max_tokens, out=self._skipped)
            self._count = torch.arange(max_batch + 1, dtype=torch.int32, device=device)

    def prepare_capture(self, batch: int, query_len: int = 1) -> GraphBatch:
        """The tensors to capture `batch` sequences with, of query_len query tokens each (at graph level "always": up
        to that many). Every row is a padding row until prepare_replay. Once for each pair.

        Raises ValueError for what is over the sizes or the backend's graph level, naming both sides.
        """
        level, most = self.backend.graph_level, self.backend.max_decode_query_len
        need(is_int(batch, 1) and batch <= self.max_batch, "batch", batch, f"1 to {self.max_batch}, max_batch")
        need(is_int(query_len, 1) and batch * query_len <= self.max_tokens, "query_len", query_len,
             f"at least 1, and {batch} sequences of it within max_tokens {self.max_tokens}")
        if query_len > 1 and (level == "single-token decode" or (most is not None and query_len > most)):
            raise ValueError(f"query_len {query_len} is not supported ({self.backend.name}: graph level {level}, "
                             f"max_decode_query_len {most})")
        need((batch, query_len) not in self.batches, "batch", batch, f"one that was not prepared with query_len "
             f"{query_len} before: the graph captured then still uses its plans; make another graph_state")
        prepared = GraphBatch(batch, query_len, self._cache_seqlens[:batch], self._page_table[:batch],
                              self._cu_seqlens_q[: batch + 1], self._slot_mapping[: batch * query_len], query_len,
                              self.max_pages * self.page_size, self)
        self.batches[batch, query_len] = prepared
        self._pad(prepared, 0, 0)
        return prepared

    def prepare_replay(self, batch: int, query_len: int = 1, *, cache_seqlens: Tensor, page_table: Tensor,
                       cu_seqlens_q: Tensor | None = None, slot_mapping: Tensor | None = None,
                       cache_seqlens_cpu: Sequence[int] | None = None) -> GraphBatch:
        """All host work of one replay: lengths and tables into the static buffers, padding rows, plans in place.

        batch, query_len: of the captured graph. cache_seqlens: int32 [n], n <= batch; page_table: int32 [n, pages];
        cu_seqlens_q: int32 [n + 1], at graph level "always" alone (uniform batches have it fixed); slot_mapping: int64
        [tokens], padded with -1. On the device or the CPU (pinned memory is read without waiting: leave it alone until
        the stream is past here). cache_seqlens_cpu: a host copy, for plans that need one. Without it, and with lengths
        on the device, they copy it: once for all states that are given this cache_seqlens inside one forward context.
        Raises ValueError naming the argument, before anything is written.
        """
        need((batch, query_len) in self.batches, "batch", f"{batch} with query_len {query_len}",
             "one of prepare_capture: " + (", ".join(f"{b} with {q}" for b, q in self.batches) or "none so far"))
        prepared = self.batches[batch, query_len]
        if captures() or prepared._epoch.graph != "closed":
            raise RuntimeError(f"prepare_replay() of batch {batch} inside a capture or its own warm-up: a graph would "
                               "keep its copies; call it between replays")
        int32(cache_seqlens, "cache_seqlens", 1)
        int32(page_table, "page_table", 2)
        n, pages, tokens = cache_seqlens.shape[0], page_table.shape[1], batch * query_len
        need(n <= batch, "cache_seqlens", f"{n} sequences", f"up to {batch}, the captured batch")
        need(page_table.shape[0] == n, "page_table", f"{page_table.shape[0]} sequences", f"{n}, as cache_seqlens")
        need(pages <= self.max_pages, "page_table", f"{pages} pages", f"up to max_pages {self.max_pages}")
        if cu_seqlens_q is not None:
            int32(cu_seqlens_q, "cu_seqlens_q", 1)
            need(self.backend.graph_level == "always", "cu_seqlens_q", "a tensor",
                 f"None ({self.backend.name}: graph level {self.backend.graph_level}, {query_len} tokens a sequence)")
            need(cu_seqlens_q.shape[0] == n + 1, "cu_seqlens_q", f"{cu_seqlens_q.shape[0]} values", f"{n + 1}")
        if slot_mapping is not None:
            need(str(getattr(slot_mapping, "dtype", None)) == "torch.int64" and slot_mapping.dim() == 1,
                 "slot_mapping", slot_mapping, "int64 [tokens]")
            need(slot_mapping.shape[0] <= tokens, "slot_mapping", f"{slot_mapping.shape[0]} tokens", f"up to {tokens}")
        padding = (self.backend.graph_padding_length,) * (batch - n)
        copies: dict[str, Any] = {}
        if cu_seqlens_q is None:
            copies["cu_seqlens_q"] = tuple(range(0, batch * query_len + 1, query_len))
        elif cu_seqlens_q.device.type == "cpu":
            ends = tuple(cu_seqlens_q.tolist())
            copies["cu_seqlens_q"] = ends + ends[-1:] * (batch - n)
        if cache_seqlens_cpu is None and cache_seqlens.device.type == "cpu":
            copies["cache_seqlens"] = (*cache_seqlens.tolist(), *padding)
        elif cache_seqlens_cpu is None and STATE.current is not None:
            epoch = owner(STATE.current, (identity(cache_seqlens),))
            if epoch.graph is None:
                copies["cache_seqlens"] = lambda: (*epoch.copy(cache_seqlens), *padding)
        if cache_seqlens_cpu is not None:
            need(len(cache_seqlens_cpu) == n, "cache_seqlens_cpu", f"{len(cache_seqlens_cpu)} values", f"{n}")
            odd = [each for each in cache_seqlens_cpu if not is_int(each, 0) or each > prepared.max_seqlen_k]
            need(not odd, "cache_seqlens_cpu", odd[0] if odd else None,
                 f"whole numbers up to {prepared.max_seqlen_k}, what page_table can hold")
            copies["cache_seqlens"] = (*cache_seqlens_cpu, *padding)
        if env.get("HAL_CHECK"):
            self._check(prepared, cache_seqlens, cu_seqlens_q, cache_seqlens_cpu)
        with load_torch().inference_mode():
            prepared.cache_seqlens[:n].copy_(cache_seqlens, non_blocking=True)
            prepared.page_table[:n, :pages].copy_(page_table, non_blocking=True)
            if slot_mapping is not None:
                slots = prepared.slot_mapping[: len(slot_mapping)]
                slots.copy_(slot_mapping, non_blocking=True)
                if not self.backend.graph_skips_slots:
                    slots.copy_(slots.where(slots >= 0, self._skipped[: len(slots)]))
            self._pad(prepared, n, 0 if slot_mapping is None else len(slot_mapping))
            if cu_seqlens_q is not None:
                prepared.cu_seqlens_q[: n + 1].copy_(cu_seqlens_q, non_blocking=True)
                prepared.cu_seqlens_q[n + 1 :].copy_(prepared.cu_seqlens_q[n])  # padding rows have no queries
        prepared._refresh(copies)
        return prepared

    def _pad(self, prepared: GraphBatch, rows: int, tokens: int) -> None:
        """Rows and tokens from here on are padding: the length that the backend declared, a page that is there."""
        self.current = prepared
        prepared.cache_seqlens[rows:].fill_(self.backend.graph_padding_length)
        prepared.page_table[rows:].fill_(self.padding_page)
        prepared.slot_mapping[tokens:].copy_(self._skipped[tokens : len(prepared.slot_mapping)])
        prepared.cu_seqlens_q.copy_(self._count[: prepared.batch + 1] * prepared.query_len)

    def _check(self, prepared: GraphBatch, cache_seqlens: Any, cu_seqlens_q: Any, copy: Any) -> None:
        """What only HAL_CHECK=1 looks at: the numbers themselves."""
        values = cache_seqlens.tolist()
        bad = [value for value in values if not 0 <= value <= prepared.max_seqlen_k]
        need(not bad, "cache_seqlens", bad[:1], f"lengths from 0 to {prepared.max_seqlen_k}, what page_table can hold")
        need(copy is None or list(copy) == values, "cache_seqlens_cpu", copy, f"{values}, what cache_seqlens holds")
        if cu_seqlens_q is not None:
            ends = cu_seqlens_q.tolist()
            steps = [end - start for start, end in pairwise(ends)]
            need(ends[0] == 0 and all(0 <= step <= prepared.query_len for step in steps), "cu_seqlens_q", ends,
                 f"0 first, then sequences of 0 to {prepared.query_len} tokens")
