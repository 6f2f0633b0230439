"""install(): puts the stand-ins where imports find them."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hal import env
from hal.compat import transformers_checks
from hal.compat.finder import Finder
from hal.compat.settings import Settings, current, use
from hal.compat.stand_ins import STAND_INS, StandIn

if TYPE_CHECKING:
    from hal.host import Host
    from hal.platform import Platform

logger = logging.getLogger("hal")


@dataclass(frozen=True)
class Plan:
    """What install() would do on a platform. answered: the stand-ins. real: the packages that serve it themselves.
    shadowed: of the answered ones, those that are installed but serve other devices, or do not import."""

    platform: Platform
    answered: tuple[StandIn, ...]
    real: tuple[StandIn, ...]
    shadowed: tuple[StandIn, ...]

    def sentences(self) -> str:
        """For people: who answers, and where."""
        said = [f"{_list(self.answered)} answered by HAL on {self.platform}"] if self.answered else []
        if self.shadowed:
            said.append(f"not by the installed {_list(s.module for s in self.shadowed)}, which can't serve it")
        if self.real:
            said.append(f"{_list(s.module for s in self.real)} by the installed package, which is left alone")
        return "; ".join(said)


def plan(versions: Iterable[str] | None = None, device: str | Platform = "auto", host: Host | None = None) -> Plan:
    """Decide who answers, without doing it.

    versions: "2", "3" or both; None: those whose real package does not serve the device. device: as for
    hal.get_attention_impl. Raises ValueError for an unknown version, and where the real package serves the device:
    for a version asked for by name, or for every one.
    """
    from hal.platform import Platform, detect

    wanted = list(STAND_INS) if versions is None else list(versions)
    for version in wanted:
        if version not in STAND_INS:
            raise ValueError(f"flash_attn version {version!r} is not answered for (versions: {', '.join(STAND_INS)})")
    if not wanted:
        raise ValueError(f"versions is empty, expected some of {', '.join(STAND_INS)}")
    platform = device if isinstance(device, Platform) else detect(device)
    chosen = [STAND_INS[version] for version in dict.fromkeys(wanted)]
    real = tuple(s for s in chosen if s.served_by_real_one(platform, host))
    if real and (versions is not None or len(real) == len(chosen)):
        raise ValueError(f"{platform} is served by the installed {_list(s.module for s in real)}, and HAL does not "
                         "stand in the way: run without hal.compat")
    answered = tuple(s for s in chosen if s not in real)
    return Plan(platform, answered, real, tuple(s for s in answered if s.real_one_installed(host)))


def install(versions: Iterable[str] | None = None, device: str | Platform = "auto", backend: str = "auto") -> Plan:
    """From now on `import flash_attn` and `import flash_attn_interface` in this process give HAL's functions.

    versions: "2" (flash_attn), "3" (flash_attn_interface) or both; None: both, but for one whose real package serves
    the device. device, backend: as for hal.get_attention_impl; strict: tensors elsewhere are refused. "auto" serves
    tensors wherever they are. Calling it again with the same arguments does nothing; other Python processes that this
    one starts are not affected (`hal run` reaches those).

    Raises ValueError for unknown names and where the real package serves the device, RuntimeError where flash_attn or
    transformers was imported before, PlatformNotFoundError and NoBackendError as hal.get_attention_impl.
    """
    from hal.compat.binding import usual
    from hal.decision import NoBackendError

    decided = plan(versions, device)
    settings = Settings(device if isinstance(device, str) else _text(device), backend)
    decision = usual(decided.platform, backend)
    if not decision.complete:
        raise NoBackendError({"all": decision}, backend)
    here = installed()
    if here is not None:
        if here.stand_ins == decided.answered and current() == settings:
            return decided
        raise RuntimeError(f"hal.compat is installed already, for {_list(here.stand_ins)} with "
                           f"{current()}: call hal.compat.uninstall() first")
    put(decided.answered, settings)
    logger.info("%s", decided.sentences())
    return decided


def put(stand_ins: Iterable[StandIn], settings: Settings | None) -> None:
    """The finder into sys.meta_path, for stand-ins that were decided on. settings: None for the environment's."""
    stand_ins = tuple(stand_ins)
    for stand_in in stand_ins:
        for top in stand_in.tops:
            if top in sys.modules:
                raise RuntimeError(f"{top} was imported before, from {getattr(sys.modules[top], '__file__', None)}: "
                                   "call hal.compat.install() first thing, or use `hal run`")
    transformers_checks.refuse_if_imported()
    use(settings)
    sys.meta_path.insert(0, Finder(stand_ins, transformers_checks.patches([s.number for s in stand_ins])))
    importlib.invalidate_caches()


def put_from_environment() -> None:
    """What `hal run` asks every Python process below it to do: HAL_FLASH_ATTN names the versions."""
    versions = env.get("HAL_FLASH_ATTN")
    if versions and installed() is None:
        put([STAND_INS[version] for version in versions], None)


def installed() -> Finder | None:
    """The finder of this process, None before install()."""
    return next((finder for finder in sys.meta_path if isinstance(finder, Finder)), None)


def uninstall() -> None:
    """Take the stand-ins out again. What was imported from them keeps working; transformers' checks answer for
    themselves again. install() after that is refused where transformers was imported."""
    finder = installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition(".")[0] in finder.tops]:
        del sys.modules[name]
    use(None)


def _text(platform: Platform) -> str:
    """What detect() takes for a device of this machine; torch says "cuda" for ROCm too."""
    return platform.kind if platform.index is None else f"{platform.kind}:{platform.index}"


def _list(items: Iterable[object]) -> str:
    return " and ".join(map(str, items))
