//! Postgres keeps what every store promises, and what only a server can be asked for.

use dwell::store::postgres::{Address, Postgres};

use crate::cluster::Cluster;
use crate::conformance::{Home, conforms};

/// A database of the shared server.
struct Database(String);

impl Database {
    fn address(&self) -> Address {
        Cluster::shared().url(&self.0).parse().unwrap()
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

mod every_store {
    use super::*;
    conforms!(Database);
}
