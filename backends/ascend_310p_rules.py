"""What 310P's ops of ATB take, a row for each rule: those of ascend_rules.py that name 310P, and the rest.

ATB: Ascend ATB ddcc8b62, by file. DOC: Ascend op-plugin 517f2e7d, op_plugin/python/atb/_atb_api_docs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hal.backends import ascend_rules
from hal.backends.ascend_rules import Rule

_310P = "310P: "
RULES = {what.removeprefix(_310P): rule for what, rule in ascend_rules.RULES.items() if what.startswith(_310P)}
RULES |= {rule.what: rule for rule in (
    Rule("num_heads", 256, "ATB, paged_attention_tiling.cpp: parallel headnum"),
    Rule("num_heads * head_dim", 16384, "ATB, paged_attention_tiling.cpp: parallel block and embedding"),
    Rule("sequences", 2000, "ATB, paged_attention_tiling.cpp and flash_attention_nz_tiling.cpp; DOC: batch"),
    Rule("sequences of one query", 2048, "DOC, _npu_paged_attention_v2: batch"),
    Rule("multiple of packed tokens", 16, "DOC, _npu_flash_attention_v2: nTokens is rounded up to 16"),
    Rule("columns of a tile", 16, "ATB, paged_attention_operation.cpp, KVCacheDimCheck310P: last dimension"),
)}


def reasons(name: str, seen: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each rule that a value breaks, with both sides. name: the backend's. seen: rule -> value."""
    for what, value in seen.items():
        if RULES[what].breaks(value):
            yield f"{what} {value} is not supported ({name}: {RULES[what]})"


def check(name: str, what: str, value: int) -> None:
    """Raise ValueError where a value breaks a rule."""
    for reason in reasons(name, {what: value}):
        raise ValueError(reason)
