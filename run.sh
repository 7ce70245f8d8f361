#!/usr/bin/env bash
# One entry for everything: sets up .venv on first use, then hands over to `python -m analyticup`.
set -euo pipefail

# PYTHONPATH and PYTHONHOME would hide the pinned packages from pip and Python; CDPATH makes `cd` print.
unset PYTHONPATH PYTHONHOME CDPATH
# Called through a symbolic link, the project is where the link leads.
self="${BASH_SOURCE[0]}"
while [ -L "$self" ]; do
  target="$(readlink "$self")"
  case "$target" in /*) self="$target" ;; *) self="$(dirname "$self")/$target" ;; esac
done
root="$(cd "$(dirname "$self")" && pwd)"
requirements=("$root/requirements.txt" "$root"/.ci/requirements{,-cpu,-cuda}.lock)
venv="${ANALYTICUP_VENV:-$root/.venv}"
case "$venv" in /*) ;; *) venv="$PWD/$venv" ;; esac

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
  "$1" -c 'import hashlib, sys
name, place, *files = sys.argv[1:]
found = f"{sys.version} {getattr(sys, name)}\n{place}".encode("utf-8", "surrogateescape")
print(hashlib.sha256(b"".join(open(file, "rb").read() for file in files) + found).hexdigest())' \
    "$2" "${3:-}" "${requirements[@]}"
}

is_set_up() {
  # The stamp is written last, so a set-up that was interrupted has none.
  [ -f "$1/$stamp" ] && [ -x "$1/bin/python" ] &&
    [ "$(cat "$1/$stamp")" = "$(requirements_hash "$1/bin/python" prefix 2>/dev/null)" ]
}

is_empty() {
  [ -d "$1" ] && [ -z "$(ls -A "$1" 2>&1)" ]
}

name_environment() {
  # $venv is a link to an environment beside it, one per requirements and Python: what runs from one keeps it.
  local folder link
  while [ "${venv%/}" != "$venv" ]; do venv="${venv%/}"; done
  # A link that was not made here stays, and is followed.
  for _ in {1..40}; do
    if [ ! -L "$venv" ] || is_ours "$(readlink "$venv")"; then break; fi
    link="$(readlink "$venv")"
    case "$link" in /*) venv="$link" ;; *) venv="$(dirname "$venv")/$link" ;; esac
  done
  case "${venv##*/}" in "" | . | ..) fail "ANALYTICUP_VENV=$named: give the path of a new folder" ;; esac
  # However the folder was reached, the environment's own path is one.
  folder="$(cd "$(dirname "$venv")" 2>/dev/null && pwd -P)" || return 0
  venv="${folder%/}/${venv##*/}"
}

is_ours() {
  [[ "$1" =~ ^"${venv##*/}"-[0-9a-f]{12}$ ]]
}

refuse_to_replace() {
  # What was not made here is never emptied, whatever it is.
  if [ -e "$venv" ] && [ ! -L "$venv" ] && [ ! -f "$venv/$stamp" ] && ! is_empty "$venv"; then
    fail "$venv was not set up by run.sh and is left as it is; delete it, or $elsewhere"
  fi
}

lock_set_up() {
  { : >>"$venv.lock"; } 2>/dev/null || fail "cannot write $venv.lock; $elsewhere"
  exec 9>>"$venv.lock"
  # Two first uses at once: the second waits, then finds the work done. The lock lasts as long as descriptor 9 is open.
  "$1" -c 'import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"run.sh: waiting for another set-up of {sys.argv[1]}", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)' "$venv" || fail "cannot lock $venv.lock; $elsewhere"
}

is_locked_platform() {
  "$environment/bin/python" -c 'import sys, sysconfig
ours = sys.implementation.name, sysconfig.get_platform()
sys.exit(ours != ("cpython", "linux-x86_64") or sys.version_info[:2] not in ((3, 11), (3, 12)))'
}

pip_install() {
  "$environment/bin/python" -m pip install --disable-pip-version-check --quiet -r "$root/$1" "${@:2}" ||
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
  said="$("$environment/bin/python" -m pip check --disable-pip-version-check)" ||
    fail ".ci/requirements.lock does not fit together (${said%%$'\n'*}); write it anew with .ci/lock.py"
}

