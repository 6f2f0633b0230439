#!/usr/bin/env bash
# What is in the wheel, and does it work installed, without torch and away from the checkout?
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

fail() {
    echo "$1" >&2
    echo FAILED
    exit 1
}

# A clean copy: a stale build/ in the checkout would end up in the wheel.
mkdir "$work/source" "$work/elsewhere"
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
    done | tar -cf - --null -T - | tar -xf - -C "$work/source" || fail "no copy of the source"

"${PYTHON:-python3}" -m venv "$work/venv" || fail "no virtual environment"
python=$work/venv/bin/python
"$python" -m pip wheel -q --no-deps -w "$work/wheel" "$work/source" || fail "pip wheel failed"
rm -rf "$work"/source/build "$work"/source/*.egg-info

# sdist, then a wheel from it: the two wheels must hold the same files.
"$python" -m venv "$work/build" || fail "no virtual environment"
"$work/build/bin/python" -m pip install -q -c constraints.txt setuptools || fail "no setuptools"
(cd "$work/source" && "$work/build/bin/python" -c '
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))' "$work/sdist") >"$work/sdist.log" || fail "the sdist does not build"
"$python" -m pip wheel -q --no-deps -w "$work/wheel-from-sdist" "$work"/sdist/*.tar.gz || fail "no wheel from the sdist"
"$python" "$root/ci/check_wheel.py" "$root" "$work"/wheel/*.whl "$work"/wheel-from-sdist/*.whl || fail "wrong contents"

# Installed, from elsewhere.
cd "$work/elsewhere" || fail "no folder"
"$python" -m pip list --format=freeze | sort >"$work/before"
"$python" -m pip install -q "$work"/wheel/*.whl || fail "the wheel does not install"
"$python" -m pip list --format=freeze | sort >"$work/after"
[ "$(comm -13 "$work/before" "$work/after" | sed 's/==.*//')" = attention-hal ] ||
    fail "installing brought more than attention-hal: $(comm -13 "$work/before" "$work/after")"
"$python" - <<'PY' || fail "something else came into site-packages"
import pathlib, re, sysconfig
allowed = re.compile(r"(hal|attention_hal-.*\.dist-info|(pip|setuptools)(-.*)?|_distutils_hack|pkg_resources|distutils-precedence\.pth|__pycache__)")
strange = [p.name for p in pathlib.Path(sysconfig.get_path("purelib")).iterdir() if not allowed.fullmatch(p.name)]
assert not strange, strange
PY
hal=$work/venv/bin/hal
"$hal" devices --json | "$python" -m json.tool || fail "hal devices --json failed"
"$hal" explain --device musa:mp31 --json | "$python" -m json.tool || fail "hal explain --json failed"
"$python" -c 'import hal.backends, hal.platforms' || fail "hal.backends and hal.platforms do not import"
echo PASSED
