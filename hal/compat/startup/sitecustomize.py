"""Runs first in every Python process below `hal run`: HAL answers for flash_attn there (HAL_FLASH_ATTN).

HAL's part comes before any other sitecustomize, and a failure of it ends the process: site would print one line and run
the program without what `hal run` announced. Interpreters of other environments are left as they are.
"""

import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))


def _answer() -> None:
    """Raises what keeps HAL from answering."""
    environment = os.environ.get("HAL_FLASH_ATTN_PYTHON")
    if not environment:
        raise ValueError("HAL_FLASH_ATTN is set and HAL_FLASH_ATTN_PYTHON is not: `hal run` sets both")
    if environment != f"{sys.implementation.cache_tag} {os.path.realpath(sys.prefix)}":
        return  # as in hal.commands.run; HAL, and the torch that it was bound to, are another environment's
    if "hal" not in sys.modules:  # this file's own, which may be a checkout that is not on sys.path
        import importlib.util

        init = os.path.join(os.path.dirname(os.path.dirname(_HERE)), "__init__.py")
        spec = importlib.util.spec_from_file_location("hal", init)
        assert spec is not None, init
        assert spec.loader is not None
        sys.modules["hal"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    from hal.compat.installing import put_from_environment

    put_from_environment()


def _site_customize_of_others() -> None:
    """This file hides another sitecustomize: run it too, from where it would have been found.

    What it raises is site's to report, as without this file. This folder is not on sys.path meanwhile: one that looks
    for the next in the same way would come here again.
    """
    import importlib.machinery
    import importlib.util

    own = [(i, folder) for i, folder in enumerate(sys.path) if os.path.realpath(folder or ".") == _HERE]
    for _, folder in own:
        sys.path.remove(folder)
    try:
        spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        for i, folder in own:
            sys.path.insert(i, folder)


# One that took its list of folders before may come again all the same.
_running = sys.__dict__.setdefault("_hal_startup", set())
if _HERE not in _running:
    _running.add(_HERE)
    if os.environ.get("HAL_FLASH_ATTN"):
        try:
            _answer()
        except Exception as error:  # noqa: BLE001 - whatever it is, the program must not run without
            sys.stderr.write(f"hal run: HAL can't answer for flash_attn in this process: {type(error).__name__}: "
                             f"{error}\n")
            sys.stderr.flush()
            os._exit(2)  # site reports an Exception and goes on, and of SystemExit it makes another code
    _site_customize_of_others()
