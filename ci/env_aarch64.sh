#!/usr/bin/env bash
# The generic variant of the C++ kernels for aarch64: cross-compiled by Zig's clang in an environment of its own
# (.venv-aarch64), the library whole and the driver of tests/cpu_driver run on an emulated CPU. Ends PASSED, FAILED or
# NOT RUN: reason. No proof of speed, nor of threads.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv-aarch64/bin/python
kernels=hal/kernels/cpu
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

fail() {
    echo "$1" >&2
    echo FAILED
    exit 1
}

if [ "$(uname -s)" != Linux ]; then
    echo "NOT RUN: tried on Linux alone, this is $(uname -s)"
    exit 77
fi
if [ ! -e .venv-aarch64/installed ] || [ constraints.txt -nt .venv-aarch64/installed ]; then
    { "${PYTHON:-python3}" -m venv --clear .venv-aarch64 &&
        "$python" -m pip install -q -c constraints.txt ziglang unicorn && touch .venv-aarch64/installed; } ||
        fail "the environment can't be made"
fi

compile() { # TARGET OUTPUT FLAG...
    local target=$1 output=$2
    shift 2
    "$python" -m ziglang c++ -target "$target" -std=c++17 -O2 -Wall -Wextra -Wno-psabi \
        -Wno-bitwise-conditional-parentheses -I "$kernels" -o "$output" "$@"
}

static=aarch64-linux-musl shared=aarch64-linux-gnu
for source in "kernel -DHAL_NS=hal_generic" plan; do
    set -- $source
    compile $shared "$work/shared-$1.o" -fPIC -fvisibility=hidden -c "$kernels/$1.cpp" "${@:2}" &&
        compile $static "$work/static-$1.o" -DHAL_PTHREADS -c "$kernels/$1.cpp" "${@:2}" ||
        fail "$1.cpp does not compile"
done
compile $shared "$work/libhal_cpu.so" -shared "$work"/shared-*.o || fail "the library does not link"
"$python" -m ziglang cc -target $static -O1 -c tests/cpu_driver/heap.c -o "$work/static-heap.o" &&
    compile $static "$work/static-driver.o" -DHAL_PTHREADS -c tests/cpu_driver/driver.cpp &&
    compile $static "$work/driver" -static "$work"/static-*.o || fail "the driver does not build"
"$python" tests/cpu_driver/run_aarch64.py "$work/driver" 0 1 || fail "the driver"
echo PASSED
