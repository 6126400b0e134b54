//! Tickets, each of which is good once, whichever server it is shown to.

use std::time::Duration;

use sqlx_core::query::query;
use sqlx_postgres::PgConnection;
use tokio::time::timeout;

use super::Address;
use super::error::Trouble;
use super::schema::connect;
use crate::store::StoreError;

/// Whoever shows a ticket does not wait longer.
const ANSWER_MAX: Duration = Duration::from_secs(4);

/// A connection by which tickets are redeemed.
pub struct Tickets {
    address: Address,
    connection: Option<PgConnection>,
}

impl Tickets {
    pub(super) const fn new(address: Address) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Is this the first time that it is shown?
    ///
    /// # Errors
    /// When that is not known.
    pub async fn redeem(&mut self, nonce: &[u8]) -> Result<bool, StoreError> {
        let asked = timeout(ANSWER_MAX, self.try_redeem(nonce)).await;
        Ok(asked.unwrap_or_else(|_| Err(Trouble::silent(&self.address)))?)
    }

    async fn try_redeem(&mut self, nonce: &[u8]) -> Result<bool, Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.address).await?,
        };
        // None is good for longer than a minute, whatever the servers' clocks say.
        let first = query(
            "WITH gone AS (
                DELETE FROM tickets WHERE used_at < clock_timestamp() - interval '1 h')
             INSERT INTO tickets (nonce, used_at) VALUES ($1, clock_timestamp())
             ON CONFLICT DO NOTHING",
        )
        .bind(nonce)
        .execute(&mut connection)
        .await
        .map_err(|error| Trouble::of(&self.address, &error))?;
        self.connection = Some(connection);
        Ok(first.rows_affected() == 1)
    }
}
