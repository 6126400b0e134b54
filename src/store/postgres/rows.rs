//! Changes, written with few statements: neighbours of one kind go together.

use std::collections::BTreeMap;

use dwell_core::control_plane::Change;
use dwell_core::gpu::GpuId;
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::session::Session;
use dwell_core::share::Share;
use dwell_core::time::Timestamp;
use sqlx_core::Error;
use sqlx_core::query::query;
use sqlx_postgres::PgConnection;
use uuid::Uuid;

use super::columns::{json, text};
use crate::store::columns::{Standing, owner_column};

/// So many sessions are forgotten in one transaction; commits go in between.
const FORGET_AT_ONCE: u64 = 200;

/// Writes all of `changes` in their order. True if there may be more to forget than was.
pub(super) async fn write(
    connection: &mut PgConnection,
    changes: &[&Change],
) -> Result<bool, Error> {
    let mut more_to_forget = false;
    for run in changes.chunk_by(|one, next| {
        std::mem::discriminant::<Change>(one) == std::mem::discriminant::<Change>(next)
    }) {
        more_to_forget |= write_run(connection, run).await?;
    }
    Ok(more_to_forget)
}

/// Changes that are all of one kind.
async fn write_run(connection: &mut PgConnection, run: &[&Change]) -> Result<bool, Error> {
    let mut more_to_forget = false;
    let (mut sessions, mut machines, mut versions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut deleted, mut keys, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for change in run {
        match change {
            Change::Session(session) => sessions.push(&**session),
            Change::Machine(machine) => machines.push(&**machine),
            Change::MachineVersion(machine, version) => versions.push((machine.0, &**version)),
            Change::MachineDeleted(id) => deleted.push(id.0),
            Change::Key(key) => keys.push(key),
            Change::Share(share) => shares.push(&**share),
            Change::ForgetEndedBefore(before) => {
                more_to_forget |= forget_some(connection, *before).await? == FORGET_AT_ONCE;
            }
        }
    }
    if !sessions.is_empty() {
        put_sessions(connection, &sessions).await?;
    }
    if !machines.is_empty() {
        put_machines(connection, &machines).await?;
    }
    if !versions.is_empty() {
        put_versions(connection, &versions).await?;
    }
    if !deleted.is_empty() {
        query("DELETE FROM machines WHERE id = ANY ($1)")
            .bind(deleted)
            .execute(&mut *connection)
            .await?;
    }
    if !keys.is_empty() {
        put_keys(connection, &keys).await?;
    }
    if !shares.is_empty() {
        put_shares(connection, &shares).await?;
    }
    Ok(more_to_forget)
}

/// One of each id, as it is said to be last: a statement may touch a row once.
fn last_of_each<'a, T>(all: &[&'a T], id: impl Fn(&T) -> Uuid) -> impl Iterator<Item = &'a T> {
    let last: BTreeMap<Uuid, &T> = all.iter().map(|one| (id(one), *one)).collect();
    last.into_values()
}

/// Rows as columns, to be unnested.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    owners: Vec<String>,
    created_at: Vec<i64>,
    bodies: Vec<String>,
}

impl Columns {
    fn push(&mut self, id: Uuid, owner: &str, created_at: Timestamp, body: String) {
        self.ids.push(id);
        self.owners.push(text(owner));
        self.created_at.push(created_at.0);
        self.bodies.push(body);
    }
}

async fn put_sessions(connection: &mut PgConnection, all: &[&Session]) -> Result<(), Error> {
    let mut rows = Columns::default();
    let (mut machines, mut gpu_types, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ended_at, mut held_from, mut held_until) = (Vec::new(), Vec::new(), Vec::new());
    for session in last_of_each(all, |session| session.id.0) {
        let owner = owner_column(&session.owner);
        rows.push(session.id.0, &owner, session.created_at, json(session)?);
        machines.push(session.machine_id.map(|id| id.0));
        gpu_types.push(text(&session.gpu_type.0));
        let standing = Standing::of(session);
        let ticket = standing.ticket.map(i64::try_from).transpose();
        tickets.push(ticket.map_err(|why| Error::Encode(Box::new(why)))?);
        ended_at.push(standing.ended_at);
        held_from.push(standing.held_from);
        held_until.push(standing.held_until);
    }
    // Who owns it, its machine, its type and its creation never change: their
    // indexes need not be touched again.
    query(
        "INSERT INTO sessions (id, owner, machine_id, gpu_type, created_at,
                               ticket, ended_at, held_from, held_until, body)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::bigint[],
                              $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[])
         ON CONFLICT (id) DO UPDATE SET
             ticket = excluded.ticket, ended_at = excluded.ended_at,
             held_from = excluded.held_from, held_until = excluded.held_until,
             body = excluded.body",
    )
    .bind(rows.ids)
    .bind(rows.owners)
    .bind(machines)
    .bind(gpu_types)
    .bind(rows.created_at)
    .bind(tickets)
    .bind(ended_at)
    .bind(held_from)
    .bind(held_until)
    .bind(rows.bodies)
    .execute(&mut *connection)
    .await?;
    put_gpus(connection, all).await
}

