-- Share links. They go with their session; its owner is theirs.

CREATE TABLE shares (
    id         BLOB PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,
    session_id BLOB NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;

CREATE INDEX shares_newest ON shares (session_id, owner, created_at DESC, id);
