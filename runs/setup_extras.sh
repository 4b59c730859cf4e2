#!/usr/bin/env bash
# Adds what the development set-up leaves out, into the same .venv; running it again takes a moment.
#
#   bash runs/setup_extras.sh libero         LIBERO's code (its scene assets are a download of their own, see README)
#   bash runs/setup_extras.sh libero ray     and Ray, for simulators on several machines
#   bash runs/setup_extras.sh clients        clients of other projects, with which the server is tested
#   bash runs/setup_extras.sh browser        Chromium and what drives it, with which the live page is tested
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
bash runs/setup.sh

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
[ -t 2 ] || export PIP_QUIET=2

is_there() { # distribution==version...
    .venv/bin/python -c 'import importlib.metadata as metadata, sys
for wanted in sys.argv[1:]:
    name, _, version = wanted.partition("==")
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise SystemExit(1)
    if version and found != version:
        raise SystemExit(1)' "$@" </dev/null
}

# Chromium is a system package. Without it the live page's tests are skipped, which is no reason to stop.
has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
install_chromium() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        printf 'setup: this machine lacks chromium; with root: apt-get update && apt-get install -y chromium\n' >&2
        return 1
    fi
    printf 'setup: installing chromium with apt-get\n' >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null >&2 || printf 'setup: apt-get update failed; going on with the lists at hand\n' >&2
    apt-get install -y -qq -o DPkg::Lock::Timeout=300 chromium </dev/null >/dev/null ||
        { printf 'setup: apt-get cannot install chromium; its message is above\n' >&2 && return 1; }
}

for extra in "$@"; do
    case "$extra" in
        libero)
            # Without their own requirements, which bring torchvision and gigabytes of CUDA; the extra names what they need.
            packages=(hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1)
            is_there "${packages[@]}" numba opencv-python-headless easydict && continue
            .venv/bin/python -m pip install -e ".[libero]" -c constraints.txt </dev/null >&2
            .venv/bin/python -m pip install --no-deps "${packages[@]}" </dev/null >&2
            ;;
        ray)
            is_there ray || .venv/bin/python -m pip install -e ".[ray]" -c constraints.txt </dev/null >&2
            ;;
        clients)
            # Without their own requirements: openpi's wants numpy below 2, and all that either needs here is there.
            packages=(openpi-client==0.1.1 vla-eval==0.8.0)
            is_there "${packages[@]}" || .venv/bin/python -m pip install --no-deps "${packages[@]}" </dev/null >&2
            ;;
        browser)
            has_chromium || install_chromium || continue
            is_there playwright || .venv/bin/python -m pip install playwright -c constraints.txt </dev/null >&2
            ;;
        *)
            printf 'expected libero, ray, clients or browser, got %s\n' "$extra" >&2
            exit 2
            ;;
    esac
    printf 'setup: %s is installed\n' "$extra" >&2
done
