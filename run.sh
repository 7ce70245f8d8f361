#!/usr/bin/env bash
# One entry for everything: sets up .venv on first use, then hands over to `python -m analyticup`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${ANALYTICUP_VENV:-$root/.venv}"
stamp="$venv/.requirements.sha256"

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or newer with venv; install it or set PYTHON=/path/to/python3.11"
}

requirements_hash() {
  # The interpreter belongs to it: a .venv of another Python is no longer the same set-up.
  { cat "$root/requirements.txt"; "$1" -c 'import sys; print(sys.version, sys.prefix)'; } | "$1" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

is_set_up() {
  # The stamp is written last, so a set-up that was interrupted has none and is repaired.
  [ -f "$stamp" ] && [ -x "$venv/bin/python" ] &&
    [ "$(cat "$stamp")" = "$(requirements_hash "$venv/bin/python" 2>/dev/null)" ]
}

set_up() {
  local python
  python="$(find_python)"
  echo "run.sh: setting up $venv (once; some minutes, about 2.5 GB without CUDA)" >&2
  rm -f "$stamp"
  "$python" -m venv --clear "$venv" || fail "could not create $venv; on Debian: apt-get install python3-venv"
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$root/requirements.txt" ||
    fail "pip could not install requirements.txt (its message stands above); mend that and run again"
  requirements_hash "$venv/bin/python" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

if ! is_set_up; then
  # Two first uses at once: the second waits, then finds the work done.
  if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock 9
  fi
  is_set_up || set_up
  exec 9>&-
fi

export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = test ]; then
  shift
  cd "$root"
  exec "$venv/bin/python" -m pytest "$@"
fi
exec "$venv/bin/python" -m analyticup "$@"
