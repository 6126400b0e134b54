//! SQLite keeps what every store promises, and what only a file can be asked for.

mod file;
mod refusal;
mod survival;

use std::path::PathBuf;

use dwell::store::sqlite::Sqlite;

use crate::conformance::{Home, conforms};

struct Directory(tempfile::TempDir);

impl Directory {
    fn file(&self) -> PathBuf {
        self.0.path().join("store.db")
    }
}

impl Home for Directory {
    type Store = Sqlite;

    async fn fresh() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> Sqlite {
        Sqlite::open(&self.file()).unwrap()
    }
}

mod every_store {
    use super::*;
    conforms!(Directory);
}
