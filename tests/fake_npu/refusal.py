"""How an operator refuses: a code of CANN's, a text, and where the vendor says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

PARAM_INVALID = 161002  # ACLNN_ERR_PARAM_INVALID: the operator's own parameter check
TILING = 561002  # ACLNN_ERR_INNER_TILING_ERROR: the check of shapes when the kernel is laid out


class Refused(Exception):
    """An operator's answer to arguments it does not take. code: aclnnStatus."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Rule:
    """A documented condition. broken: a text with the value seen where it is not met, None where it is.

    source: the vendor's page, or the public thread with the error. The documents name few codes; where a thread shows
    one it is used, else PARAM_INVALID for what is missing or of a wrong dtype, and TILING for sizes.
    """

    code: int
    broken: Callable[[SimpleNamespace], str | None]
    source: str


def check(rules: Iterable[Rule], call: SimpleNamespace) -> None:
    """Raises Refused for the first rule that is broken."""
    for rule in rules:
        text = rule.broken(call)
        if text:
            raise Refused(rule.code, text)
