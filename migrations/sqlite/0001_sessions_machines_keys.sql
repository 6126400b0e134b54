-- Every row is its JSON `body`, as the core writes it, and beside that the columns
-- that it is found by. Ids are the 16 bytes of a UUID; moments are milliseconds
-- since 1970; `owner` is 'org:NAME' or 'user:NAME', so that an organisation and a
-- user of one name are two owners.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id         BLOB PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,
    machine_id BLOB,              -- no reference: a session outlives its machine
    gpu_type   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ticket     INTEGER,           -- while it is queued
    ended_at   INTEGER,           -- once it has ended
    held_from  INTEGER,           -- its GPU event, once a GPU was held
    held_until INTEGER,           -- ... and once it is free again
    body       TEXT NOT NULL
) STRICT;

CREATE INDEX sessions_newest ON sessions (owner, created_at DESC, id);
CREATE INDEX sessions_newest_of_machine ON sessions (owner, machine_id, created_at DESC, id)
    WHERE machine_id IS NOT NULL;
-- Few are open of the many that ended: what is asked for most stays small.
CREATE INDEX sessions_open ON sessions (owner, created_at DESC, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_queued ON sessions (gpu_type, ticket) WHERE ticket IS NOT NULL;
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;
-- What is still held ends later than everything.
CREATE INDEX sessions_held ON sessions (owner, coalesce(held_until, 9223372036854775807), held_from)
    WHERE held_from IS NOT NULL;

-- When each GPU's last event ended; kept when the session itself is forgotten.
CREATE TABLE gpus (
    id         TEXT PRIMARY KEY,
    free_since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE machines (
    id         BLOB PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;

CREATE INDEX machines_newest ON machines (owner, created_at DESC, id);

CREATE TABLE machine_versions (
    id         BLOB PRIMARY KEY NOT NULL,
    machine_id BLOB NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    body       TEXT NOT NULL,
    UNIQUE (machine_id, version)
) STRICT;

CREATE TABLE keys (
    id         BLOB PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;

CREATE INDEX keys_newest ON keys (owner, created_at DESC, id);
