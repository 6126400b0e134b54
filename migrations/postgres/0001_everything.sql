-- Every row is its JSON `body`, as the core writes it, and beside that the columns
-- that it is found by; the same tables as SQLite's. A body is TEXT and not JSONB, which
-- would refuse a zero character and write numbers its own way. Texts that it is found by
-- are compared byte for byte, whatever the database's locale; in them \0 stands for a
-- zero character, which Postgres has none of, and \\ for \. Moments are milliseconds
-- since 1970.

CREATE TABLE meta (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE sessions (
    id         UUID PRIMARY KEY,
    owner      TEXT COLLATE "C" NOT NULL,
    machine_id UUID,              -- no reference: a session outlives its machine
    gpu_type   TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    ticket     BIGINT,            -- while it is queued
    ended_at   BIGINT,            -- once it has ended
    held_from  BIGINT,            -- its GPU event, once a GPU was held
    held_until BIGINT,            -- ... and once it is free again
    body       TEXT NOT NULL
);

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
    id         TEXT COLLATE "C" PRIMARY KEY,
    free_since BIGINT NOT NULL
);

CREATE TABLE machines (
    id         UUID PRIMARY KEY,
    owner      TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    body       TEXT NOT NULL
);

CREATE INDEX machines_newest ON machines (owner, created_at DESC, id);

CREATE TABLE machine_versions (
    id         UUID PRIMARY KEY,
    machine_id UUID NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    version    BIGINT NOT NULL,
    body       TEXT NOT NULL,
    UNIQUE (machine_id, version)
);

CREATE TABLE keys (
    id         UUID PRIMARY KEY,
    owner      TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    body       TEXT NOT NULL
);

CREATE INDEX keys_newest ON keys (owner, created_at DESC, id);

-- Share links. They go with their session; its owner is theirs.
CREATE TABLE shares (
    id         UUID PRIMARY KEY,
    owner      TEXT COLLATE "C" NOT NULL,
    session_id UUID NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    body       TEXT NOT NULL
);

CREATE INDEX shares_newest ON shares (session_id, owner, created_at DESC, id);

-- A row for each time that a server took the store to write to it. Every transaction
-- counts itself in its own server's row, and fails once a later one has been made: so no
-- two servers write, and one that lost its connection while it committed finds out from
-- the count what became of that. The one row that is not superseded is the lease of the
-- server that decides, until then by this database's own clock.
CREATE TABLE leadership (
    fence        BIGINT PRIMARY KEY,
    transactions BIGINT NOT NULL,
    superseded   BOOLEAN NOT NULL,
    holder       TEXT COLLATE "C" NOT NULL,
    url          TEXT NOT NULL,   -- where other servers reach it
    until        TIMESTAMPTZ NOT NULL,
    taken_at     TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- Tickets that let somebody in, whichever server that was: each does so once. They are
-- forgotten when they would be good no more.
CREATE TABLE tickets (
    nonce   BYTEA PRIMARY KEY,
    used_at TIMESTAMPTZ NOT NULL
);

-- The servers that serve, by this database's own clock. Agents open channels to each.
CREATE TABLE servers (
    id      TEXT COLLATE "C" PRIMARY KEY,
    url     TEXT NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL
);
