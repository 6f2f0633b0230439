"""Tokens to text as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HELD = 32  # tokens that are held back for what may follow; more are no character, however they go on
_LONGEST = 4  # bytes of a character, and so tokens
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what decoders give for bytes that are no character, or not yet


class Detokenizer:
    """Feed tokens; the pieces of text put together are what decode gives for all the tokens at once.

    decode: token ids -> text. A character can be spread over several tokens, and a tokenizer may spell one token
    differently after another, so each piece is the difference between two decodings that begin at a token before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.tokens: list[int] = []
        self.begin = self.read = 0  # tokens[begin:read] are shown already, and give the next ones their context

    def feed(self, tokens: Sequence[int]) -> str:
        self.tokens += tokens
        return self._piece(complete=False)

    def flush(self) -> str:
        """What was held back, when no more tokens come: bytes that are no character stay replacement characters."""
        return self._piece(complete=True)

    def _piece(self, complete: bool) -> str:
        if self.read == len(self.tokens):
            return ""
        before = self.decode(self.tokens[self.begin:self.read])
        now = self.decode(self.tokens[self.begin:])
        if now.endswith(_UNKNOWN) and not complete:
            return self._surely(before, now) if len(self.tokens) - self.read > _HELD else ""
        self.begin, self.read = self.read, len(self.tokens)
        return now[len(before):]

    def _surely(self, before: str, now: str) -> str:
        """What is held without its last few tokens, which a character may begin with: cut where none is cut through."""
        latest = len(self.tokens) - _LONGEST
        for end in range(latest, latest - _LONGEST, -1):
            text = self.decode(self.tokens[self.begin:end])
            if text + self.decode(self.tokens[end:]) == now:
                break
        self.begin, self.read = self.read, end
        return text[len(before):]
