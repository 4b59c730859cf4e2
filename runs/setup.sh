#!/usr/bin/env bash
# Makes .venv ready on this machine: system packages, a virtual environment, the package with its development extras.
# Running again takes a moment. What was cut off is continued or made anew; after a move or copy of the checkout .venv is
# made anew. One that someone else made is used, never deleted. The scripts beside this one call this one first.
#
#   WAMKIT_PYTHON=/path/to/python   use this Python (3.11 or newer, best 3.11 to 3.13) instead of one found
#   MUJOCO_GL=osmesa                render with OSMesa, so ask for it even where EGL is there; egl: ask for nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

here=$(pwd -P)
# Three lines: "installing" while the first install runs, "incomplete" when pip gave up or an update runs, otherwise a
# checksum of what was installed; the checkout that it was installed for; "ours" when this script made the .venv.
state=.venv/.wamkit-setup
gl_package=libosmesa6     # software GL for MuJoCo

say() { printf 'setup: %s\n' "$*" >&2; }
stop() {
    say "$@"
    exit 1
}

# Of pyproject.toml only the tables that decide what is installed: a linter's setting is no reason to install again.
wanted() { { sed -n -E '/^\[(build-system|project)/,/^\[tool/p' pyproject.toml packages/*/pyproject.toml && cat constraints.txt; } | cksum; }
remember() { printf '%s\n' "$1" "$here" "$maker" >"$state"; }

is_recent() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' </dev/null 2>/dev/null; }
has_wheels() { # mujoco 3.3.0 came before Python 3.14
    "$1" -c 'import sys; raise SystemExit(sys.version_info >= (3, 14))' </dev/null 2>/dev/null
}
can_make_venv() { "$1" -c 'import ensurepip, venv' </dev/null 2>/dev/null; }

# MuJoCo renders with EGL on any device that it offers, else with OSMesa; the package looks for them in the same order.
has_gl() {
    [ "$(uname -s)" = Linux ] || return 0
    case "${MUJOCO_GL:-}" in
        "") has_egl "$1" || has_osmesa "$1" ;;
        osmesa) has_osmesa "$1" ;;
    esac
}

has_egl() {
    "$1" -c '
import ctypes
from ctypes.util import find_library
ctypes.CDLL(find_library("OpenGL") or find_library("GL") or "libGL.so.1")
egl = ctypes.CDLL(find_library("EGL") or "libEGL.so.1")
egl.eglGetProcAddress.restype = ctypes.c_void_p
address, count = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), ctypes.c_int()
query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
has_device = address and query(address)(0, None, ctypes.byref(count)) and count.value
raise SystemExit(not has_device)' </dev/null 2>/dev/null
}

has_osmesa() {
    "$1" -c 'import ctypes.util; ctypes.CDLL(ctypes.util.find_library("OSMesa") or "libOSMesa.so.8")' </dev/null 2>/dev/null
}

# Prints the first Python from 3.11 that has wheels and can make a virtual environment, else the first that has wheels,
# else the first newer one by the same rule, else nothing.
find_python() {
    local candidate found is_fitting candidates=(python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3)
    [ -z "${WAMKIT_PYTHON:-}" ] || candidates=("$WAMKIT_PYTHON")
    for is_fitting in has_wheels is_recent; do
        found=""
        for candidate in "${candidates[@]}"; do
            if ! is_recent "$candidate" || ! $is_fitting "$candidate"; then continue; fi
            found=${found:-$candidate}
            if can_make_venv "$candidate"; then
                found=$candidate
                break
            fi
        done
        [ -z "$found" ] || break
    done
    printf '%s' "$found"
}

# Installs system packages as root; anyone else gets the command to run.
install_system() {
    command -v apt-get >/dev/null || stop "this machine lacks $*, which Debian and Ubuntu name so, and has no apt-get;" \
        "install their counterparts with its own package manager and run this again"
    if [ "$(id -u)" -ne 0 ]; then
        stop "this machine lacks $*, and installing system packages needs root. Run

    sudo apt-get update && sudo apt-get install -y $*

and then this again."
    fi
    say "installing $* with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    local log
    apt-get update -qq </dev/null >&2 || say "apt-get update failed; going on with the package lists at hand"
    log=$(apt-get install -y -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1) || stop "apt-get cannot install $*:

$log"
}

# On a machine without an NVIDIA driver the ordinary index would still give the CUDA build of torch (gigabytes).
install_cpu_torch() {
    [ "$(uname -s)" = Linux ] || return 0
    if nvidia-smi >/dev/null 2>&1; then
        say "NVIDIA driver found: torch is pip's default build"
        return 0
    fi
    .venv/bin/python -c 'import importlib.metadata as m; wanted = "torch==" + m.version("torch").partition("+")[0]
raise SystemExit(wanted not in open("constraints.txt").read().split())' </dev/null 2>/dev/null && return 0
    if .venv/bin/python -m pip install -qq uv -c constraints.txt </dev/null >&2 &&
        UV_HTTP_TIMEOUT=15 UV_HTTP_RETRIES=1 .venv/bin/uv pip install --python .venv/bin/python --no-deps \
            --torch-backend=cpu torch -c constraints.txt </dev/null 2>/dev/null; then
        say "no NVIDIA driver: torch is the CPU build, installed with uv"
    else
        say "no NVIDIA driver, but uv could not fetch the CPU build of torch: it is the build that pip finds for constraints.txt"
    fi
}

if command -v flock >/dev/null; then # two runs at once take turns
    exec 9<.
    flock -n 9 || { say "waiting for another set-up of this folder" && flock 9; }
fi

mark="" path="" maker=""
{ read -r mark && read -r path && read -r maker; } 2>/dev/null <"$state" || true
if [ "$mark" = "$(wanted)" ] && [ "$path" = "$here" ] && .venv/bin/python -c 'import wamkit, wamkit_client' </dev/null 2>/dev/null; then
    has_gl .venv/bin/python || install_system "$gl_package"
    exit 0
fi

make_venv=yes
if [ -e .venv ]; then
    if [ "$mark" = installing ]; then
        reason="its first installation was interrupted"
    elif [ "$maker" = ours ] && [ "$path" != "$here" ]; then
        reason="it belongs to $path, and this checkout is $here"
    elif ! { is_recent .venv/bin/python && .venv/bin/python -m pip --version </dev/null >/dev/null 2>&1; }; then
        reason="it has no working Python 3.11 or newer with pip"
    else
        make_venv=""
    fi
    if [ -n "$make_venv" ]; then
        [ "$maker" = ours ] || stop "there is a .venv that this script did not make, and $reason." \
            "Put that right (.venv/bin/python -m ensurepip, or for one made by uv: uv pip install pip)," \
            "or move .venv away, and run this again."
        say ".venv is made anew: $reason"
    fi
fi

python=$(find_python)
if [ -z "$python" ] && command -v "${WAMKIT_PYTHON:-python3}" >/dev/null; then
    stop "expected Python 3.11 or newer, got $("${WAMKIT_PYTHON:-python3}" --version 2>&1 </dev/null | head -n 1);" \
        "install a newer one, or name one: WAMKIT_PYTHON=/path/to/python3.11"
fi
missing=()
[ -z "$make_venv" ] || can_make_venv "$python" || missing+=(python3-venv)
has_gl "$python" || missing+=("$gl_package")
if [ ${#missing[@]} -gt 0 ]; then
    install_system "${missing[@]}"
    python=$(find_python)
    [ -z "$make_venv" ] || can_make_venv "$python" ||
        stop "expected a Python 3.11 or newer that can make virtual environments, got ${python:-none}"
    has_gl "$python" || stop "$gl_package is installed, but Python cannot load libOSMesa; try: ldconfig"
fi

if [ -n "$make_venv" ]; then
    has_wheels "$python" || say "found $("$python" --version) and none from 3.11 to 3.13, but mujoco 3.3.0 has no wheels" \
        "for it; should its installation fail, install or name another: WAMKIT_PYTHON=/path/to/python3.13"
    say "making .venv with $("$python" --version) ($python)"
    rm -rf .venv
    mkdir .venv
    maker=ours
    remember installing
    "$python" -m venv .venv </dev/null >&2 || stop "$python -m venv .venv failed; its message is above"
else
    remember incomplete
fi

say "installing the package and its development extras into .venv (some minutes the first time)"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
[ -t 2 ] || export PIP_QUIET=2 # in a log errors alone, on a terminal pip's progress bars
install_cpu_torch
.venv/bin/python -m pip install -e packages/wamkit-client -e ".[dev]" -c constraints.txt </dev/null >&2 || {
    remember incomplete # pip left whole packages behind, so the next run goes on from them
    stop "pip could not install the package; its message is above. Run this again once that is mended."
}
remember "$(wanted)"
say "ready: .venv/bin/wamkit --help"
