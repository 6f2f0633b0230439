"""What Prometheus sees of one server, each series once, with its help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, with the time it began
# How a request can end; the labels are there from the start, so that a rate has a beginning.
OUTCOMES = ("stop", "length", "refused", "queue_full", "client_gone", "timeout", "worker_died", "shutdown", "error")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_PER_TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class Metrics:
    """labels: one dict for each bound kernel, all with the same keys: hal_attention_info has them."""

    def __init__(self, labels: Sequence[Mapping[str, str]]) -> None:
        self.registry = CollectorRegistry()
        mine: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("hal_requests", "Requests by how they ended", ["endpoint", "outcome"], **mine)
        for endpoint in ("chat", "completions"):
            for outcome in OUTCOMES:
                self.requests.labels(endpoint, outcome)
        self.prompt_tokens = Counter("hal_prompt_tokens", "Tokens of prompts sent to the engine", **mine)
        self.generated_tokens = Counter("hal_generated_tokens", "Tokens that the engine generated", **mine)
        self.queued = Gauge("hal_requests_queued", "Requests that wait for the engine", **mine)
        self.running = Gauge("hal_requests_running", "Requests that the engine has", **mine)
        self.queue_seconds = Histogram("hal_queue_seconds", "Time a request waited for the engine", buckets=_SECONDS,
                                       **mine)
        self.first_token = Histogram("hal_time_to_first_token_seconds", "From the request to its first token",
                                     buckets=_SECONDS, **mine)
        self.per_token = Histogram("hal_time_per_output_token_seconds", "Between a request's tokens, its average",
                                   buckets=_PER_TOKEN, **mine)
        self.request_seconds = Histogram("hal_request_seconds", "From the request to its end", buckets=_SECONDS, **mine)
        self.cache_tokens = Gauge("hal_kv_cache_tokens", "Tokens that the KV cache can hold", **mine)
        self.cache_used = Gauge("hal_kv_cache_used_ratio", "Part of the KV cache's pages in use, 0 to 1", **mine)
        self.worker_up = Gauge("hal_worker_up", "1 while a worker serves", **mine)
        self.worker_restarts = Counter("hal_worker_restarts", "Workers that were replaced", **mine)
        if labels:
            info = Gauge("hal_attention_info", "The attention kernels that are bound, as labels; always 1",
                         sorted(labels[0]), **mine)
            for row in labels:
                info.labels(**row).set(1)

    def text(self) -> bytes:
        """The series in Prometheus' text format (CONTENT_TYPE)."""
        return generate_latest(self.registry)
