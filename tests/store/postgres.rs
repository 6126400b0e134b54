//! Postgres keeps what every store promises, and what only a server can be asked for.

mod encrypted;
mod fence;
mod leadership;
mod line;
mod loss;
mod plans;
mod refusal;
mod survival;

use dwell::store::postgres::{Address, Postgres};

use crate::cluster::Cluster;
use crate::conformance::{Home, conforms};

/// A database of the shared server.
struct Database(String);

impl Database {
    fn address(&self) -> Address {
        Cluster::shared().url(&self.0).parse().unwrap()
    }

    /// What `psql` says there.
    fn sql(&self, sql: &str) -> String {
        Cluster::shared().sql(&self.0, sql)
    }
}

impl Home for Database {
    type Store = Postgres;

    async fn fresh() -> Self {
        Self(Cluster::shared().database())
    }

    async fn open(&self) -> Postgres {
        Postgres::open(&self.address()).await.unwrap()
    }
}

/// Why it cannot be opened.
async fn refusal(address: &Address) -> String {
    match Postgres::open(address).await {
        Ok(_) => panic!("{address} was opened"),
        Err(refusal) => refusal.0,
    }
}

mod every_store {
    use super::*;
    conforms!(Database);
}
