"""The embedded engine: transformers' continuous batching on HAL, as the worker wants it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hal.cli_args import AttentionArgs
from hal.serving.worker import Event


def preload(folder: str, **_: Any) -> None:
    """Import what a load imports, the model's own code included. No device is touched, no weights are read."""
    from hal.integrations import transformers as hosted

    hosted.version_check()
    for name in ("torch", "hal.integrations.transformers_batching", "hal.integrations.transformers_batching_loop"):
        importlib.import_module(name)
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _ = transformers.AutoModelForCausalLM._model_mapping[type(config)]


def load(folder: str, device: str, dtype: str, page_size: int, backends: Mapping[str, Mapping[str, str]],
         max_requests: int, max_batch_tokens: int, cache_bytes: int | None, max_length: int | None) -> Engine:
    """backends: kind of layer -> {"prefill_backend", "decode_backend"}, as they were announced. max_length: tokens of
    one request, None for as many as the model and the cache take. Raises as BatchedModel, and ValueError for a
    max_length that is more."""
    from hal.integrations.transformers_batching import BatchedModel

    model = BatchedModel(Path(folder), AttentionArgs(device, page_size, kinds=backends), dtype=dtype,
                         cache_bytes=cache_bytes, max_batch_tokens=max_batch_tokens, max_requests=max_requests)
    if max_length is not None and max_length > model.max_length:
        raise ValueError(f"--max-model-len {max_length} is more than the {model.max_length} tokens that the model and "
                         "the cache take: lower it, or give more --kv-cache-memory")
    return Engine(model, max_length or model.max_length)


class Engine:
    """hal.serving.worker.Engine over a BatchedModel."""

    def __init__(self, model: Any, max_length: int) -> None:
        self.model, self.max_length = model, max_length

    def submit(self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        from hal.integrations.transformers_batching import Sampling

        self.model.submit(request_id, prompt_ids, Sampling(**sampling))

    def cancel(self, request_id: str) -> None:
        self.model.cancel(request_id)

    def events(self) -> Iterator[Event]:
        for event in self.model.events():
            failed = event.finish == "error"
            yield event.request_id, event.tokens, None if failed else event.finish, event.error if failed else None

    def stats(self) -> dict[str, Any]:
        stats = self.model.stats()
        return {"max_length": self.max_length, "cache_tokens": self.model.num_pages * self.model.page_size,
                **{name: stats[name] for name in ("cache_used", "steps")}}
