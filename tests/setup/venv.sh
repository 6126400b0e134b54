#!/usr/bin/env bash
# The Python of the tests: pinned packages in a virtual environment.
# usage: venv.sh DIR
set -euo pipefail
python="${PYTHON:-python3}"
here="$(dirname "$0")"

fail() {
  echo "error: $*" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "$python is not there; install Python 3.10 or newer, or name one with PYTHON="
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is older than 3.10"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "$python cannot make virtual environments; install python3-venv"
  apt-get update -qq && apt-get install -y -qq python3-venv
fi
"$python" -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/../requirements.txt"
