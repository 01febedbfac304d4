#!/bin/sh
# Sets retrolocal up in a virtual environment; safe to run again.
#
#   ./install.sh            the program
#   ./install.sh --dev      the program with what its tests and checks need
#
# RETROLOCAL_VENV names the environment (default: .venv beside this file), RETROLOCAL_PYTHON the
# Python to make it with (default: the newest found, 3.11 or later).
set -eu

TORCH='torch==2.13.0'
CPU_WHEELS='https://download.pytorch.org/whl/cpu'

step() { printf '==> %s\n' "$1"; }
fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=${RETROLOCAL_VENV:-$here/.venv}
extra=''
case "${1:-}" in
    '') ;;
    --dev) extra='[dev]' ;;
    -h | --help)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "unknown option $1; give --dev or nothing" ;;
esac

suitable() {
    "$1" -c 'import sys, venv, ensurepip; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1
}

find_python() {
    for candidate in ${RETROLOCAL_PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if command -v "$candidate" >/dev/null 2>&1 && suitable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 to 3.13 with the venv module was found; install one, or name it in RETROLOCAL_PYTHON"
}

has_nvidia() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

if [ -x "$venv/bin/python" ] && suitable "$venv/bin/python"; then
    step "Using the virtual environment $venv"
else
    python=$(find_python)
    step "Making a virtual environment in $venv with $python"
    "$python" -m venv --clear "$venv" || fail "the virtual environment could not be made in $venv"
fi
python=$venv/bin/python

pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
install() { pip install "$@" || fail "pip could not install $*; its message is above"; }

# The package index has the CUDA build for Linux; the CPU build (+cpu) is 10 times smaller.
install_torch_cpu() {
    if [ "$(uname -s)" != Linux ]; then
        install "$TORCH"
    elif ! pip install "$TORCH+cpu" >/dev/null 2>&1; then
        install --extra-index-url "$CPU_WHEELS" "$TORCH+cpu"
    fi
}

if "$python" -c 'import torch' >/dev/null 2>&1; then
    step "PyTorch is there: $("$python" -c 'import torch; print(torch.__version__)')"
elif has_nvidia; then
    step 'Installing PyTorch for CUDA (an NVIDIA driver is present)'
    install "$TORCH"
else
    step 'Installing PyTorch for CPU (no NVIDIA driver was found)'
    install_torch_cpu
fi

step 'Installing retrolocal'
install --editable "$here$extra"

step "Ready: $("$venv/bin/retrolocal" --version), run it with $venv/bin/retrolocal"
