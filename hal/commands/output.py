"""What a command writes at its end must be writable before it begins."""

from __future__ import annotations

import os
from pathlib import Path


def check_target(flag: str, file: str) -> None:
    """Raises ValueError where the file that `flag` names can't be written: a folder, one that is not there ..."""
    path = Path(file)
    folder = path.absolute().parent
    if path.is_dir():
        raise ValueError(f"{flag} {file}: is a folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{flag} {file}: the folder {folder} is not there or can't be written to")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{flag} {file}: is there and can't be written to")
