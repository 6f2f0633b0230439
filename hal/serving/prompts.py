"""Prompts to tokens and tokens to text, with the model's own tokenizer and chat template."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal.serving.errors import ApiError, shown
from hal.serving.protocol import Message

logger = logging.getLogger("hal.serving")


class Prompts:
    """One model's tokenizer. Raises ValueError for a folder without one. Its methods may be called from one other
    thread than the event loop's at a time."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers reads it when it is imported
        transformers: Any = importlib.import_module("transformers")
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                                        trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f"the tokenizer in {folder} can't be loaded: {error}") from error
        self.vocabulary = len(self.tokenizer)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The messages through the chat template, ending where the assistant speaks. Raises ApiError (400)."""
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ApiError(400, "this model has no chat template: use /v1/completions", code="no_chat_template")
        try:
            text = self.tokenizer.apply_chat_template([message.model_dump() for message in messages], tokenize=False,
                                                      add_generation_prompt=True)
        except TemplateError as error:  # most raise_exception(): roles that must alternate ...
            raise ApiError(400, f"the model's chat template refuses these messages: {error}", "messages",
                           "chat_template_failed") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            logger.warning("the chat template failed", exc_info=True)
            raise ApiError(400, "the model's chat template failed on these messages (the server's log says where)",
                           "messages", "chat_template_failed") from None
        return self._tokens(text, special=False)  # the template has written the special tokens

    def completion(self, prompt: str | Sequence[int]) -> list[int]:
        """Text as the tokenizer begins it, or token ids as they are. Raises ApiError (400)."""
        if isinstance(prompt, str):
            return self._tokens(prompt, special=True)
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise ApiError(400, f"prompt has the token id {shown(wrong)} (expected 0 to {self.vocabulary - 1})",
                           "prompt")
        return list(prompt)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the special ones."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _tokens(self, text: str, special: bool) -> list[int]:
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=special, verbose=False)]
