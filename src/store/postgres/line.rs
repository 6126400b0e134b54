//! The one connection that writes, and the right to write by it.
//!
//! Whoever takes the store makes a row in `leadership`; its number is the fence. Each
//! transaction counts itself in that row, which takes the row's lock and succeeds only
//! while no later server has taken the store. The count is also how the outcome of a
//! commit is known whose answer was lost with the connection.

use std::time::Duration;

use dwell_core::control_plane::Change;
use sqlx_core::Error;
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::PgConnection;
use tokio::time::timeout;

use super::Address;
use super::error::{Kind, Trouble, ends_session};
use super::news::notifications;
use super::rows;
use super::schema::connect_to_write;
use crate::failpoint::{self, Point};

/// Longer than the server itself lets a statement take.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// What became of a transaction.
pub(super) enum Outcome {
    /// It is on record.
    Committed {
        /// There may be more to forget than was.
        more_to_forget: bool,
    },
    /// Nothing of it is.
    Failed(Trouble),
    /// The connection was lost while it committed: see [`Line::is_on_record`].
    Unknown,
}

/// The right to write, and a connection unless that was lost.
pub(super) struct Line {
    address: Address,
    connection: Option<PgConnection>,
    fence: i64,
    /// How many transactions of ours are on record.
    transactions: i64,
}

impl Line {
    /// The right that `fence` is.
    pub(super) const fn new(address: Address, connection: PgConnection, fence: i64) -> Self {
        Self {
            address,
            connection: Some(connection),
            fence,
            transactions: 0,
        }
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// All of it in one transaction, or nothing.
    pub(super) async fn write(&mut self, changes: &[&Change]) -> Outcome {
        let answer = timeout(ANSWER_MAX, self.prepare(changes)).await;
        let prepared = answer.unwrap_or_else(|_| Err(Trouble::silent(&self.address)));
        let (mut connection, more_to_forget) = match prepared {
            Ok(prepared) => prepared,
            Err(trouble) => return Outcome::Failed(trouble),
        };
        failpoint::cross(Point::StoreInTransaction);
        let commit = raw_sql("COMMIT").execute(&mut connection);
        match timeout(ANSWER_MAX, commit).await {
            Ok(Ok(_)) => {
                failpoint::cross(Point::StoreAfterCommit);
                self.connection = Some(connection);
                self.transactions += 1;
                Outcome::Committed { more_to_forget }
            }
            Ok(Err(error)) if !ends_session(&error) => {
                self.connection = Some(connection);
                Outcome::Failed(Trouble::of(&self.address, &error))
            }
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        }
    }

    /// All but the commit. The connection is kept where it can be used again.
    async fn prepare(&mut self, changes: &[&Change]) -> Result<(PgConnection, bool), Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect_to_write(&self.address).await?,
        };
        let written = self.begin_and_write(&mut connection, changes).await;
        let error = match written {
            Ok(Some(more_to_forget)) => return Ok((connection, more_to_forget)),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let goes_on = error.as_ref().is_none_or(|error| !ends_session(error));
        if goes_on && raw_sql("ROLLBACK").execute(&mut connection).await.is_ok() {
            self.connection = Some(connection);
        }
        Err(error.map_or_else(
            || self.superseded(),
            |error| Trouble::of(&self.address, &error),
        ))
    }

    /// None if the store is ours no more; else what [`rows::write`] says.
    async fn begin_and_write(
        &self,
        connection: &mut PgConnection,
        changes: &[&Change],
    ) -> Result<Option<bool>, Error> {
        // All at once: each statement of its own is a way to the server and back. Other
        // servers are told when this commits.
        let begin = AssertSqlSafe(format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             UPDATE leadership SET transactions = transactions + 1
                 WHERE fence = {} AND NOT superseded;
             {}",
            self.fence,
            notifications(changes)
        ));
        let counted = raw_sql(begin).execute(&mut *connection).await?;
        if counted.rows_affected() == 0 {
            return Ok(None);
        }
        rows::write(connection, changes).await.map(Some)
    }

    /// After [`Outcome::Unknown`]: is it on record? To be asked until it is answered.
    pub(super) async fn is_on_record(&mut self) -> Result<bool, Trouble> {
        let asked = timeout(ANSWER_MAX, self.count()).await;
        let count = asked.unwrap_or_else(|_| Err(Trouble::silent(&self.address)))?;
        let is_on_record = count == Some(self.transactions + 1);
        self.transactions += i64::from(is_on_record);
        Ok(is_on_record)
    }

    async fn count(&mut self) -> Result<Option<i64>, Trouble> {
        let mut connection = connect_to_write(&self.address).await?;
        // The lock waits for the transaction in question, should it still go on.
        let count = query_scalar("SELECT transactions FROM leadership WHERE fence = $1 FOR UPDATE")
            .bind(self.fence)
            .fetch_optional(&mut connection)
            .await
            .map_err(|error| Trouble::of(&self.address, &error))?;
        self.connection = Some(connection);
        Ok(count)
    }

    /// It was cut off while it committed, and is not on record.
    pub(super) fn cut_off(&self) -> Trouble {
        Trouble::at(
            &self.address,
            Kind::Collided,
            "broke off while it committed, and nothing is on record; try again",
        )
    }

    fn superseded(&self) -> Trouble {
        Trouble::at(
            &self.address,
            Kind::Unable,
            "was taken over by another server, and this one can write no more; stop this one, or \
             restart it to take over again",
        )
    }
}
