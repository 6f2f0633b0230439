"""Stop strings, found wherever the tokens cut the text."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text piece by piece; what may be the beginning of a stop string is held back until that is known.

    The stop string that is complete first wins (of those that end together the longest), so the result does not depend
    on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """(what may be shown, whether a stop string was found). After True nothing more may be fed."""
        self.held += text
        found = [(at + len(stop), at) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            return self._take(min(found)[1]), True
        return self._take(len(self.held) - max((self._begun(stop) for stop in self.stops), default=0)), False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        return self._take(len(self.held))

    def _begun(self, stop: str) -> int:
        """How many characters at the end of what is held are the beginning of this stop string."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)

    def _take(self, count: int) -> str:
        taken, self.held = self.held[:count], self.held[count:]
        return taken
