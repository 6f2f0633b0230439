# shellcheck shell=bash
# Sourced by the vendor scripts. They take the python that has the vendor's torch from $PYTHON.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-python3}
mode=quick
limit=0
backends=()

usage() {
    cat <<TEXT
$0 [--quick | --full] [--backend NAME]... [--time-limit SECONDS]

Verifies the backends of this machine's device and leaves a record in docs/evidence/.
--quick        each feature at least once, in a quick-*.json that proves no level
--full         the whole grid, in a verify-*.json that proves the level "hardware" (docs/evidence/README.md)
--backend      only this one; repeatable
--time-limit   end as FAILED after so many seconds (default: none)

Without either, --$mode. The last line is PASSED, FAILED or NOT RUN: reason; exit codes 0, 1, 77, and 2 for a wrong
argument.
TEXT
}

wrong() {
    echo "$0: $1" >&2
    usage >&2
    exit 2
}

read_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --quick | --full) mode=${1#--} ;;
            --backend)
                [ -n "${2-}" ] || wrong "--backend needs a name"
                backends+=("$2")
                shift
                ;;
            --time-limit)
                [[ ${2-} =~ ^[1-9][0-9]*$ ]] || wrong "--time-limit '${2-}' is no whole number of seconds above 0"
                limit=$2
                shift
                ;;
            -h | --help) usage && exit 0 ;;
            *) wrong "'$1' is not understood" ;;
        esac
        shift
    done
}

not_run() {
    echo "NOT RUN: $1"
    exit 77
}

failed() {
    [ $# -eq 0 ] || echo "$1"
    echo FAILED
    exit 1
}

limited() { # COMMAND...: within what is left of the time limit
    if [ "$limit" -eq 0 ]; then
        "$@"
        return
    fi
    local left=$((limit - SECONDS)) code
    [ "$left" -gt 0 ] || failed "the time limit of $limit s was reached before: $*"
    timeout --kill-after=10 "$left" "$@"
    code=$?
    case $code in 124 | 137) failed "the time limit of $limit s was reached in: $*" ;; esac
    return $code
}

find_platform() { # KIND: is the platform here, and what would be chosen? Sets `arch`.
    local kind=$1 devices
    command -v "$python" >/dev/null || not_run "no $python here (PYTHON names the interpreter)"
    devices=$("$python" -m hal devices --json) || failed
    # "ARCH" when the platform was found, else "- REASON"
    arch=$("$python" -c '
import json, sys
row = next(row for row in json.loads(sys.argv[1])["platforms"] if row["kind"] == sys.argv[2])
print(row["devices"][0]["arch"] if row["found"] else "- " + row["reason"])' "$devices" "$kind") || failed
    case $arch in "- "*) not_run "${arch#- }" ;; esac
    "$python" -m hal explain --device "$kind" || failed
    "$python" -c 'from hal.torch_import import load_torch; load_torch()' 2>/dev/null || not_run "$python has no torch that imports"
}

record_name() { # WORD KIND: the file of a record made now; a run of some backends has them in its name
    local some
    some=$(printf '%s-' "${backends[@]+"${backends[@]}"}")
    echo "docs/evidence/$1-$2-$arch-${some#-}$(date -u +%F).json"
}

verify() { # KIND DRIVER_COMMAND...: are the results right? Leaves the record
    local kind=$1 driver evidence word=quick options=()
    shift
    [ "$mode" = full ] && word=verify
    driver=$("$@" 2>/dev/null) || driver="$1 is not here"
    evidence=$(record_name "$word" "$kind")
    for name in "${backends[@]+"${backends[@]}"}"; do options+=(--backend "$name"); done
    if ! limited "$python" -m hal verify --device "$kind" "--$mode" --driver "$driver" --json "$evidence" \
        "${options[@]+"${options[@]}"}"; then
        failed "hal verify failed; its record, if it got that far: $evidence"
    fi
    echo "evidence: $evidence"
}

verify_platform() { # KIND DRIVER_COMMAND...
    find_platform "$1"
    verify "$@"
    echo PASSED
}
