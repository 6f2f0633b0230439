#!/usr/bin/env bash
# make_venv.sh PYTHON TORCH: makes .venv anew and notes in it what it was made with. Called by the Makefile.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=$1 torch=$2

refuse() {
    echo "make install: $1" >&2
    exit 1
}

case $torch in
    none | torch==[0-9]*) ;;
    *) refuse "TORCH=$torch is not understood: give torch==VERSION, or none for the torch that $python already has." ;;
esac
command -v "$python" >/dev/null || refuse "no $python here. Name another interpreter: make install PYTHON=python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || refuse "$python does not run."
case $version in
    2.* | 3.[0-9] | 3.10)
        refuse "$python is Python $version; the tests and \`hal generate\` need 3.11 or newer (the library itself runs
on 3.10: pip install .). Name another interpreter: make install PYTHON=python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    refuse "$python cannot make virtual environments (on Debian: apt install python3-venv)."

# A venv made from a venv sees the site-packages of neither but of the interpreter below both.
if [ "$torch" = none ] && "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; then
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || refuse "$python does not run."
fi

options=(--clear)
[ "$torch" = none ] && options+=(--system-site-packages)
if [ -e .venv ] && [ ! -e .venv/made-with ]; then
    refuse "there is a .venv that this Makefile did not make. Move it away first."
fi
[ -e .venv ] && echo "making .venv anew for $python $torch (it was made with $(cat .venv/made-with))"
"$python" -m venv "${options[@]}" .venv || {
    rm -rf .venv
    refuse "$python -m venv .venv failed."
}
if [ -n "${site:-}" ]; then
    own=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$site" >"$own/_of_python.pth" # after .venv's own packages, so those win
fi
echo "$python $torch" >.venv/made-with
