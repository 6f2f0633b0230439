"""A drop-in flash_attn: code that imports FlashAttention 2 or 3 gets HAL's kernels, on any device.

Opt-in, and for inference only.

    hal run script.py arguments...                     # nothing in the script changes

    import hal.compat                                  # or from Python, before anything imports flash_attn
    hal.compat.install(device="cpu")

    from hal.compat.flash_attn import flash_attn_func  # or by name, without install()

`flash_attn` (version 2) and `flash_attn_interface` (version 3) then have the real functions' signatures and meaning,
and importlib.metadata and find_spec answer for them. docs/drop-in.md: what is served, what is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.compat.installing import install, uninstall

__all__ = ["install", "uninstall"]


def __getattr__(name: str) -> Any:
    """On first use: every Python process below `hal run` imports this package, and most need no more of it."""
    if name not in __all__:
        raise AttributeError(f"module 'hal.compat' has no attribute {name!r}; it has: {', '.join(__all__)}")
    from hal.compat import installing

    return getattr(installing, name)
