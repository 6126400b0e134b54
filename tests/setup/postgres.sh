#!/usr/bin/env bash
# Postgres's programs, with no server: each test starts one of its own.
set -euo pipefail
cd "$(dirname "$0")"

# Debian keeps them where no PATH leads.
if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; then
  exit 0
fi
# It would make a cluster and start it, unless it is told first.
./debian.sh pg_createcluster=postgresql-common
sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' \
  /etc/postgresql-common/createcluster.conf
./debian.sh initdb=postgresql
