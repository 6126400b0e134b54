//! All of a database's rows, in one transaction while nobody else can write.

use sqlx_core::Error;
use sqlx_core::query::{query, query_with};
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::row::Row as _;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::{PgArguments, PgConnection, PgRow};
use uuid::Uuid;

use super::columns::{text, untext};
use super::error::Trouble;
use super::queries::And;
use super::{Address, lease, schema};
use crate::store::StoreError;
use crate::store::whole::{Kind, Row, Table, Value};

/// See [`crate::store::copy`].
pub(in crate::store) struct Whole {
    connection: PgConnection,
    address: Address,
}

impl Whole {
    pub(in crate::store) async fn open(address: &Address) -> Result<Self, StoreError> {
        let trouble = |error| Trouble::of(address, &error).sentence;
        let mut connection = schema::connect_alone(address).await?;
        schema::migrate(address, &mut connection).await?;
        // A server that lost its connection is not to go on where it was.
        lease::take(&mut connection, None)
            .await
            .map_err(trouble)?
            .ok();
        // Many rows take a while.
        raw_sql("SET statement_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut connection)
            .await
            .map_err(trouble)?;
        Ok(Self {
            connection,
            address: address.clone(),
        })
    }

    pub(in crate::store) async fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {}", table.name));
        let count: Result<i64, _> = query_scalar(sql).fetch_one(&mut self.connection).await;
        count
            .map(i64::unsigned_abs)
            .map_err(|error| self.sentence(&error))
    }

    pub(in crate::store) async fn page(
        &mut self,
        table: &Table,
        after: Option<Value>,
        limit: Option<usize>,
    ) -> Result<Vec<Row>, StoreError> {
        let (name, names, (key, _)) = (table.name, table.names(), table.key());
        let mut arguments = PgArguments::default();
        let mut wanted = String::new();
        if let Some(Value::Id(id)) = after {
            wanted = format!("WHERE {key} > $1");
            arguments = arguments.and(Uuid::from_bytes(id))?;
        }
        let limit = limit.map_or("ALL".to_owned(), |limit| limit.to_string());
        let sql = format!("SELECT {names} FROM {name} {wanted} ORDER BY {key} LIMIT {limit}");
        let rows = query_with(AssertSqlSafe(sql), arguments)
            .fetch_all(&mut self.connection)
            .await;
        let rows = rows.map_err(|error| self.sentence(&error))?;
        let rows: Result<_, _> = rows.iter().map(|row| values(row, table)).collect();
        rows.map_err(|error| self.sentence(&error))
    }

    pub(in crate::store) async fn put(
        &mut self,
        table: &Table,
        rows: &[Row],
    ) -> Result<(), StoreError> {
        let mut arguments = PgArguments::default();
        let mut places = Vec::new();
        for (place, (_, kind)) in table.columns.iter().enumerate() {
            let column = rows
                .iter()
                .map(|row| row.get(place).unwrap_or(&Value::Null));
            let kind_of_column;
            (arguments, kind_of_column) = bind(arguments, *kind, column)?;
            places.push(format!("${}::{kind_of_column}[]", place + 1));
        }
        let (name, names, places) = (table.name, table.names(), places.join(", "));
        let sql = format!("INSERT INTO {name} ({names}) SELECT * FROM unnest({places})");
        let put = query_with(AssertSqlSafe(sql), arguments)
            .execute(&mut self.connection)
            .await;
        put.map(drop).map_err(|error| self.sentence(&error))
    }

    pub(in crate::store) async fn commit(mut self) -> Result<(), StoreError> {
        let committed = raw_sql("COMMIT").execute(&mut self.connection).await;
        committed.map_err(|error| self.sentence(&error))?;
        // Plans for what is there now and was not before.
        let analyzed = query("ANALYZE").execute(&mut self.connection).await;
        analyzed.map(drop).map_err(|error| self.sentence(&error))
    }

    fn sentence(&self, error: &Error) -> StoreError {
        Trouble::of(&self.address, error).sentence
    }
}

/// One more argument, a column; and what Postgres calls its type.
fn bind<'a>(
    arguments: PgArguments,
    kind: Kind,
    column: impl Iterator<Item = &'a Value>,
) -> Result<(PgArguments, &'static str), StoreError> {
    let (mut ids, mut texts, mut numbers, mut bytes) = (vec![], vec![], vec![], vec![]);
    for value in column {
        match (kind, value) {
            (_, Value::Null) => {
                ids.push(None);
                texts.push(None);
                numbers.push(None);
                bytes.push(None);
            }
            (_, Value::Id(id)) => ids.push(Some(Uuid::from_bytes(*id))),
            (Kind::Text, Value::Text(found)) => texts.push(Some(text(found))),
            (_, Value::Text(found)) => texts.push(Some(found.clone())),
            (_, Value::Integer(number)) => numbers.push(Some(*number)),
            (_, Value::Bytes(found)) => bytes.push(Some(found.clone())),
        }
    }
    Ok(match kind {
        Kind::Id => (arguments.and(ids)?, "uuid"),
        Kind::Text | Kind::Json => (arguments.and(texts)?, "text"),
        Kind::Integer => (arguments.and(numbers)?, "bigint"),
        Kind::Bytes => (arguments.and(bytes)?, "bytea"),
    })
}

fn values(row: &PgRow, table: &Table) -> Result<Row, Error> {
    let columns = table.columns.iter().enumerate();
    columns
        .map(|(place, (_, kind))| {
            let value = match kind {
                Kind::Id => row
                    .try_get::<Option<Uuid>, _>(place)?
                    .map(|id| Value::Id(id.into_bytes())),
                Kind::Text => row
                    .try_get::<Option<&str>, _>(place)?
                    .map(|column| Value::Text(untext(column))),
                Kind::Json => row.try_get::<Option<_>, _>(place)?.map(Value::Text),
                Kind::Integer => row.try_get::<Option<_>, _>(place)?.map(Value::Integer),
                Kind::Bytes => row.try_get::<Option<_>, _>(place)?.map(Value::Bytes),
            };
            Ok(value.unwrap_or(Value::Null))
        })
        .collect()
}
