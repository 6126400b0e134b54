#!/usr/bin/env bash
# Programs that the tests start: what is missing is installed where that is possible.
# What is no program is named by its path, which may have wildcards.
# usage: debian.sh PROGRAM=PACKAGE…
set -euo pipefail

missing=()
for program in "$@"; do
  wanted=${program%%=*}
  command -v "$wanted" >/dev/null || compgen -G "$wanted" >/dev/null ||
    missing+=("${program#*=}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "error: the tests need what Debian has in these packages; install them: ${missing[*]}" >&2
  exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
