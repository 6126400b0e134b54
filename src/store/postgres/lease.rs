//! The lease by which one of several servers leads: the newest row of `leadership`.

use std::time::Duration;

use dwell_core::leadership::{Held, LEASE, MayLead, ServerId, may_lead};
use dwell_core::time::Millis;
use sqlx_core::Error;
use sqlx_core::executor::Executor;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_postgres::{PgConnection, Postgres};
use tokio::time::timeout;

use super::Address;
use super::error::{Kind, Trouble};
use super::news::LEADERSHIP;
use super::schema::connect;
use crate::store::StoreError;

/// Rows of servers that led long ago are not kept.
const FENCES_KEPT: i64 = 1_000;
/// A database that takes longer to renew a lease than it is good for does not.
const ANSWER_MAX: Duration = Duration::from_millis(LEASE.0);

/// Who would lead.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The server.
    pub id: ServerId,
    /// Where other servers reach it.
    pub url: String,
}

/// What came of a candidacy.
pub enum Claim {
    /// The candidate leads.
    Ours(Lease),
    /// Another does.
    Theirs(Held),
}

/// A lease, as its holder has it.
pub struct Lease {
    address: Address,
    connection: Option<PgConnection>,
    fence: i64,
}

impl Lease {
    pub(super) const fn new(address: Address, fence: i64) -> Self {
        Self {
            address,
            connection: None,
            fence,
        }
    }

    /// Have it for another [`LEASE`] from now on. False if another server leads.
    ///
    /// # Errors
    /// When the database does not say.
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        self.change(
            "UPDATE leadership SET until = clock_timestamp() + $2 * interval '1 ms'
             WHERE fence = $1 AND NOT superseded",
            i64::try_from(LEASE.0).unwrap_or(i64::MAX),
        )
        .await
    }

    /// Another server may lead at once.
    ///
    /// # Errors
    /// When the database does not answer: then another may once it has run out.
    pub async fn release(mut self) -> Result<(), StoreError> {
        self.change(
            "UPDATE leadership SET until = clock_timestamp() + $2 * interval '1 ms'
             WHERE fence = $1 AND NOT superseded",
            0,
        )
        .await?;
        if let Some(mut connection) = self.connection {
            // If it gets lost, others look by themselves.
            let _ = tell_others(&mut connection).await;
        }
        Ok(())
    }

    /// `candidate` serves, as do those that are returned, itself included.
    ///
    /// # Errors
    /// When the database does not say.
    pub async fn servers(&mut self, candidate: &Candidate) -> Result<Vec<String>, StoreError> {
        let Some(mut connection) = self.connection.take() else {
            return Err(Trouble::silent(&self.address).sentence);
        };
        let asked = timeout(ANSWER_MAX, servers(&mut connection, candidate)).await;
        match asked {
            Ok(Ok(servers)) => {
                self.connection = Some(connection);
                Ok(servers)
            }
            Ok(Err(error)) => Err(Trouble::of(&self.address, &error).sentence),
            Err(_) => Err(Trouble::silent(&self.address).sentence),
        }
    }

    async fn change(&mut self, sql: &'static str, span: i64) -> Result<bool, StoreError> {
        let answer = timeout(ANSWER_MAX, self.try_change(sql, span)).await;
        let answer = answer.unwrap_or_else(|_| Err(Trouble::silent(&self.address)));
        Ok(answer?)
    }

    async fn try_change(&mut self, sql: &'static str, span: i64) -> Result<bool, Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let changed = query(sql)
            .bind(self.fence)
            .bind(span)
            .execute(&mut connection)
            .await
            .map_err(|error| Trouble::of(&self.address, &error))?;
        self.connection = Some(connection);
        Ok(changed.rows_affected() == 1)
    }

    async fn connect(&self) -> Result<PgConnection, Trouble> {
        let mut connection = connect(&self.address).await?;
        // A renewal that a crash undoes harms nobody, and need not wait for the disk.
        raw_sql("SET synchronous_commit = off")
            .execute(&mut connection)
            .await
            .map_err(|error| Trouble::of(&self.address, &error))?;
        Ok(connection)
    }
}

