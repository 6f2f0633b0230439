"""transformers beside the stand-ins: its availability checks know FlashAttention on a few devices alone.

transformers 5.23 finds the stand-ins by their metadata, and then asks for CUDA (or MLU, MUSA) before it believes that
they can run: `is_flash_attn_2_available` and `_3_`, and the table of devices that a model's weights may be on. On other
devices that is corrected here: those two functions and one row of that table, as transformers is imported, and said on
stderr. Nothing else of transformers changes, and torch.cuda.is_available() stays as it is.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial, wraps
from types import ModuleType
from typing import Any

from hal.compat.finder import Patch
from hal.compat.settings import forget

logger = logging.getLogger("hal")
SERIES = "5.23."  # the releases whose source this was read from and is tested with
CHECKS, DEVICES = "transformers.utils.import_utils", "transformers.modeling_flash_attention_utils"
# Devices on which transformers has FlashAttention of its own, and never imports the package.
OF_ITS_OWN = ("npu", "xpu")


def patches(numbers: Sequence[str]) -> Mapping[str, Patch]:
    """Module of transformers -> what is done to it after it was executed, for these versions of flash_attn."""
    return {CHECKS: lambda module: _answer_checks(module, numbers),
            DEVICES: lambda module: _add_device(module, numbers)}


def refuse_if_imported() -> None:
    """transformers' modules took each other's functions by name when they were imported: then it is too late."""
    if CHECKS in sys.modules:
        raise RuntimeError("transformers was imported before: call hal.compat.install() first thing, or use `hal run`")


def _device() -> str:
    """The type of the device that the stand-ins are for, as torch calls it."""
    from hal.compat.settings import current
    from hal.platform import detect

    return detect(current().device).torch_device.partition(":")[0]


def _left_alone(device: str) -> bool:
    from transformers import __version__

    if not __version__.startswith(SERIES):
        logger.warning("flash_attn: the checks of transformers %s are not known to HAL (known: %s*) and left alone: it "
                       "may say that flash_attn can't be used on %s", __version__, SERIES, device)
        return True
    return device in OF_ITS_OWN


def _answer_checks(module: Any, numbers: Sequence[str]) -> None:
    device = _device()
    if _left_alone(device):
        return
    changed = []
    for number in numbers:
        name = f"is_flash_attn_{number}_available"
        original = getattr(module, name)
        if original():
            continue
        setattr(module, name, _available(number, original))
        changed.append(name)
    if changed:
        logger.warning("flash_attn: transformers' %s answer True on %s, where HAL serves", " and ".join(changed),
                       device)


def _available(number: str, original: Any) -> Any:
    @lru_cache  # as the original, whose cache some code clears
    @wraps(original)
    def available(kernels_fallback_ok: bool = False) -> bool:
        return _hal_serves(number) or bool(original(kernels_fallback_ok))

    forget.append(available.cache_clear)
    return available


def _add_device(module: ModuleType, numbers: Sequence[str]) -> None:
    device = _device()
    if _left_alone(device):
        return
    for number in numbers:
        row = module.FLASH_ATTENTION_COMPATIBILITY_MATRIX[int(number)]
        if all(name != device for _, name in row["supported_devices"]):
            row["supported_devices"] = (*row["supported_devices"], (partial(_hal_serves, number), device))


def _hal_serves(number: str) -> bool:
    """Until uninstall(): transformers' modules keep these functions."""
    from hal.compat.installing import installed

    finder = installed()
    return finder is not None and any(stand_in.number == number for stand_in in finder.stand_ins)
