# Finds Dwell's agent or fetches it, and becomes it. Before this stand what is to be found
# (`fixed`, or `url` and `sha256`), what it is to do (`DWELL_AGENT`), and the sentences of
# `fail`. For any POSIX shell; of programs it needs little more than mkdir, mktemp and mv.

say() { echo "dwell: $*" >&2; }

has() { command -v "$1" >/dev/null 2>&1; }

# Returns only if it cannot be run here.
become() {
  if why=$("$1" agent --version 2>&1 </dev/null); then
    rm -f "$draft"
    export DWELL_AGENT
    run "$1" agent job
  fi
  say "$1 cannot be run: $why"
  trouble=$CANNOT_RUN
}

is_right() {
  if has sha256sum; then
    sum=$(sha256sum <"$1")
  elif has openssl; then
    sum=$(openssl dgst -sha256 -r <"$1")
  elif has busybox; then
    sum=$(busybox sha256sum <"$1")
  elif has python3; then
    sum=$(python3 -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <"$1")
  else
    fail "$NO_PROGRAM"
  fi
  [ "${sum%% *}" = "$sha256" ]
}

# Whose certificate the other side has does not matter: nothing secret is said to it, and
# what comes is known by its hash. Nodes often know no authorities at all.
fetch() {
  if has curl; then
    curl -fsSL --insecure --connect-timeout 10 --speed-limit 1000 --speed-time 30 \
      -o "$1" "$url" && return
  fi
  if has wget; then
    # BusyBox's knows neither, and says so.
    patience='-t 1 -T 30'
    wget --version >/dev/null 2>&1 || patience=
    # shellcheck disable=SC2086
    wget -q --no-check-certificate $patience -O "$1" "$url" && return
  fi
  if has python3; then
    python3 -c 'import shutil, ssl, sys, urllib.request
trust = ssl._create_unverified_context()
with urllib.request.urlopen(sys.argv[1], timeout=30, context=trust) as answer:
    with open(sys.argv[2], "wb") as file:
        shutil.copyfileobj(answer, file)' "$url" "$1" && return
  fi
  say "$url could not be fetched into $1"
  trouble=$NOT_FETCHED
  return 1
}

fetch_right() {
  fetch "$1" || return
  is_right "$1" && return
  say "$url brought what is not $sha256; asking once more"
  fetch "$1" || return
  is_right "$1" || fail "$WRONG_HASH"
}

# In a directory that nobody else can write: what was checked there stays what it is.
try_in() {
  if ! (umask 077 && mkdir -p "$1") 2>/dev/null || [ -L "$1" ] || ! [ -O "$1" ] ||
    ! draft=$(mktemp "$1/draft.XXXXXX" 2>/dev/null); then
    return
  fi
  if ! [ -f "$1/$sha256" ] || ! is_right "$1/$sha256"; then
    has curl || has wget || has python3 || fail "$NO_PROGRAM"
    # Whole or not at all, for all jobs that do so at this moment.
    if ! fetch_right "$draft" || ! chmod 700 "$draft" || ! mv -f "$draft" "$1/$sha256"; then
      rm -f "$draft"
      return
    fi
  fi
  become "$1/$sha256"
  rm -f "$draft"
}

# A job has of its user what whoever asked for it gave it, which is nothing by slurmrestd.
if [ -z "${HOME:-}" ] && has getent; then
  IFS=: read -r _ _ _ _ _ home _ <<END
$(getent passwd "$(id -u)")
END
  [ -z "$home" ] || export HOME="$home"
fi

draft=
[ -z "$fixed" ] || { become "$fixed"; fail "$CANNOT_RUN"; }

trap 'rm -f "$draft"' EXIT
trap 'exit 143' HUP INT TERM
cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
trouble=$NO_DIRECTORY
# A server that is being replaced is back within this.
for pause in 0 1 2 4 8 15; do
  sleep "$pause"
  for dir in ${cache:+"$cache/dwell/agents"} "${TMPDIR:-/tmp}/dwell-agents-$(id -u)"; do
    try_in "$dir"
  done
  [ "$trouble" = "$NOT_FETCHED" ] || break
done
fail "$trouble"
