#!/usr/bin/env bash
# Makes this checkout ready to work in: system packages, and .venv with the locked packages and the project itself.
#
#   tools/setup.sh PURPOSE...     PURPOSE: test (tests and examples), check, docs, bench
#
# Only what is missing is done, so a second run takes no time. System packages are installed when root, and named
# otherwise. PYTHON=... chooses the interpreter for .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PATH:/usr/sbin:/sbin" # an ordinary user's PATH lacks them on Debian

say() { echo "setup: $*"; }
die() { say "$*" >&2; exit 1; }

# What has to be there (a command or a file), and Debian's package that brings it.
for_test="ip=iproute2 ps=procps unshare=util-linux ipcmk=util-linux ping=iputils-ping ldd=libc-bin
    iptables=iptables nft=nftables mkfs.ext4=e2fsprogs mkfs.xfs=xfsprogs"
for_bench="gcc=gcc /usr/include/stdio.h=libc6-dev mnexec=mininet"

missing_packages() {
    local pair
    for pair in "$@"; do
        command -v "${pair%=*}" >/dev/null || [ -e "${pair%=*}" ] || echo "${pair#*=}"
    done | sort -u | xargs
}

install_packages() { # fails when they are still missing afterwards
    if ! command -v apt-get >/dev/null; then
        say "missing programs. Install what your system calls: $*"
        return 1
    elif [ "$(id -u)" -ne 0 ]; then
        say "missing programs, and only root can install them. Type: sudo apt-get install $*"
        return 1
    fi
    local log
    log=$(mktemp)
    say "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get -q update >"$log" 2>&1 &&
        apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >>"$log" 2>&1; then
        rm "$log"
    else
        cat "$log" >&2
        rm "$log"
        say "apt-get could not install: $*"
        return 1
    fi
}

require_programs() {
    local packages
    packages=$(missing_packages "$@")
    # Unquoted: one word per package. Without a program, the tests that need it say so themselves.
    if [ -n "$packages" ]; then install_packages $packages || say "continuing without"; fi
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_python_311 "$PYTHON" && echo "$PYTHON"
        return
    fi
    # The system's own first: a version manager's lives in a home directory that other users may not enter, and
    # some tests run .venv's interpreter as an ordinary user.
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if is_python_311 "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    local python made_with
    python=$(find_python) || {
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
        install_packages python3 python3-venv || true
        python=$(find_python) || die "Python 3.11 or newer is needed"
    }
    # A .venv knows its own place and interpreter by absolute path: in a copied or moved checkout it is made again.
    made_with="$PWD $("$python" -c 'import sys; print(sys.executable, sys.version)' | tr '\n' ' ')"
    if [ "$(cat .venv/made-with 2>/dev/null)" = "$made_with" ]; then return; fi
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        case $python in
            /usr/bin/python3) install_packages python3-venv ;;
            *) install_packages "$(basename "$python")-venv" ;;
        esac || die "$python cannot make a virtual environment without its package for venv"
    fi
    say ".venv with $("$python" --version), $python"
    "$python" -m venv --clear .venv
    echo "$made_with" >.venv/made-with
}

install_extra() {
    local extra=$1 stamp=.venv/installed-$1 wanted
    wanted=$(sha256sum pyproject.toml requirements.lock)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    say "pip install pytest-isolation[$extra], in the versions of requirements.lock"
    local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock)
    "${pip[@]}" hatchling editables
    "${pip[@]}" --no-build-isolation --editable ".[$extra]"
    echo "$wanted" >"$stamp"
}

[ $# -gt 0 ] || die "for which purpose: test, check, docs, bench?"
for purpose in "$@"; do
    case $purpose in
        test) require_programs $for_test && make_venv && install_extra test ;;
        check) make_venv && install_extra check ;;
        docs) make_venv && install_extra docs ;;
        bench) require_programs $for_bench ;;
        *) die "no such purpose: $purpose (test, check, docs, bench)" ;;
    esac
done