set_up() {
  local building="$environment.building"
  if [ -e "$environment" ] && [ ! -e "$building" ] && [ ! -f "$environment/$stamp" ] && ! is_empty "$environment"; then
    fail "$environment was not set up by run.sh and is left as it is; delete it, or $elsewhere"
  fi
  echo "run.sh: setting up $environment (once; some minutes, 2.2 GB with the CPU build of torch, more with CUDA)" >&2
  # SIGTERM ends this shell at once (143); pip may go on for a moment, and holds the lock for as long.
  trap 'echo "run.sh: set-up interrupted; nothing that worked is lost, the next run begins it anew" >&2; exit 130' INT
  # By this file a set-up that was interrupted is known, and begun anew.
  : >"$building"
  rm -rf "$environment"
  "$1" -m venv "$environment" || fail "could not create $environment (the reason stands above); mend that and run again"
  install_packages
  requirements_hash "$environment/bin/python" prefix >"$environment/$stamp.new"
  mv "$environment/$stamp.new" "$environment/$stamp"
  rm -f "$building"
  trap - INT
  say_what_stays
}

say_what_stays() {
  local other
  for other in "$venv" "$venv"-*; do
    if [ ! -L "$other" ] && [ "$other" != "$environment" ] && [ -f "$other/$stamp" ]; then
      echo "run.sh: $other stays for what still runs from it; delete it when nothing does" >&2
    fi
  done
}

point_to_environment() {
  # By one rename, so that the path leads to a whole environment at any time. A folder there stays.
  [ "$venv" -ef "$environment" ] && return
  if [ -d "$venv" ] && [ ! -L "$venv" ]; then rmdir "$venv" 2>/dev/null || return 0; fi
  "$environment/bin/python" -c 'import os, sys
target, scratch, link = sys.argv[1:]
os.symlink(target, scratch)
os.replace(scratch, link)' "${environment##*/}" "$venv.$$" "$venv" 2>/dev/null ||
    echo "run.sh: $venv could not be made a link to $environment, which is used" >&2
}

linked_environment() {
  if [ -L "$venv" ]; then echo "$(dirname "$venv")/$(readlink "$venv")"; else echo "$venv"; fi
}

find_environment() {
  local python
  # Of $named: earlier versions set up that very folder, under the path that they were given.
  for environment in "$(linked_environment)" "$named"; do
    if is_set_up "$environment"; then return; fi
  done
  # Nothing is touched before all that a set-up needs has been found.
  refuse_to_replace
  python="$(find_python)"
  mkdir -p "$(dirname "$venv")" 2>/dev/null || fail "cannot write $(dirname "$venv"); $elsewhere"
  name_environment
  environment="$(requirements_hash "$python" base_prefix "$venv")"
  environment="$venv-${environment:0:12}"
  if ! is_set_up "$environment"; then
    lock_set_up "$python"
    is_set_up "$environment" || set_up "$python"
    exec 9>&-
  fi
  point_to_environment
}

stamp=.requirements.sha256
elsewhere="set ANALYTICUP_VENV to a new folder where you may write"
for file in "${requirements[@]}"; do
  [ -r "$file" ] || fail "$file is missing; call the run.sh of a whole copy of the project"
done
named="$venv"
name_environment
find_environment

export PYTHONPATH="$root/src"
# Without it MKL adds up a row of a float32 product, on Intel's processors, in an order that depends on the other rows
# and on threads; it costs no time. Elsewhere no such difference was seen, and this was not tried.
if grep -q GenuineIntel /proc/cpuinfo 2>/dev/null; then export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"; fi
if [ "${1:-}" = test ]; then
  shift
  cd "$root"
  exec "$environment/bin/python" -m pytest "$@"
fi
# By default glibc hands every layer's large buffers back and faults them in again, which cost scoring a twentieth of
# its speed at 2,048 tokens in a batch and a third at 8,192 (measured on padded batches).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-134217728}"
# By default oneDNN keeps a thousand products with their code, so that batches of ever new lengths take ever more memory:
# 160 such steps in bf16 at most 1.0 GB with 64 of them kept, 2.0 GB with all, in the same CPU time.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY="${ONEDNN_PRIMITIVE_CACHE_CAPACITY:-64}"
# -P keeps modules in the current folder out of the way.
exec "$environment/bin/python" -P -m analyticup "$@"
