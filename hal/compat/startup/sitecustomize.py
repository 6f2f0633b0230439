"""Runs first in every Python process below `hal run`: HAL answers for flash_attn there (HAL_FLASH_ATTN)."""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _site_customize_of_others() -> None:
    """This file hides another sitecustomize: run it too, from where it would have been found."""
    import importlib.machinery
    import importlib.util

    rest = [folder for folder in sys.path if os.path.abspath(folder or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _answer() -> None:
    try:
        import hal  # noqa: F401
    except ModuleNotFoundError:  # a checkout that is not installed, run as `python -m hal`
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(_HERE))))
    from hal.compat.installing import put_from_environment

    put_from_environment()


_site_customize_of_others()
if os.environ.get("HAL_FLASH_ATTN"):
    _answer()
