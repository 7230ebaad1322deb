#!/bin/sh
# Make .venv and install postformer with the extras given, such as: tools/setup.sh report,dev
# Without an NVIDIA GPU torch is installed as its CPU build. PYTHON names the interpreter (default: python3).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
torch='torch>=2.10,<2.14'
cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "setup: $1" >&2; exit 2; }
command -v "$python" >/dev/null || fail "$python not found: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$("$python" --version) is too old: 3.11 or newer is needed"
if [ ! -x .venv/bin/pip ]; then
    "$python" -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; fail "no virtual environment can be made (Debian: apt-get install python3-venv)"; }
fi
install() { .venv/bin/pip install --quiet --disable-pip-version-check "$@"; }

if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        echo "setup: installing torch for CUDA"
        install "$torch"
    elif .venv/bin/python -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
        echo "setup: installing the CPU build of torch"
        install --index-url "$cpu_index" "$torch"
    else
        echo "setup: installing torch from pip's own index"
        install "$torch"
    fi
fi
echo "setup: installing postformer[$1]"
install -e ".[$1]"
case $1 in *peers*)  # it wants torchvision, which has no build beside a CPU torch: in a folder of its own, without it
    install --no-deps --upgrade --target .venv/apart 'timm>=1.0.20,<2' ;;
esac
