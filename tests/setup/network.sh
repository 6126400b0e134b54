#!/usr/bin/env bash
# What the tests of tunnels lay cables and routers with: ip, nft, unshare and nsenter.
set -euo pipefail

missing=()
for needed in ip:iproute2 nft:nftables unshare:util-linux nsenter:util-linux; do
  command -v "${needed%%:*}" >/dev/null || missing+=("${needed##*:}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "error: these are missing: ${missing[*]}; install them" >&2
  exit 1
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
