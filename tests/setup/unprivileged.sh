#!/usr/bin/env bash
# The agent's promises once more without root: no namespaces, no cgroups of its own.
# Run by a user, the tests before this one were just that.
set -euo pipefail
[ "$(id -u)" = 0 ] || exit 0
cd "$(dirname "$0")/../.."

place="$(mktemp -d /tmp/dwell-unprivileged.XXXXXX)"
trap 'rm -rf "$place"' EXIT
test="$(cargo test --test agent --no-run --message-format=json 2>/dev/null |
  python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "agent":
        print(built["executable"])')"
# Where nobody may read, whatever the modes of the checkout are.
cp "$test" "$place/agent-test"
cp target/debug/dwell "$place/dwell"
cp -r tests/apps "$place/apps"
chmod -R a+rX "$place"
mkdir -m 1777 "$place/tmp"
echo "as nobody:"
setpriv --reuid=nobody --regid=nogroup --clear-groups env \
  TMPDIR="$place/tmp" HOME="$place/tmp" DWELL_TEST_BINARY="$place/dwell" DWELL_TEST_APPS="$place/apps" \
  "$place/agent-test"
