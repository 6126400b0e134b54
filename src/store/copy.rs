//! A store copied into another, whichever kinds they are: all of it or nothing.

use std::path::{Path, PathBuf};

use super::StoreError;
use super::postgres::{self, Address};
use super::sqlite;
use super::whole::{Kind, Row, TABLES, Table, Value};
use crate::data_dir::{DataDir, DataDirLock};

/// So many rows are in memory at once.
const PAGE: usize = 1_000;

/// What is copied from, or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An SQLite file.
    File(PathBuf),
    /// A Postgres database.
    Postgres(Address),
}

impl Place {
    /// A data directory, an SQLite file, or a `postgres://` URL.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return text.parse().map(Self::Postgres);
        }
        if text.contains("://") {
            return Err(
                "there is no such store; name a data directory, an SQLite file or a \
                        postgres:// URL"
                    .to_owned(),
            );
        }
        let path = PathBuf::from(text);
        let is_file = path.is_file() || path.extension().is_some_and(|end| end == "db");
        Ok(Self::File(if is_file {
            path
        } else {
            DataDir(path).store()
        }))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Postgres(address) => write!(f, "{address}"),
        }
    }
}

/// How far it is: so many of so many rows have been written or compared.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Copies all that is on record at `from` to `to`, where nothing may be. Nobody else can
/// write to either meanwhile. How many rows there were.
///
/// # Errors
/// When a server uses either, something is on record at `to` already, or one of them
/// cannot be read or written. Then nothing is on record at `to`.
pub async fn copy(from: &Place, to: &Place, progress: Progress<'_>) -> Result<u64, StoreError> {
    if let Place::File(file) = from
        && !file.is_file()
    {
        let file = file.display();
        return Err(StoreError(format!("{file} is not there; name a store")));
    }
    let mut source = Whole::open(from).await?;
    let mut target = Whole::open(to).await?;
    let mut rows = 0;
    for table in TABLES {
        rows += source.count(table).await?;
        if target.count(table).await? > 0 {
            return Err(StoreError(format!(
                "{to} has something on record ({}); name an empty store",
                table.name
            )));
        }
    }
    let mut done = 0;
    for table in TABLES {
        let mut pages = Pages::of(table);
        while let Some(page) = pages.next(&mut source).await? {
            target.put(table, &page).await?;
            done += page.len() as u64;
            progress(done, 2 * rows);
        }
    }
    // What was written is read back, before it counts.
    for table in TABLES {
        let (mut ours, mut theirs) = (Pages::of(table), Pages::of(table));
        loop {
            let page = ours.next(&mut source).await?;
            if page != theirs.next(&mut target).await? {
                return Err(StoreError(format!(
                    "{to} does not give back what was written to it ({}); nothing was copied",
                    table.name
                )));
            }
            let Some(page) = page else { break };
            done += page.len() as u64;
            progress(done, 2 * rows);
        }
    }
    target.commit().await?;
    Ok(rows)
}

/// A table's rows, a page at a time in the order of what they are known by.
struct Pages<'a> {
    table: &'a Table,
    after: Option<Value>,
    over: bool,
}

impl<'a> Pages<'a> {
    const fn of(table: &'a Table) -> Self {
        Self {
            table,
            after: None,
            over: false,
        }
    }

    async fn next(&mut self, of: &mut Whole) -> Result<Option<Vec<Row>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        // Texts are not in the same order everywhere; what is known by one is not much.
        let is_ordered = self.table.key().1 == Kind::Id;
        let limit = is_ordered.then_some(PAGE);
        let mut page = of.page(self.table, self.after.take(), limit).await?;
        if !is_ordered {
            page.sort();
        }
        self.over = page.len() < PAGE || !is_ordered;
        self.after = page.last().and_then(|row| row.first()).cloned();
        Ok((!page.is_empty()).then_some(page))
    }
}

/// A store that nobody else can write to, in a transaction.
enum Whole {
    Sqlite(sqlite::Whole, Option<DataDirLock>),
    Postgres(Box<postgres::Whole>),
}

impl Whole {
    async fn open(place: &Place) -> Result<Self, StoreError> {
        match place {
            Place::File(file) => {
                let lock = hold_directory(file)?;
                Ok(Self::Sqlite(sqlite::Whole::open(file)?, lock))
            }
            Place::Postgres(address) => {
                let store = postgres::Whole::open(address).await?;
                Ok(Self::Postgres(Box::new(store)))
            }
        }
    }

    async fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(store, _) => store.count(table),
            Self::Postgres(store) => store.count(table).await,
        }
    }

    async fn page(
        &mut self,
        table: &Table,
        after: Option<Value>,
        limit: Option<usize>,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite(store, _) => store.page(table, after, limit),
            Self::Postgres(store) => store.page(table, after, limit).await,
        }
    }

    async fn put(&mut self, table: &Table, rows: &[Row]) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store, _) => store.put(table, rows),
            Self::Postgres(store) => store.put(table, rows).await,
        }
    }

    async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store, _lock) => store.commit(),
            Self::Postgres(store) => store.commit().await,
        }
    }
}

/// The lock that a server would have, if `file` is that of a data directory.
fn hold_directory(file: &Path) -> Result<Option<DataDirLock>, StoreError> {
    let refused = |error: crate::data_dir::DataDirError| StoreError(error.to_string());
    match file.parent() {
        Some(dir) if DataDir(dir.to_owned()).store() == file => {
            let dir = DataDir(dir.to_owned());
            dir.create().map_err(refused)?;
            dir.hold().map(Some).map_err(refused)
        }
        _ => Ok(None),
    }
}
