#!/usr/bin/env bash
# Runs a command with processes, mounts and a network of its own: whatever engines do to
# those is gone with it, however it ends. Where a container goes to reach out is `outside`,
# at 198.51.100.1. Needs root.
# usage: alone.sh COMMAND…
set -euo pipefail

if [ "$(id -u)" != 0 ]; then
  echo "error: container engines can be tested by root only" >&2
  exit 1
fi
status=0
unshare --net --pid --mount --fork --kill-child --mount-proc sh -c '
  set -e
  # Engines keep process ids there, which mean others here.
  mount -t tmpfs none /run
  ip link set lo up
  ip link add inside type veth peer name outside
  ip address add 198.51.100.2/24 dev inside
  ip link set inside up
  # The other end in a network that only a process holds.
  unshare --net sleep infinity &
  holder=$!
  while [ "$(readlink /proc/$holder/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
  ip link set outside netns $holder
  nsenter --net=/proc/$holder/ns/net sh -c "
    ip address add 198.51.100.1/24 dev outside
    ip link set outside up
    ip link set lo up"
  ip route add default via 198.51.100.1
  export DWELL_TEST_OUTSIDE=$holder
  "$@"
' sh "$@" || status=$?
# Cgroups are the host's; those in use cannot be removed.
find /sys/fs/cgroup -depth -type d \( -path '*/dwell-test*' -o -path '*/libpod_parent*' \) \
  -exec rmdir {} \; 2>/dev/null || true
exit $status
