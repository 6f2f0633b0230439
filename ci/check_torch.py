"""check_torch.py TORCH: fails unless this environment holds exactly one torch, and the one asked for."""

import os
import sys
from importlib.metadata import distributions

asked = sys.argv[1]
found = sorted({(d.version, str(d.locate_file(""))) for d in distributions(name="torch")})
if len(found) != 1:
    places = "".join(f"\n  torch {version} in {place}" for version, place in found)
    hint = "" if found else " TORCH=none takes the torch of PYTHON's own site-packages, and there is none."
    sys.exit(f"make install: expected exactly one torch, found {len(found)}.{hint}{places}")

# A vendor package may be installed whose driver is missing; torch must be importable all the same.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch  # noqa: E402

wanted = asked.partition("==")[2]
if wanted and wanted not in (torch.__version__, torch.__version__.partition("+")[0]):
    sys.exit(f"make install: expected torch {wanted}, found {torch.__version__} in {found[0][1]}")
print(f"torch {torch.__version__}")
