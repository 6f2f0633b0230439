"""Many requests of one transformers model at once, through HAL: continuous batching over a paged cache.

    from hal.integrations.transformers_batching import BatchedModel, Sampling

    with BatchedModel("path/to/model") as model:
        model.submit("a", model.tokenizer("The capital of France is")["input_ids"], Sampling(max_tokens=20))
        model.submit("b", [1, 2, 3], Sampling(temperature=0.8, top_p=0.9, seed=7))
        for event in model.events():              # from any one thread; ends when the model is closed
            print(event.request_id, event.tokens, event.finish)

Prompts and answers of all requests share each forward; a layer's attention is one call. See docs/transformers.md.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hal.attention import AttentionImpl, get_attention_impls
from hal.cli_args import AttentionArgs
from hal.config import LayerKind
from hal.decision import Decision
from hal.integrations import transformers as hosted
from hal.models import kinds_from_model
from hal.platform import Platform, detect, platform_of

hosted.version_check()  # before anything of transformers' inside is imported

from hal.integrations import transformers_batching_attention as paged  # noqa: E402
from hal.integrations import transformers_batching_limits as limits  # noqa: E402
from hal.integrations.transformers_batching_events import Event  # noqa: E402
from hal.integrations.transformers_batching_sampling import Sampling  # noqa: E402

if TYPE_CHECKING:
    from hal.integrations.transformers_batching_loop import Loop

__all__ = ["BatchedModel", "Event", "Sampling"]
logger = logging.getLogger("hal")
_CLOSED = "the model was closed before this request ended"


class BatchedModel:
    """A model that answers many requests at once. Thread-safe; one thread of its own runs the steps.

    model: a folder with a transformers model, or a loaded transformers model, which is used as it is, on its device
    and in its dtype, and gets its attention back on close(). attention: device and backends (hal.from_cli_args); of a
    loaded model the device is the model's. dtype: "auto" (the model's), "float16", "bfloat16" or "float32"; only with
    a folder.

    page_size is attention.page_size or what the backends prefer. num_pages: pages of the cache, each page_size tokens
    of every layer; by default what cache_bytes holds, and that is by default 80 % of the free memory of an
    accelerator, on a CPU an eighth of the machine's memory and at most 4 GiB, and never more than max_requests of the
    model's longest requests need. max_batch_tokens: most new tokens of one step, prompts come in chunks of it at most.
    max_requests: most requests that run at once; more wait. share_prefixes: requests that begin alike share pages
    (models whose layers are all of full attention).

    decisions: kind of layer -> hal.Decision, for display. kinds: the model's kinds of layer. tokenizer: the folder's,
    None for a loaded model. platform, num_pages, page_size, max_length: tokens that one request may have, prompt and
    answer together.

    Raises before weights are loaded: ImportError without the supported transformers, PlatformNotFoundError,
    NoBackendError, and ValueError, with the way out, for a model that can't be batched (MLA, sparse or chunked
    attention, layers that are no attention) and for arguments that are wrong; MemoryError for a num_pages or a
    cache_bytes that is more than the memory that is free. Then MemoryError where the cache is not given beside the
    weights, and ValueError where the model's layers ask for another attention than its config says (two forwards are
    run to see).
    """

    def __init__(self, model: Any, attention: AttentionArgs | None = None, *, dtype: str = "auto",
                 num_pages: int | None = None, cache_bytes: int | None = None, max_batch_tokens: int = 2048,
                 max_requests: int = 64, share_prefixes: bool = True) -> None:
        args = AttentionArgs() if attention is None else attention
        for name, value in (("num_pages", num_pages), ("cache_bytes", cache_bytes),
                            ("max_batch_tokens", max_batch_tokens), ("max_requests", max_requests)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if num_pages is not None and cache_bytes is not None:
            raise ValueError(f"num_pages {num_pages} and cache_bytes {cache_bytes} say one thing: give one of them")
        self.max_batch_tokens, self.max_requests = max_batch_tokens, min(max_requests, max_batch_tokens)
        folder = model if isinstance(model, (str, Path)) else None
        if folder is None and dtype != "auto":
            raise ValueError(f"dtype {dtype!r} is not supported for a loaded model: it keeps its own")
        self.kinds = batchable_kinds(model if folder is not None else model.config, args,
                                     dtype if folder else str(model.dtype))
        self.platform = detect(args.device) if folder is not None else platform_of(model.device)
        impls = impls_for(self.kinds, args, self.platform)
        self.decisions: dict[str, Decision] = {name: impl.decision for name, impl in impls.items()}
        self.page_size = int(next(iter(self.decisions.values())).page_size or 0)
        if cache_bytes is not None:
            limits.must_fit(f"cache_bytes {cache_bytes}", cache_bytes, self.platform)
        if num_pages is not None:
            limits.must_fit(f"num_pages {num_pages}", num_pages * limits.page_bytes(self.kinds, self.page_size),
                            self.platform)
        self.tokenizer: Any = None
        self._before: str | None = None
        self._model = self._load(Path(folder)) if folder is not None else self._take(model)
        try:
            self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
            self._ends = _end_tokens(self._model)
            self._start(impls, num_pages, cache_bytes, share_prefixes)
        except BaseException:
            self._give_back()
            raise

    # ---- for callers, from any thread -------------------------------------------------------------------------

    def submit(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling | None = None) -> None:
        """Queue a request; its events follow. Returns at once.

        request_id: not that of a request that has not ended. Raises ValueError, naming the argument and the values, for
        an id in use, an empty prompt, tokens outside the vocabulary, or a prompt and max_tokens that together are more
        than max_length; RuntimeError once the model is closed.
        """
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(request_id, str) or not request_id:
            raise ValueError(f"request_id must be a text that is not empty, got {request_id!r}")
        if not isinstance(sampling, Sampling):
            raise ValueError(f"sampling must be a Sampling, got {sampling!r}")
        prompt = list(prompt_ids)
        if not prompt:
            raise ValueError("prompt_ids is empty: give at least one token")
        for token in (*prompt, *(sampling.stop_token_ids or ())):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocabulary:
                raise ValueError(f"prompt_ids and stop_token_ids must be whole numbers from 0 to "
                                 f"{self._vocabulary - 1}, got {token!r}")
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise ValueError(f"prompt_ids has {len(prompt)} tokens, with max_tokens {sampling.max_tokens} that is "
                             f"{len(prompt) + sampling.max_tokens}, but a request may have {self.max_length} "
                             f"({self._limit}): shorten the prompt, or lower max_tokens")
        stops = self._ends if sampling.stop_token_ids is None else sampling.stop_token_ids
        with self._lock:
            self._must_run()
            if request_id in self._known:
                raise ValueError(f"request_id {request_id!r} is in use by a request that has not ended")
            self._known.add(request_id)
            self._commands.append(("add", request_id, prompt, sampling, stops))
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """End a request before its time: its pages are free before the next step, its last event says "cancelled".

        Does nothing for a request that has ended or was never submitted.
        """
        with self._lock:
            if request_id in self._known and not self._closing:
                self._commands.append(("cancel", request_id))
        self._wake.set()

    def events(self) -> Iterator[Event]:
        """Every event of every request, as it comes. For one reader; ends after close(), when all were given out.

        Every submitted request gets exactly one event with a finish. A reader that stops may call again, and goes on
        with the next event.
        """
        while True:
            event = self._events.get()
            if event is None:
                self._events.put(None)  # for whoever asks again
                return
            yield event

    def stats(self) -> dict[str, Any]:
        """Numbers as of the last step.

        waiting, running: requests. cache_used: part of the cache that requests hold, 0 to 1; pages_used: the same in
        pages; num_pages, page_size. steps, prompt_tokens, generated_tokens, finished, cancelled, failed: since start.
        put_back: times that a request lost its pages to others and began again from what it had.
        """
        numbers = self._numbers
        with self._lock:
            queued = sum(command[0] == "add" for command in self._commands)
        return {**numbers, "waiting": numbers["waiting"] + queued, "num_pages": self.num_pages,
                "page_size": self.page_size, "pages_used": round(numbers["cache_used"] * self.num_pages)}

    def close(self) -> None:
        """End the thread after its step. Requests that have not ended get an error event; then events() ends."""
        with self._lock:
            self._closing = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> BatchedModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- inside -------------------------------------------------------------------------------------------------

    def _load(self, folder: Path) -> Any:
        import torch

        transformers: Any = importlib.import_module("transformers")
        paged.register()
        logger.info("loading the weights from %s", folder)
        try:
            # False, not left out: else transformers asks on a terminal whether to run code from the folder.
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                                        trust_remote_code=False)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, self.kinds[0].config.dtype), attn_implementation=paged.NAME,
                local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"the model in {folder} can't be loaded: {error}") from error
        return model.to(self.platform.torch_device).eval()

    def _take(self, model: Any) -> Any:
        paged.register()
        self._before = model.config._attn_implementation
        model.set_attn_implementation(paged.NAME)
        return model.eval()

    def _give_back(self) -> None:
        """A loaded model's own attention."""
        if self._before is not None:
            # Not set_attn_implementation, which looks for a package where a name has "flash" in it.
            self._model.config._attn_implementation = self._before

    def _start(self, impls: Mapping[str, Any], num_pages: int | None, cache_bytes: int | None, share: bool) -> None:
        import torch

        from hal.integrations.transformers_batching_cache import Cache
        from hal.integrations.transformers_batching_loop import Loop

        dtype, page = self._model.dtype, limits.page_bytes(self.kinds, self.page_size)
        asked = f"num_pages {num_pages}" if cache_bytes is None else f"cache_bytes {cache_bytes}"
        longest, why = limits.longest(self._model.config.get_text_config())
        if num_pages is None:
            budget = limits.budget(self.platform) if cache_bytes is None else cache_bytes
            num_pages = budget // page
            if cache_bytes is None:
                num_pages = min(num_pages, self.max_requests * -(-longest // self.page_size))
                asked = f"cache_bytes {num_pages * page}, the default,"
            if num_pages < 1:
                raise ValueError(f"cache_bytes {budget} holds no page: one of {self.page_size} tokens has {page} bytes")
        try:
            cache = Cache(self.kinds, self._model.device, dtype, num_pages, self.page_size, self.max_batch_tokens,
                          share)
        except (MemoryError, OSError, RuntimeError) as error:  # torch and the system say it in either way
            raise MemoryError(f"{asked} ({num_pages * page / 2**30:.1f} GiB) was not given by {self._model.device}: "
                              f"{type(error).__name__}: {error}; {limits.LESS}") from error
        self.num_pages = cache.num_sectors * cache.bytes_per_sector // page
        room = cache.longest()
        self.max_length = min(longest, room)
        self._limit = why if longest <= room else f"the cache has {self.num_pages} pages of {self.page_size} tokens"
        if self.max_length < 2:
            raise ValueError(f"a request may have {self.max_length} tokens ({self._limit}): too few for a prompt and "
                             "an answer; give more num_pages or cache_bytes")
        layers = paged.make_layers(self.kinds, dict(impls), cache)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._loop = Loop(self._model, layers, cache, self.max_requests, self._deliver)
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._known: set[str] = set()
        self._commands: list[tuple[Any, ...]] = []
        self._closing = False
        with torch.inference_mode():
            _try(self._loop, layers, self.max_length)
        self._numbers = self._loop.numbers()
        self._thread = threading.Thread(target=self._run, name="hal-batching", daemon=True)
        self._thread.start()

    def _deliver(self, events: list[Event]) -> None:
        self._numbers = self._loop.numbers()  # first: whoever reads an event finds them
        ended = [event.request_id for event in events if event.finish]
        if ended:
            with self._lock:
                self._known.difference_update(ended)
        for event in events:  # one at a time: whoever stops reading leaves the rest to the next call of events()
            self._events.put(event)

    def _must_run(self) -> None:
        if self._closing or not self._thread.is_alive():
            raise RuntimeError("the model is closed: no more requests are taken")

    def _run(self) -> None:
        import torch

        message = _CLOSED
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._take_commands()
                    if self._loop.idle:
                        self._wake.wait()
                        self._wake.clear()
                    else:
                        self._loop.step()
        except BaseException as error:  # whatever it was, nobody may wait for ever
            message = f"the thread of the steps ended: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                self._closing = True
            try:
                self._take_commands()
                self._loop.fail(message, waiting=True)
                self._give_back()
            finally:
                self._events.put(None)

    def _take_commands(self) -> None:
        with self._lock:
            commands, self._commands = self._commands, []
        for name, *arguments in commands:
            getattr(self._loop, name)(*arguments)


def batchable_kinds(model: Any, args: AttentionArgs, dtype: str) -> list[LayerKind]:
    """The kinds of layer of a model that can be batched, with the page size and dtype asked for ("auto": its own).

    Raises ValueError, with the way out, for any other model.
    """
    try:
        kinds = kinds_from_model(model)
    except ValueError as error:
        raise ValueError(f"{error}. {paged.WAY_OUT}") from None
    paged.refuse_kinds(kinds)
    if dtype != "auto":
        kinds = [LayerKind(k.kind, k.layers, k.config.replace(dtype=dtype)) for k in kinds]
    kinds = args.apply(kinds)
    for kind in kinds:
        if kind.config.stored_dtype != kind.config.dtype:
            raise ValueError(f"kv_cache_dtype {kind.config.kv_cache_dtype} is not supported for batching (supported: "
                             f"auto, the model's {kind.config.dtype})")
    return kinds


def impls_for(kinds: Sequence[LayerKind], args: AttentionArgs, platform: Platform) -> dict[str, AttentionImpl]:
    """The attention of each kind of layer. Raises NoBackendError, and ValueError where a backend can't batch."""
    impls = get_attention_impls(kinds, platform, choices={kind.kind: args.choice(kind.kind) for kind in kinds})
    paged.refuse_impls(impls)
    return impls


def _end_tokens(model: Any) -> tuple[int, ...]:
    ends = model.generation_config.eos_token_id
    return tuple(ends) if isinstance(ends, (list, tuple)) else () if ends is None else (ends,)


def _try(loop: Loop, layers: Sequence[paged.Layer], max_length: int) -> None:
    """Run a prompt and an answer, to see that every layer's attention is HAL's and asks for what was announced."""
    failed: list[str] = []
    deliver, loop.deliver = loop.deliver, lambda events: failed.extend(e.error for e in events if e.error)
    loop.add("the model's first", [0] * min(2, max_length - 1), Sampling(max_tokens=min(2, max_length - 1)), ())
    while not loop.idle:
        loop.step()
    if failed:
        raise ValueError(f"the model can't be batched: {failed[0]}")
    unseen = [layer.number for layer in layers if not layer.calls]
    if unseen:
        raise ValueError(f"layers {unseen} ran without HAL: {type(loop.model).__name__} does not use transformers' "
                         "attention interface")
    loop.cache.reset()
    loop.counts = dict.fromkeys(loop.counts, 0)
    loop.deliver = deliver
