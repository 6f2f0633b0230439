"""Fields of the OpenAI API that this server does not serve: what each may say all the same, as data.

A field with a value that asks for nothing is accepted, since many clients always send it; any other value is refused by
name, and so is a field that is in no table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hal.serving.errors import ApiError, shown

_LABELS = "a label of the request, which changes nothing in the answer"
# Accepted with any value -> why that drops nothing.
HARMLESS = {"user": _LABELS, "metadata": _LABELS, "safety_identifier": _LABELS, "prompt_cache_key": _LABELS}

_ONE = (1,)
_NO = (False,)
_NOTHING: tuple[Any, ...] = ([], {})
# Field -> the values that ask for nothing (null does everywhere).
BOTH: Mapping[str, tuple[Any, ...]] = {
    "n": _ONE, "logit_bias": _NOTHING, "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "min_p": (0,), "store": _NO, "service_tier": ("auto", "default"),
}
CHAT: Mapping[str, tuple[Any, ...]] = {
    **BOTH, "logprobs": _NO, "top_logprobs": (0,), "tools": _NOTHING, "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False), "functions": _NOTHING, "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "verbosity": (), "web_search_options": (), "chat_template_kwargs": _NOTHING,
}
# 0 asks for the log probabilities of the chosen tokens, so it is not among them.
COMPLETION: Mapping[str, tuple[Any, ...]] = {
    **BOTH, "logprobs": (), "echo": _NO, "best_of": _ONE, "suffix": ("",),
}


def refuse(body: Mapping[str, Any], served: Iterable[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The fields of a request that are served. Raises ApiError for a field that is not known or asks for more."""
    served = set(served)
    for name, value in body.items():
        if name in served or name in HARMLESS:
            continue
        if name not in neutral:
            raise ApiError(400, f"unknown field {shown(name)}: {shown(value)} (served: {', '.join(sorted(served))})",
                           name[:80], "unknown_parameter")
        # True equals 1 and False 0, so the types are compared too; whole numbers may stand for decimal ones.
        if value is not None and not any(value == v and isinstance(value, bool) == isinstance(v, bool)
                                         for v in neutral[name]):
            allowed = ", ".join(repr(v) for v in (*neutral[name], None)).replace("None", "null")
            raise ApiError(400, f"{name} {shown(value)} is not supported by this server (accepted: {allowed})", name,
                           "unsupported_parameter")
    return {name: value for name, value in body.items() if name in served}
