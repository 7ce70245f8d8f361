#!/usr/bin/env bash
# One entry for everything: sets up .venv on first use, then hands over to `python -m analyticup`.
set -euo pipefail

# PYTHONPATH and PYTHONHOME would hide the pinned packages from pip and Python; CDPATH makes `cd` print.
unset PYTHONPATH PYTHONHOME CDPATH
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${ANALYTICUP_VENV:-$root/.venv}"
case "$venv" in /*) ;; *) venv="$PWD/$venv" ;; esac
stamp="$venv/.requirements.sha256"
lock="$venv.lock"

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

is_fit() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_fit "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or newer with venv; correct it or unset it"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.13; do
    if is_fit "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv), or PYTHON=/path/to/python3"
}

requirements_hash() {
  # The interpreter belongs to it: a .venv of another Python is no longer the same set-up.
  {
    cat "$root/requirements.txt" "$root"/.ci/requirements{,-cpu,-cuda}.lock
    "$1" -c 'import sys; print(sys.version, sys.prefix)'
  } | "$1" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

is_set_up() {
  # The stamp is written last, so a set-up that was interrupted has none and is repaired.
  [ -f "$stamp" ] && [ -x "$venv/bin/python" ] &&
    [ "$(cat "$stamp")" = "$(requirements_hash "$venv/bin/python" 2>/dev/null)" ]
}

take_folder() {
  # `venv --clear` empties the folder: only one that was made here, or is a virtual environment, may be lost.
  if [ ! -e "$lock" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
    fail "$venv holds other files and would be emptied; delete it, or set ANALYTICUP_VENV to a new folder"
  fi
  { mkdir -p "$(dirname "$venv")" && : >>"$lock"; } 2>/dev/null ||
    fail "cannot write $lock; set ANALYTICUP_VENV to a folder that you may write"
  # Two first uses at once: the second waits, then finds the work done.
  if command -v flock >/dev/null; then
    exec 9>>"$lock"
    flock -n 9 || { echo "run.sh: waiting for another set-up of $venv" >&2 && flock 9; }
  fi
}

is_locked_platform() {
  "$venv/bin/python" -c 'import sys, sysconfig
ours = sys.implementation.name, sysconfig.get_platform()
sys.exit(ours != ("cpython", "linux-x86_64") or sys.version_info[:2] not in ((3, 11), (3, 12)))'
}

pip_install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$root/$1" "${@:2}" ||
    fail "pip could not install $1 (its message stands above); mend that and run again"
}

install_torch() {
  local said
  # As pip itself prefers it where it sees both.
  said="$(pip_install .ci/requirements-cpu.lock --require-hashes --no-deps 2>&1)" && return
  case "$said" in
    *"No matching distribution"*) pip_install .ci/requirements-cuda.lock --require-hashes --no-deps ;;
    *) echo "$said" >&2 && exit 2 ;;
  esac
}

install_packages() {
  local said
  if ! is_locked_platform; then
    echo "run.sh: .ci/requirements.lock is for CPython 3.11 and 3.12 on Linux x86-64; requirements.txt is taken instead, without hashes" >&2
    pip_install requirements.txt
    return
  fi
  # --no-deps, as the two builds of torch need different packages; `check` sees that none is missing.
  install_torch
  pip_install .ci/requirements.lock --require-hashes --no-deps
  said="$("$venv/bin/python" -m pip check --disable-pip-version-check)" ||
    fail ".ci/requirements.lock does not fit together (${said%%$'\n'*}); write it anew with .ci/lock.py"
}

set_up() {
  local python
  python="$(find_python)"
  echo "run.sh: setting up $venv (once; some minutes, 2.2 GB with the CPU build of torch, more with CUDA)" >&2
  rm -f "$stamp"
  "$python" -m venv --clear "$venv" || fail "could not create $venv (the reason stands above); mend that and run again"
  install_packages
  requirements_hash "$venv/bin/python" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

if ! is_set_up; then
  take_folder
  is_set_up || set_up
  exec 9>&-
fi

export PYTHONPATH="$root/src"
if [ "${1:-}" = test ]; then
  shift
  cd "$root"
  exec "$venv/bin/python" -m pytest "$@"
fi
# By default glibc hands every layer's large buffers back and faults them in again, which cost scoring a twentieth of
# its speed at 2,048 tokens in a batch and a third at 8,192 (measured on padded batches).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-536870912}"
# -P keeps modules in the current folder out of the way.
exec "$venv/bin/python" -P -m analyticup "$@"
