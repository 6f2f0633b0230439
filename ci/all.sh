#!/usr/bin/env bash
# All of CI, in order: install, lint, tests, then one script per heavy environment. Each step's full log is ci/logs/NAME.log.
#
# An env_*.sh ends with one line on stdout, PASSED, FAILED or NOT RUN: reason, and the exit code that goes with it:
# 0, 1 or 77. Anything else, or the two at odds, counts as FAILED.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p ci/logs
rm -f ci/logs/*.log
table=() failed=0

record() { # NAME SECONDS OUTCOME
    table+=("$(printf '%-16s %5d s  %s' "$1" "$2" "$3")")
    case $3 in FAILED*) failed=$((failed + 1)) ;; esac
}

step() { # NAME COMMAND...: output is shown as it comes
    local name=$1 start=$SECONDS outcome=PASSED
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "ci/logs/$name.log" || outcome=FAILED
    record "$name" $((SECONDS - start)) "$outcome"
}

environment() { # SCRIPT: output goes to the log; its end is shown if it failed
    local name log last code outcome start=$SECONDS
    name=$(basename "$1" .sh) log=ci/logs/$(basename "$1" .sh).log
    printf '\n== %s\n' "$name"
    # shellcheck disable=SC2094  # both only append
    last=$("$1" 2>>"$log" | tee -a "$log" | tail -n 1)
    code=$?
    case "$code $last" in
        "0 PASSED" | "1 FAILED" | "77 NOT RUN: "?*) outcome=$last ;;
        *) outcome="FAILED: exit code $code, last line '$last'" ;;
    esac
    case $outcome in FAILED*) tail -n 40 "$log" ;; esac
    echo "$outcome"
    record "$name" $((SECONDS - start)) "$outcome"
}

step install make --no-print-directory install
step lint make --no-print-directory lint
step test make --no-print-directory test
for script in ci/env_*.sh; do
    environment "$script"
done

printf '\n'
printf '%s\n' "${table[@]}"
if [ "$failed" -gt 0 ]; then
    echo "$failed of ${#table[@]} steps FAILED; the full logs are in ci/logs/"
    exit 1
fi