/// The newest lease.
pub(super) async fn look<'c>(
    connection: impl Executor<'c, Database = Postgres>,
) -> Result<Option<Held>, Error> {
    let newest: Option<(String, String, i64)> = query_as(
        "SELECT holder, url,
                greatest(0, ceil(extract(epoch FROM until - clock_timestamp()) * 1000))::bigint
         FROM leadership WHERE NOT superseded",
    )
    .fetch_optional(connection)
    .await?;
    Ok(newest.map(|(holder, url, left)| Held {
        holder: ServerId(holder),
        url,
        left: Millis(u64::try_from(left).unwrap_or(0)),
    }))
}

/// Take the store if `candidate` may, or, without one, from whoever has it; who had it can
/// write no more. The new fence, or whose it is.
pub(super) async fn take(
    connection: &mut PgConnection,
    candidate: Option<&Candidate>,
) -> Result<Result<i64, Held>, Error> {
    // Waits for a transaction that goes on, and lets none begin.
    raw_sql("BEGIN; LOCK TABLE leadership IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *connection)
        .await?;
    if let Some(candidate) = candidate
        && let Some(held) = look(&mut *connection).await?
        && may_lead(&candidate.id, Some(&held)) != MayLead::Now
    {
        raw_sql("ROLLBACK").execute(&mut *connection).await?;
        return Ok(Err(held));
    }
    raw_sql("UPDATE leadership SET superseded = true WHERE NOT superseded")
        .execute(&mut *connection)
        .await?;
    let (id, url, lease) = match candidate {
        Some(candidate) => (&*candidate.id.0, &*candidate.url, LEASE),
        // Whoever would lead need not wait.
        None => ("", "", Millis::ZERO),
    };
    let fence: i64 = query_scalar(
        "INSERT INTO leadership (fence, transactions, superseded, holder, url, until)
         SELECT coalesce(max(fence), 0) + 1, 0, false, $1, $2,
                clock_timestamp() + $3 * interval '1 ms'
         FROM leadership RETURNING fence",
    )
    .bind(id)
    .bind(url)
    .bind(i64::try_from(lease.0).unwrap_or(i64::MAX))
    .fetch_one(&mut *connection)
    .await?;
    query("DELETE FROM leadership WHERE fence <= $1")
        .bind(fence - FENCES_KEPT)
        .execute(&mut *connection)
        .await?;
    tell_others(&mut *connection).await?;
    raw_sql("COMMIT").execute(&mut *connection).await?;
    Ok(Ok(fence))
}

/// They look at the lease at once.
async fn tell_others(connection: &mut PgConnection) -> Result<(), Error> {
    query("SELECT pg_notify('dwell', $1)")
        .bind(LEADERSHIP)
        .execute(connection)
        .await
        .map(drop)
}

/// A server that was not seen for so long serves no more.
const GONE_AFTER_MILLIS: i64 = 10_000;

/// `candidate` serves; where all servers are that do, itself included, as they were seen.
pub(super) async fn servers<'c>(
    connection: impl Executor<'c, Database = Postgres>,
    candidate: &Candidate,
) -> Result<Vec<String>, Error> {
    query_scalar(
        "WITH seen AS (
            INSERT INTO servers (id, url, seen_at) VALUES ($1, $2, clock_timestamp())
            ON CONFLICT (id) DO UPDATE SET url = excluded.url, seen_at = excluded.seen_at),
         gone AS (
            DELETE FROM servers
            WHERE id <> $1 AND seen_at < clock_timestamp() - $3 * interval '1 ms')
         SELECT DISTINCT url FROM servers
         WHERE id <> $1 AND seen_at >= clock_timestamp() - $3 * interval '1 ms'
         UNION SELECT $2 ORDER BY url",
    )
    .bind(&*candidate.id.0)
    .bind(&*candidate.url)
    .bind(GONE_AFTER_MILLIS)
    .fetch_all(connection)
    .await
}

/// Another server leads.
pub(super) fn is_led_by_another(address: &Address) -> Trouble {
    let what = "is written by another server at this moment; ask again";
    Trouble::at(address, Kind::Unable, what)
}
