"""The metadata of a stand-in, as importlib.metadata reads an installed distribution's."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from hal.compat.stand_ins import StandIn


class Distribution(importlib.metadata.Distribution):
    """The metadata of a stand-in."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in

    def read_text(self, filename: str) -> str | None:
        s = self.stand_in
        return {"METADATA": f"Metadata-Version: 2.1\nName: {s.distribution}\nVersion: {s.version}\nSummary: HAL's "
                            f"stand-in for {s.distribution} (attention-hal, hal.compat)\n",
                "top_level.txt": "".join(f"{top}\n" for top in s.tops), "INSTALLER": "hal.compat\n"}.get(filename)

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path