/// When each GPU was free last.
async fn put_gpus(connection: &mut PgConnection, sessions: &[&Session]) -> Result<(), Error> {
    let mut free_since: BTreeMap<&GpuId, i64> = BTreeMap::new();
    for event in sessions.iter().map(|session| &session.gpu_event) {
        if let (Some(gpu), Some(end)) = (&event.gpu, event.end()) {
            let since = free_since.entry(gpu).or_insert(end.0);
            *since = end.0.max(*since);
        }
    }
    if free_since.is_empty() {
        return Ok(());
    }
    let (ids, since): (Vec<_>, Vec<_>) = free_since
        .into_iter()
        .map(|(gpu, since)| (text(&gpu.0), since))
        .unzip();
    query(
        "INSERT INTO gpus (id, free_since) SELECT * FROM unnest($1::text[], $2::bigint[])
         ON CONFLICT (id) DO UPDATE
             SET free_since = greatest(gpus.free_since, excluded.free_since)",
    )
    .bind(ids)
    .bind(since)
    .execute(connection)
    .await
    .map(drop)
}

async fn put_machines(connection: &mut PgConnection, all: &[&Machine]) -> Result<(), Error> {
    let mut rows = Columns::default();
    for machine in last_of_each(all, |machine| machine.id.0) {
        let owner = owner_column(&machine.owner);
        rows.push(machine.id.0, &owner, machine.created_at, json(machine)?);
    }
    put_owned(
        connection,
        "INSERT INTO machines (id, owner, created_at, body)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[])
         ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        rows,
    )
    .await
}

async fn put_versions(
    connection: &mut PgConnection,
    all: &[(Uuid, &MachineVersion)],
) -> Result<(), Error> {
    let (mut ids, mut machines, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let mut bodies = Vec::new();
    for (machine, version) in all {
        ids.push(version.id.0);
        machines.push(*machine);
        numbers.push(i64::from(version.version));
        bodies.push(json(version)?);
    }
    query(
        "INSERT INTO machine_versions (id, machine_id, version, body)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[])
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(ids)
    .bind(machines)
    .bind(numbers)
    .bind(bodies)
    .execute(connection)
    .await
    .map(drop)
}

async fn put_keys(connection: &mut PgConnection, all: &[&Key]) -> Result<(), Error> {
    let mut rows = Columns::default();
    for key in last_of_each(all, |key| key.id.0) {
        let owner = owner_column(&key.principal.owner());
        rows.push(key.id.0, &owner, key.created_at, json(key)?);
    }
    put_owned(
        connection,
        "INSERT INTO keys (id, owner, created_at, body)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[])
         ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        rows,
    )
    .await
}

async fn put_owned(
    connection: &mut PgConnection,
    sql: &'static str,
    rows: Columns,
) -> Result<(), Error> {
    query(sql)
        .bind(rows.ids)
        .bind(rows.owners)
        .bind(rows.created_at)
        .bind(rows.bodies)
        .execute(connection)
        .await
        .map(drop)
}

async fn put_shares(connection: &mut PgConnection, all: &[&Share]) -> Result<(), Error> {
    let mut rows = Columns::default();
    let mut sessions = Vec::new();
    for share in last_of_each(all, |share| share.id.0) {
        let owner = owner_column(&share.owner);
        rows.push(share.id.0, &owner, share.created_at, json(share)?);
        sessions.push(share.session.0);
    }
    query(
        "INSERT INTO shares (id, owner, created_at, body, session_id)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::uuid[])
         ON CONFLICT (id) DO UPDATE SET body = excluded.body",
    )
    .bind(rows.ids)
    .bind(rows.owners)
    .bind(rows.created_at)
    .bind(rows.bodies)
    .bind(sessions)
    .execute(connection)
    .await
    .map(drop)
}

/// Forgets at most [`FORGET_AT_ONCE`] sessions and says how many.
async fn forget_some(connection: &mut PgConnection, before: Timestamp) -> Result<u64, Error> {
    let forgotten = query(
        "DELETE FROM sessions WHERE id = ANY (ARRAY(
             SELECT id FROM sessions WHERE ended_at < $1 ORDER BY ended_at LIMIT $2))",
    )
    .bind(before.0)
    .bind(i64::try_from(FORGET_AT_ONCE).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
