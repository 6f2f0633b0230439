"""What HAL stands in for: the packages, the release whose signatures and meaning each has, and what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal.host import Host
    from hal.platform import Platform


@dataclass(frozen=True)
class StandIn:
    """One package that code imports and HAL answers for.

    module: what code imports. version: the release that is answered for. modules: name -> the module of HAL that holds
    its functions. backend: HAL's backend over the real package, which declares the devices that one serves.
    also_serves: kinds of platform beside that backend's. probe: the module that must import for the real one to serve.
    """

    number: str
    module: str
    distribution: str
    version: str
    modules: Mapping[str, str]
    backend: str
    probe: str
    also_serves: tuple[str, ...] = ()

    def served_by_real_one(self, platform: Platform, host: Host | None = None) -> bool:
        """Whether the real package is installed here, imports, and serves the platform: then HAL stays out of the way.

        It is imported in a child process, and only where it could serve.
        """
        from hal import registry
        from hal.host import Host

        host = host or Host()
        archs = registry.get(self.backend).platforms.get(platform.kind)
        serves = platform.kind in self.also_serves or (archs is not None and (not archs or platform.arch in archs))
        return serves and host.find_module(self.probe) is not None and host.import_error(self.probe) is None

    @property
    def tops(self) -> tuple[str, ...]:
        """Its top-level names, as its distribution lists them."""
        return tuple(name for name in self.modules if "." not in name)

    def real_one_installed(self, host: Host | None = None) -> bool:
        from hal.host import Host

        return (host or Host()).find_module(self.module) is not None

    def __str__(self) -> str:
        return f"{self.module} {self.version}"


STAND_INS: Mapping[str, StandIn] = {
    "2": StandIn("2", "flash_attn", "flash_attn", "2.8.3.post1", {
        "flash_attn": "hal.compat.flash_attn",
        "flash_attn.flash_attn_interface": "hal.compat.flash_attn.flash_attn_interface",
        "flash_attn.bert_padding": "hal.compat.flash_attn.bert_padding",
        "flash_attn.layers": "hal.compat.flash_attn.layers",
        "flash_attn.layers.rotary": "hal.compat.flash_attn.layers.rotary",
    }, "flash_attn_2", "flash_attn.flash_attn_interface", also_serves=("rocm",)),
    "3": StandIn("3", "flash_attn_interface", "flash_attn_3", "3.0.0",
                 {"flash_attn_interface": "hal.compat.flash_attn_interface", "flash_attn_3": "hal.compat.flash_attn_3"},
                 "flash_attn_3", "flash_attn_interface"),
}

# Beginning of a name that is not answered for -> why.
LEFT_OUT: Mapping[str, str] = {
    "flash_attn.cute": "FlashAttention 4 is not answered for (versions: 2, 3)",
    "flash_attn.losses": "it is for training, and HAL is for inference",
    "flash_attn.models": "whole models are not part of attention: use transformers' with flash_attention_2",
    "flash_attn.modules": "these modules are built from CUDA extensions; call the attention functions",
    "flash_attn.ops": "these are CUDA and Triton kernels beside attention, which HAL has none of",
    "flash_attn.layers": "of flash_attn.layers only rotary is answered for",
    "flash_attn_3": "HAL has no CUDA extension; the functions are in flash_attn_interface",
}


def left_out(name: str) -> str:
    """Why the module or object `name` of a package that HAL stands in for is not there, with what is."""
    stand_in = next(s for s in STAND_INS.values() if name.partition(".")[0] in s.tops)
    why = next((f": {LEFT_OUT[start]}" for start in sorted(LEFT_OUT, key=len, reverse=True)
                if name == start or name.startswith(f"{start}.")), "")
    return (f"HAL answers for {stand_in} here (hal.compat), and {name} is not among what it offers{why}. It has the "
            f"inference functions of {', '.join(stand_in.modules)} (docs/drop-in.md)")
