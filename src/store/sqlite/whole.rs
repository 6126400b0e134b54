//! All of a file's rows, in one transaction that keeps other writers out.

use std::path::{Path, PathBuf};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};

use super::error::sentence;
use super::schema::open_writer;
use crate::store::StoreError;
use crate::store::whole::{Kind, Row, Table, Value};

/// See [`crate::store::copy`].
pub(in crate::store) struct Whole {
    connection: Connection,
    file: PathBuf,
}

impl Whole {
    pub(in crate::store) fn open(file: &Path) -> Result<Self, StoreError> {
        let connection = open_writer(file)?;
        let begun = connection.execute_batch("BEGIN IMMEDIATE");
        begun.map_err(|error| sentence(file, &error))?;
        Ok(Self {
            connection,
            file: file.to_owned(),
        })
    }

    pub(in crate::store) fn count(&self, table: &Table) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", table.name);
        let count = self.connection.query_row(&sql, [], |row| row.get(0));
        count
            .map(i64::unsigned_abs)
            .map_err(|error| sentence(&self.file, &error))
    }

    pub(in crate::store) fn page(
        &self,
        table: &Table,
        after: Option<Value>,
        limit: Option<usize>,
    ) -> Result<Vec<Row>, StoreError> {
        let (name, names, (key, _)) = (table.name, table.names(), table.key());
        let wanted = after
            .as_ref()
            .map_or(String::new(), |_| format!("WHERE {key} > ?"));
        let limit = limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let sql = format!("SELECT {names} FROM {name} {wanted} ORDER BY {key} LIMIT {limit}");
        let read = || -> rusqlite::Result<Vec<Row>> {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params_from_iter(after), |row| {
                let columns = (0..).zip(table.columns);
                columns
                    .map(|(place, (_, kind))| value(row.get_ref(place)?, *kind))
                    .collect()
            })?;
            rows.collect()
        };
        read().map_err(|error| sentence(&self.file, &error))
    }

    pub(in crate::store) fn put(&self, table: &Table, rows: &[Row]) -> Result<(), StoreError> {
        let places = vec!["?"; table.columns.len()].join(", ");
        let (name, names) = (table.name, table.names());
        let sql = format!("INSERT INTO {name} ({names}) VALUES ({places})");
        let write = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(&sql)?;
            rows.iter()
                .try_for_each(|row| statement.execute(params_from_iter(row)).map(drop))
        };
        write().map_err(|error| sentence(&self.file, &error))
    }

    pub(in crate::store) fn commit(self) -> Result<(), StoreError> {
        let committed = self.connection.execute_batch("COMMIT");
        committed.map_err(|error| sentence(&self.file, &error))
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Id(id) => ValueRef::Blob(id),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn value(found: ValueRef<'_>, kind: Kind) -> rusqlite::Result<Value> {
    if matches!(found, ValueRef::Null) {
        return Ok(Value::Null);
    }
    let value = match kind {
        Kind::Id => found.as_blob().map(<[u8; 16]>::try_from).map(|id| {
            id.map(Value::Id)
                .map_err(rusqlite::types::FromSqlError::other)
        })?,
        Kind::Text | Kind::Json => found.as_str().map(|text| Value::Text(text.to_owned())),
        Kind::Integer => found.as_i64().map(Value::Integer),
        Kind::Bytes => found.as_blob().map(|bytes| Value::Bytes(bytes.to_owned())),
    };
    Ok(value?)
}
