//! The readers: a few connections that never wait for the writer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx_core::query::query_with;
use sqlx_postgres::{PgArguments, PgConnection, PgRow};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::Address;
use super::error::{Kind, Trouble, ends_session};
use super::schema::connect;
use crate::store::StoreError;

/// More at once wait for each other.
const CONNECTIONS_MAX: usize = 8;
/// For how long a server is asked again that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon, at first.
const PAUSE: Duration = Duration::from_millis(20);

/// Some connections, made when they are needed.
#[derive(Clone)]
pub(super) struct Readers {
    shared: Arc<Shared>,
}

struct Shared {
    address: Address,
    turns: Semaphore,
    idle: Mutex<Vec<PgConnection>>,
}

impl Readers {
    pub(super) fn new(address: Address) -> Self {
        Self {
            shared: Arc::new(Shared {
                address,
                turns: Semaphore::new(CONNECTIONS_MAX),
                idle: Mutex::default(),
            }),
        }
    }

    /// The rows that answer one statement. Asked again if the connection breaks.
    pub(super) async fn rows(
        &self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, StoreError> {
        let shared = Arc::clone(&self.shared);
        // Who asks may go away; a connection is good only once its answer was read.
        let reading = tokio::spawn(async move { shared.rows(sql, arguments).await });
        match reading.await {
            Ok(answer) => answer,
            Err(gone) => Err(StoreError(format!(
                "{} cannot be read: {gone}",
                self.shared.address
            ))),
        }
    }

    /// The sentence for a row that is not understood.
    pub(super) fn misread(&self, error: &sqlx_core::Error) -> StoreError {
        Trouble::of(&self.shared.address, error).sentence
    }
}

impl Shared {
    async fn rows(
        &self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let answer = timeout_at(deadline, self.try_rows(sql, arguments.clone())).await;
            match answer.unwrap_or_else(|_| Err(Trouble::silent(&self.address))) {
                Ok(rows) => return Ok(rows),
                Err(trouble)
                    if matches!(trouble.kind, Kind::Lost | Kind::Collided)
                        && Instant::now() + pause < deadline =>
                {
                    // Those that idle were made before it broke, too.
                    if trouble.kind == Kind::Lost {
                        self.idle().clear();
                    }
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(trouble) => return Err(trouble.sentence),
            }
        }
    }

    async fn try_rows(
        &self,
        sql: &'static str,
        arguments: PgArguments,
    ) -> Result<Vec<PgRow>, Trouble> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let idle = self.idle().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(&self.address).await?,
        };
        let answer = query_with(sql, arguments).fetch_all(&mut connection).await;
        if answer
            .as_ref()
            .err()
            .is_none_or(|error| !ends_session(error))
        {
            self.idle().push(connection);
        }
        answer.map_err(|error| Trouble::of(&self.address, &error))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<PgConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
