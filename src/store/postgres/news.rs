//! What the server that leads puts on record, told to those that follow.
//!
//! Each commit names the rows that others show, by a notification that Postgres sends
//! when it is on record. Who follows reads those rows. Whatever was missed is made good
//! by reading all of them again: at first, and whenever the connection was lost.

use std::fmt::Write;

use dwell_core::control_plane::Change;
use dwell_core::id::SessionId;
use dwell_core::leadership::Held;
use sqlx_core::Error;
use sqlx_core::arguments::Arguments;
use sqlx_core::row::Row;
use sqlx_postgres::{PgArguments, PgListener, PgNotification, PgPoolOptions, PgRow};
use uuid::Uuid;

use super::Address;
use super::columns::body;
use super::error::Trouble;
use super::lease::Candidate;
use super::readers::Readers;
use super::{lease, schema};
use crate::store::StoreError;

/// Says that the lease may be another's.
pub(super) const LEADERSHIP: &str = "leadership";

/// So many rows are named by one notification: Postgres takes 8,000 bytes.
const NAMED_AT_ONCE: usize = 200;

const ROWS: &str = "
    SELECT body, 'session' AS kind FROM sessions WHERE id = ANY ($1)
    UNION ALL SELECT body, 'key' FROM keys WHERE id = ANY ($1)
    UNION ALL SELECT body, 'share' FROM shares WHERE id = ANY ($1)";
// Those that were known before may have ended.
const ALL_ROWS: &str = "
    SELECT body, 'session' AS kind FROM sessions WHERE ended_at IS NULL OR id = ANY ($1)
    UNION ALL SELECT body, 'key' FROM keys
    UNION ALL SELECT h.body, 'share'
        FROM shares h JOIN sessions s ON s.id = h.session_id WHERE s.ended_at IS NULL";

/// Statements that have Postgres name the rows of `changes` that other servers show.
pub(super) fn notifications(changes: &[&Change]) -> String {
    let ids: Vec<Uuid> = changes.iter().filter_map(|change| shown(change)).collect();
    let mut sql = String::new();
    for ids in ids.chunks(NAMED_AT_ONCE) {
        sql.push_str("NOTIFY dwell, '");
        for id in ids {
            // A String takes whatever is written.
            let _ = write!(sql, "{} ", id.simple());
        }
        sql.push_str("';");
    }
    sql
}

fn shown(change: &Change) -> Option<Uuid> {
    match change {
        Change::Session(session) => Some(session.id.0),
        Change::Key(key) => Some(key.id.0),
        Change::Share(share) => Some(share.id.0),
        // These are read from the record.
        Change::Machine(_)
        | Change::MachineVersion(..)
        | Change::MachineDeleted(_)
        | Change::ForgetEndedBefore(_) => None,
    }
}

/// What is new.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// These rows are: see [`super::Postgres::rows`].
    Rows(Vec<Uuid>),
    /// Another server may lead.
    Leadership,
}

/// A connection by which news comes. After an error it is of no use any more.
pub struct Listener {
    address: Address,
    listener: PgListener,
}

impl Listener {
    pub(super) async fn connect(address: Address) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(schema::CONNECT_MAX)
            .acquire_slow_threshold(schema::CONNECT_MAX)
            .connect_lazy_with(address.options().clone());
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen("dwell").await?;
            Ok(listener)
        };
        let listener = listening.await;
        let listener = listener.map_err(|error| Trouble::of(&address, &error).sentence)?;
        Ok(Self { address, listener })
    }

    /// The next news, once there is some. Nothing is lost when it is not waited for.
    ///
    /// # Errors
    /// When the connection is lost, and with it perhaps some news.
    pub async fn next(&mut self) -> Result<News, StoreError> {
        let next = self.listener.try_recv().await;
        let next = next.map_err(|error| Trouble::of(&self.address, &error).sentence)?;
        let Some(next) = next else {
            return Err(Trouble::silent(&self.address).sentence);
        };
        let mut news = said(&next);
        // Whatever has come besides is read by the same question.
        while let News::Rows(ids) = &mut news
            && let Some(next) = self.listener.next_buffered()
        {
            match said(&next) {
                News::Rows(more) => ids.extend(more),
                News::Leadership => return Ok(News::Leadership),
            }
        }
        Ok(news)
    }

    /// The newest lease, as `candidate` sees it that serves meanwhile.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn look(&mut self, candidate: &Candidate) -> Result<Option<Held>, StoreError> {
        let serves = lease::servers(&mut self.listener, candidate).await;
        serves.map_err(|error| Trouble::of(&self.address, &error).sentence)?;
        let found = lease::look(&mut self.listener).await;
        found.map_err(|error| Trouble::of(&self.address, &error).sentence)
    }
}

fn said(notification: &PgNotification) -> News {
    match notification.payload() {
        LEADERSHIP => News::Leadership,
        ids => News::Rows(ids.split(' ').filter_map(|id| id.parse().ok()).collect()),
    }
}

/// These rows as they are now.
pub(super) async fn rows(readers: &Readers, ids: Vec<Uuid>) -> Result<Vec<Change>, StoreError> {
    changes(readers, ROWS, ids).await
}

/// Every row that servers show, and the sessions that are `known`.
pub(super) async fn all_rows(
    readers: &Readers,
    known: Vec<SessionId>,
) -> Result<Vec<Change>, StoreError> {
    let known = known.into_iter().map(|id| id.0).collect();
    changes(readers, ALL_ROWS, known).await
}

async fn changes(
    readers: &Readers,
    sql: &'static str,
    ids: Vec<Uuid>,
) -> Result<Vec<Change>, StoreError> {
    let mut arguments = PgArguments::default();
    let added = arguments.add(ids);
    added.map_err(|error| StoreError(format!("This cannot be asked for: {error}")))?;
    let rows = readers.rows(sql, arguments).await?;
    let changes: Result<_, _> = rows.iter().map(change).collect();
    changes.map_err(|error| readers.misread(&error))
}

fn change(row: &PgRow) -> Result<Change, Error> {
    Ok(match row.try_get(1)? {
        "session" => Change::Session(Box::new(body(row)?)),
        "key" => Change::Key(body(row)?),
        _ => Change::Share(Box::new(body(row)?)),
    })
}
