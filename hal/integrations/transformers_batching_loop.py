"""The steps of a batched model: transformers' scheduler says who runs, HAL's attention runs them, events say what came.

Scheduling, page allocation, shared prefixes and what is put back when the cache is full are transformers'
(FIFOScheduler, PagedAttentionCache, OffloadingManager). Mended here: every request is sampled by its own settings; a
step that fails is an error of the requests in it and not the end of the loop; and the scheduler, which takes no new
requests after it put some back until another ends, takes them again when those that ran were cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from hal.integrations.transformers_batching_attention import Layer, opened
from hal.integrations.transformers_batching_cache import Cache
from hal.integrations.transformers_batching_events import Event
from hal.integrations.transformers_batching_sampling import Chooser, Sampling, choose
from hal.integrations.transformers_batching_step import Row, Step

logger = logging.getLogger("hal")
# The scheduler's limit on the keys that one step copies; nothing is copied here.
_NO_LIMIT = 1 << 60


@dataclass
class Live:
    """A request that has not ended: its prompt, its settings, and how far it is."""

    prompt_ids: list[int]
    sampling: Sampling
    stops: tuple[int, ...]
    chooser: Chooser
    generated: int = 0


class Loop:
    """All requests of one model, one step at a time. Of one thread; nothing here waits but for the device."""

    def __init__(self, model: Any, layers: Sequence[Layer], cache: Cache, max_requests: int,
                 deliver: Callable[[list[Event]], None]) -> None:
        self.model, self.layers, self.cache = model, layers, cache
        self.deliver = deliver
        self.scheduler = FIFOScheduler(cache, safety_margin=None, max_requests_per_batch=max_requests)
        self.offloading = OffloadingManager(cache, self.scheduler, 0.0, 1.0, None, DistributedHelper(None, None))
        self.live: dict[str, Live] = {}
        self.counts = dict.fromkeys(("steps", "prompt_tokens", "generated_tokens", "finished", "cancelled", "failed",
                                     "put_back"), 0)
        self.keeps_last = bool(model._supports_logits_to_keep())

    def add(self, request_id: str, prompt_ids: list[int], sampling: Sampling, stops: tuple[int, ...]) -> None:
        """Queue a request that was checked."""
        self.live[request_id] = Live(prompt_ids, sampling, stops, Chooser(sampling))
        self.scheduler.add_waiting_request(RequestState(
            request_id=request_id, initial_tokens=prompt_ids, max_new_tokens=sampling.max_tokens,
            eos_token_id=list(stops)))

    def cancel(self, request_id: str) -> None:
        """End a request and free its pages; one that has ended already is left alone."""
        if request_id in self.live:
            self.scheduler.set_request_cancellation(request_id)
            self.scheduler.clear_cancelled_requests()
            self._ended([request_id], "cancelled", None)

    def fail(self, message: str, waiting: bool) -> None:
        """End every request that runs, and also those that wait if asked, with an error."""
        failed = list(self.scheduler.active_requests)
        for request_id in failed:
            self.scheduler.finish_request(request_id)
        if waiting:
            failed = list(self.live)
            self.scheduler.waiting_requests.clear()
            self.scheduler.waiting_requests_order.clear()
        self._ended(failed, "error", message)

    def _ended(self, requests: Sequence[str], reason: str, message: str | None) -> None:
        for request_id in requests:
            del self.live[request_id]
        self.counts["cancelled" if reason == "cancelled" else "failed"] += len(requests)
        self._take_new_ones()
        self.deliver([Event(request_id, [], reason, message) for request_id in requests])

    def _take_new_ones(self) -> None:
        if not self.scheduler.active_requests:
            self.scheduler.block_new_requests = False

    @property
    def idle(self) -> bool:
        return not self.live

    def step(self) -> None:
        """One forward of whoever is scheduled. An exception ends those in flight, with an event each."""
        batch: list[FutureRequestState] = []
        try:
            batch = self._scheduled()
            if batch:
                self._run(batch)
        except Exception as error:
            logger.exception("a step of %d requests failed", len(self.scheduler.active_requests))
            self.fail(f"{type(error).__name__}: {error}", waiting=not batch)

    def _scheduled(self) -> list[FutureRequestState]:
        """Who runs now. Raises RuntimeError where nobody can, and nothing can be put back to make room."""
        while True:
            batch, *_ = self.scheduler.schedule_batch(self.cache.max_batch_tokens, _NO_LIMIT)
            # None: the cache is full. Some requests lose their pages, and start again from prompt and answer so far.
            if batch is None:
                before = len(self.scheduler.waiting_requests)
                if not self.offloading.offload_requests():
                    raise RuntimeError("the cache is full, and no request can be put back to make room for another")
                self.counts["put_back"] += len(self.scheduler.waiting_requests) - before
                continue
            if batch and self.scheduler.starved_requests:
                before = len(self.scheduler.waiting_requests)
                self.offloading.offload_requests()
                self.counts["put_back"] += len(self.scheduler.waiting_requests) - before
            if not batch:
                raise RuntimeError(f"the scheduler chose none of {len(self.scheduler.active_requests)} running and "
                                   f"{len(self.scheduler.waiting_requests)} waiting requests")
            return list(batch)

    def _run(self, batch: Sequence[FutureRequestState]) -> None:
        rows = [Row(each.state.request_id, each.state.position_offset, each.state.tokens_to_process) for each in batch]
        step = Step(rows, self.cache)
        # Logits of the last rows alone; where that is every row, without a copy.
        keep = {"logits_to_keep": step.last} if self.keeps_last and not step.one_each else {}
        with opened(step, self.layers):
            result = self.model(input_ids=step.input_ids, position_ids=step.position_ids, use_cache=False, **keep)
        logits = result.logits[0] if keep or step.one_each else result.logits[0, step.last]
        for each in batch:
            each.state.position_offset += each.query_length
        answering = [index for index, each in enumerate(batch) if each.has_new_token]
        if len(answering) < len(batch):
            logits = logits[torch.tensor(answering, dtype=torch.int64, device=logits.device)]
        tokens = choose(logits.float(), [self.live[batch[i].state.request_id].chooser for i in answering])
        self.counts["steps"] += 1
        new = dict(zip(answering, tokens))
        self.deliver([event for index, each in enumerate(batch)
                      for event in self._updated(each, index in new, new.get(index))])

    def _updated(self, each: FutureRequestState, answers: bool, token: int | None) -> list[Event]:
        """What one sequence's step means for its request."""
        state, request_id = each.state, each.state.request_id
        if not answers:
            self.counts["prompt_tokens"] += each.query_length
            self.cache.mark_complete_blocks(state, each.complete_blocks)
            return []
        live = self.live[request_id]
        if not live.generated:
            self.counts["prompt_tokens"] += each.query_length
        if token is None:
            self.scheduler.finish_request(request_id)
            del self.live[request_id]
            self.counts["failed"] += 1
            self._take_new_ones()
            return [Event(request_id, [], "error", "the model gave logits that are not finite")]
        state.status = RequestStatus.DECODING
        ended = state.update_and_check_completion(token, None)
        self.cache.mark_complete_blocks(state, each.complete_blocks)
        live.generated += 1
        self.counts["generated_tokens"] += 1
        if not ended:
            return [Event(request_id, [token], None, None)]
        self.scheduler.finish_request(request_id)
        self.scheduler.block_new_requests = False
        del self.live[request_id]
        self.counts["finished"] += 1
        return [Event(request_id, [token], "stop" if token in live.stops else "length", None)]

    def numbers(self) -> dict[str, Any]:
        """What stats() tells, as of now."""
        return {"waiting": len(self.scheduler.waiting_requests), "running": len(self.scheduler.active_requests),
                "cache_used": self.cache.used(), **self.counts}
