# shellcheck shell=bash
# Sourced by the vendor scripts. They take the python that has the vendor's torch from $PYTHON.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}

not_run() {
    echo "NOT RUN: $1"
    exit 77
}

verify_platform() { # KIND DRIVER_COMMAND...: is the platform here, what would be chosen, are its results right
    local kind=$1 devices found
    shift
    command -v "$python" >/dev/null || not_run "no $python here (PYTHON names the interpreter)"
    if ! devices=$("$python" -m hal devices --json); then
        echo FAILED
        exit 1
    fi
    # "ARCH" when the platform was found, else "- REASON"
    found=$("$python" -c '
import json, sys
row = next(row for row in json.loads(sys.argv[1])["platforms"] if row["kind"] == sys.argv[2])
print(row["devices"][0]["arch"] if row["found"] else "- " + row["reason"])' "$devices" "$kind") || {
        echo FAILED
        exit 1
    }
    case $found in "- "*) not_run "${found#- }" ;; esac
    "$python" -m hal explain --device "$kind" || {
        echo FAILED
        exit 1
    }
    "$python" -c 'from hal.torch_import import load_torch; load_torch()' 2>/dev/null || not_run "$python has no torch that imports"

    local driver evidence
    driver=$("$@" 2>/dev/null) || driver="$1 is not here"
    evidence=docs/evidence/$kind-$found-$(date -u +%F).json
    if "$python" ci/verify_slice.py --device "$kind" --driver "$driver" --json "$evidence"; then
        echo "evidence: $evidence"
        echo PASSED
    else
        echo "record of the failure: $evidence"
        echo FAILED
        exit 1
    fi
}
