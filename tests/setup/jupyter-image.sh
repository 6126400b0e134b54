#!/usr/bin/env bash
# Makes TAR, the tree of an image with JupyterLab at /venv and what this host's Python needs
# to run.
# usage: jupyter-image.sh PYTHON TAR
set -euo pipefail

# Not what stands in front of it.
python=$(realpath "$("$1" -c 'import sys; print(sys.executable)')")
tar=$2
wanted=$(grep '^jupyterlab==' "$(dirname "$0")/../requirements.txt")
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,etc,tmp,proc,dev,sys} "$(dirname "$tar")"
chmod 1777 "$tree/tmp"
echo root:x:0:0:root:/workspace:/bin/sh > "$tree/etc/passwd"

"$python" -m venv --without-pip "$tree/venv"
"$python" -m venv "$tree/with-pip"
"$tree/with-pip/bin/pip" --quiet --disable-pip-version-check --python "$tree/venv/bin/python" \
  install --no-compile "$wanted"
rm -rf "$tree/with-pip"
# Where it is going to be.
grep -rlIF "$tree/venv" "$tree/venv/bin" "$tree/venv/share" "$tree/venv/pyvenv.cfg" |
  xargs sed -i "s|$tree/venv|/venv|g"
ln -sf "$python" "$tree/venv/bin/python3"

# The interpreter, its library, and all that these are linked with, each in its place.
library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$tree$library"
tar -C "$library" --exclude=test --exclude=__pycache__ --exclude=site-packages -cf - . |
  tar -C "$tree$library" -xf -
mapfile -t modules < <(find "$library" "$tree/venv" -name '*.so*' -type f)
# It does not like what is no library of this host's, and there are such modules.
{ ldd "$python" /bin/sh "${modules[@]}" 2>/dev/null || true; } | grep -oE '/[^ :()]+' | sort -u |
  grep -v "^$tree" | { cat; echo "$python"; echo /bin/sh; } | while read -r file; do
  [ -f "$file" ] || continue
  mkdir -p "$tree$(dirname "$file")"
  [ -e "$tree$file" ] || cp -L "$file" "$tree$file"
done
tar -C "$tree" -cf "$tar.new" .
mv "$tar.new" "$tar"
