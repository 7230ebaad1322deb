#!/bin/sh
# Build the CPU kernels with the address and undefined-behaviour sanitizers and run the kernels' tests over that build.
#   tests/sanitize.sh [LEVEL [ARGUMENTS OF PYTEST...]]      LEVEL: v2, v3 (what it is when left out) or v4
# The exit code is 0 when an overflow that is made on purpose is caught and the tests pass. Takes g++ and minutes.
set -eu
cd "$(dirname "$0")/.."
level=${1:-v3}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- tests/ops/test_block_step.py tests/ops/test_conv.py tests/ops/test_experts.py tests/ops/test_loss.py tests/ops/test_mamba_step.py tests/ops/test_memory_kernel.py tests/ops/test_norm.py \
    tests/ops/test_scan.py tests/ops/test_ssd_kernel.py tests/ops/test_kernels_*.py -k "not each_build"
python=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"${CXX:-g++}" -std=c++17 -O1 -g -march="x86-64-$level" -ffp-contract=fast -fno-math-errno -fno-trapping-math -fPIC -shared \
    -fvisibility=hidden -Wno-psabi -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
    csrc/*.cpp -o "$folder/_kernels_$level.so"

run() {
    LD_PRELOAD="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libstdc++.so.6)" \
        ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 POSTFORMER_KERNELS="$folder" \
        ATEN_CPU_CAPABILITY=${capability:-avx2} "$python" "$@"
}
case $level in
    v2) capability=default ;;
    v4) capability=avx512 ;;
esac

overflow='import torch; from postformer.ops import _cpu
_cpu.call("matvec", torch.ones(1, 8), torch.ones(16, 8), torch.empty(1, 15), 0, 1, 8, 16)'
if run -c "$overflow" >"$folder/overflow" 2>&1 || ! grep -q "AddressSanitizer: heap-buffer-overflow" "$folder/overflow"; then
    echo "tests/sanitize.sh: the sanitizer did not see a result that is written past its end:" >&2
    cat "$folder/overflow" >&2
    exit 1
fi
run -c "from postformer.ops import _cpu; import sys; sys.exit(_cpu.LEVEL != '$level')"
run -m pytest -q -p no:cacheprovider "$@"
