"""Plain-text tables that fit a terminal. The core has no dependencies, so this is all there is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100, indent: int = 0) -> str:
    """Columns as wide as their longest cell; the last one takes what is left of `width` and wraps."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header) - 1)]
    left = indent + sum(w + 2 for w in widths)
    last = max(20, width - left)
    lines = []
    for row in cells:
        head = " " * indent + "".join(cell.ljust(w + 2) for cell, w in zip(row, widths))
        wrapped = textwrap.wrap(row[-1], last, break_on_hyphens=False) or [""]
        lines.append((head + wrapped[0]).rstrip())
        lines += [" " * left + more for more in wrapped[1:]]
    return "\n".join(lines)
