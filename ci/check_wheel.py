"""check_wheel.py ROOT WHEEL OTHER: WHEEL holds every module of the checkout ROOT and nothing beside hal/.

OTHER, the wheel made from the sdist, holds the same. The kernels' library is in it where a compiler is here.
"""

import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

root = Path(sys.argv[1])
files, other = (set(ZipFile(wheel).namelist()) for wheel in sys.argv[2:4])
print(*sorted(files), sep="\n")

strange = [f for f in files if not f.startswith("hal/") and not f.split("/")[0].endswith(".dist-info")]
# rglob does not follow hal/backends and hal/platforms, which are links, so they are listed by name.
sources = [p for folder in ("hal", "hal/backends", "hal/platforms") for p in (root / folder).rglob("*")]
wanted = {p.relative_to(root).as_posix() for p in sources if p.suffix == ".py" or p.name == "py.typed"}
folder = "hal/kernels/cpu"
wanted.add(f"{folder}/{'libhal_cpu.so' if any(map(shutil.which, ('c++', 'g++', 'clang++'))) else 'not_built.txt'}")
missing = wanted - files

for problem, names in (
    ("not hal's own", strange),
    ("missing from the wheel", missing),
    ("not both in the wheel and in the wheel made from the sdist", files ^ other),
):
    if names:
        print(f"{problem}: {', '.join(sorted(names))}", file=sys.stderr)
sys.exit(bool(strange or missing or files ^ other))
