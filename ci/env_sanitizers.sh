#!/usr/bin/env bash
# The C++ kernels under the sanitizers. Ends PASSED, FAILED or NOT RUN: reason.
#
# - A driver without Python (tests/cpu_driver), of the generic and the x86-64-v3 variant, under valgrind.
# - The same built on pthreads, several threads, under ThreadSanitizer (which does not understand libgomp).
# - The library built with AddressSanitizer and UBSan in a copy of the package, through a part of the conformance grid:
#   the best variant this CPU has, and x86-64-v3.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=$PWD/.venv/bin/python
cxx=${CXX:-g++}
kernels=hal/kernels/cpu
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

not_run() {
    echo "NOT RUN: $1"
    exit 77
}
fail() {
    echo "$1" >&2
    echo FAILED
    exit 1
}

[ "$(uname -sm)" = "Linux x86_64" ] || not_run "the variants under test are for Linux on x86-64, this is $(uname -sm)"
command -v "$cxx" >/dev/null || not_run "no $cxx here"
command -v valgrind >/dev/null || not_run "no valgrind here"
[ -x "$python" ] || not_run "no .venv here: make install"
for kind in address,undefined thread; do
    echo 'int main() { return 0; }' >"$work/empty.cpp"
    "$cxx" "-fsanitize=$kind" "$work/empty.cpp" -o "$work/empty" 2>/dev/null || not_run "$cxx has no -fsanitize=$kind"
done

warnings=(-Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized)
v3=(-march=x86-64-v3)
v4=(-march=x86-64-v4 -mprefer-vector-width=512)
bf16=("${v4[@]}" -mavx512bf16)
amx=("${bf16[@]}" -mamx-tile -mamx-bf16)

compile() { # OUTPUT SOURCE FLAG...
    local output=$1 source=$2
    shift 2
    "$cxx" -std=c++17 -g "${warnings[@]}" "$@" -I "$kernels" -c "$source" -o "$output"
}

driver() { # NAME FLAG...: the driver with the variants generic and v3
    local name=$1
    shift
    mkdir "$work/$name"
    compile "$work/$name/generic.o" $kernels/kernel.cpp -DHAL_NS=hal_generic "$@" &&
        compile "$work/$name/v3.o" $kernels/kernel.cpp -DHAL_NS=hal_v3 "${v3[@]}" "$@" &&
        compile "$work/$name/plan.o" $kernels/plan.cpp -DHAL_HAVE_V3 "$@" &&
        compile "$work/$name/driver.o" tests/cpu_driver/driver.cpp "$@" &&
        "$cxx" "$@" -o "$work/$name/driver" "$work/$name"/*.o -lm -lpthread
}

has() { # VARIANT: the CPU runs it
    "$python" -c 'import sys; from hal.kernels.cpu import library; sys.exit(sys.argv[1] not in library.load().isas)' "$1"
}

driver plain -O1 & first=$!
driver thread -O1 -DHAL_PTHREADS -fsanitize=thread & second=$!
wait "$first" || fail "the driver does not build"
wait "$second" || fail "the driver does not build for ThreadSanitizer"
for isa in 0 1; do
    valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite "$work/plain/driver" "$isa" 1 ||
        fail "the driver, variant $isa, under valgrind"
    # setarch: ThreadSanitizer of older compilers does not know the address layout of newer kernels.
    setarch -R env TSAN_OPTIONS="halt_on_error=1 exitcode=9" "$work/thread/driver" "$isa" 4 ||
        fail "the driver, variant $isa, under ThreadSanitizer"
done

# The library in a copy of the package, with what Python needs around it.
cp -rL hal "$work/hal" || fail "no copy of the package"
rm -f "$work/hal/kernels/cpu/libhal_cpu.so"
flags=(-O1 -fPIC -fvisibility=hidden -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all)
objects=() macros=() best=
add() { # VARIANT NAMESPACE MACRO FLAG...
    local variant=$1 name=$2 macro=$3
    shift 3
    has "$variant" || return 0
    [ -z "$macro" ] || macros+=("-D$macro")
    objects+=("$work/$name.o")
    compile "$work/$name.o" $kernels/kernel.cpp "-DHAL_NS=hal_$name" "$@" "${flags[@]}" || fail "$variant does not build"
}
add generic generic "" -O0
add x86_64_v3 v3 HAL_HAVE_V3 "${v3[@]}"
for best in x86_64_v4_amx x86_64_v4_bf16 x86_64_v4 x86_64_v3 generic; do has "$best" && break; done
case $best in
    x86_64_v4_amx) add "$best" amx HAL_HAVE_AMX "${amx[@]}" ;;
    x86_64_v4_bf16) add "$best" bf16 HAL_HAVE_BF16 "${bf16[@]}" ;;
    x86_64_v4) add "$best" v4 HAL_HAVE_V4 "${v4[@]}" ;;
esac
compile "$work/plan.o" $kernels/plan.cpp "${macros[@]+"${macros[@]}"}" "${flags[@]}" || fail "plan.cpp does not build"
"$cxx" -shared "${flags[@]}" -o "$work/hal/kernels/cpu/libhal_cpu.so" "$work/plan.o" "${objects[@]}" || fail "no library"

cases=()
for case in "plain:" "lengths:" "pages: decode" "calls: extend" "calls: verify" "tree_mask:" "mm_prefix:" "sparse:" "fp8:" \
    "head_dim: decode" "empty rows:" "types:" "sinks:"; do
    cases+=(--case "$case")
done
verify() { # VARIANT
    cd "$work" && LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libubsan.so) $("$cxx" -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 HAL_CPU_ISA=$1 \
        "$python" -m hal verify --device cpu --backend cpu "${cases[@]}" >"$work/verify-$1.log" 2>&1
}
variants=() running=()
for isa in $(printf '%s\n' x86_64_v3 "$best" | sort -u); do
    has "$isa" || continue
    verify "$isa" &
    variants+=("$isa") running+=($!)
done
for i in "${!variants[@]}"; do
    isa=${variants[i]}
    wait "${running[i]}" && grep -H -E "passed, 0 failed" "$work/verify-$isa.log" ||
        { tail -n 60 "$work/verify-$isa.log" >&2 && fail "hal verify, variant $isa, with AddressSanitizer and UBSan"; }
done
echo PASSED
