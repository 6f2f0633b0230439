"""First come, first served: transformers' scheduler, but a request that does not fit is not overtaken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler


class InOrder(FIFOScheduler):
    """transformers' own skips a waiting request that does not fit and takes later ones, for as long as they come."""

    def _process_candidates(self, candidates: Iterable[RequestState], *budgets: Any) -> Any:
        return super()._process_candidates(cast(Any, self._in_order(candidates)), *budgets)

    def _in_order(self, candidates: Iterable[RequestState]) -> Iterator[RequestState]:
        """Candidates until one of those that wait finds no room, or one that runs has found none.

        Each is asked for once the one before it was scheduled, which takes it from those that wait, or was not.
        """
        for state in candidates:
            waits = state.request_id in self.waiting_requests
            if waits and self.starved_requests:
                return
            yield state
            if waits and state.request_id in self.waiting_requests:
                # Pages that are only kept for reuse are worth less than a request's turn.
                if not self.cache.evict_cached_blocks():
                    return
                yield state
                if state.request_id in self.waiting_requests:
                    return
