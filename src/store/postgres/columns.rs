//! How what the core has becomes columns, and comes back.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx_core::Error;
use sqlx_core::row::Row;
use sqlx_postgres::PgRow;

/// A `body`.
pub(super) fn json(body: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(body).map_err(|why| Error::Encode(Box::new(why)))
}

/// The row's first column, a `body`.
pub(super) fn body<T: DeserializeOwned>(row: &PgRow) -> Result<T, Error> {
    serde_json::from_str(row.try_get(0)?).map_err(|why| Error::Decode(Box::new(why)))
}

/// A text to find rows by. Postgres has no zero character.
pub(super) fn text(text: &str) -> String {
    text.replace('\\', r"\\").replace('\0', r"\0")
}

/// What [`text`] was made of.
pub(super) fn untext(column: &str) -> String {
    let mut text = String::with_capacity(column.len());
    let mut characters = column.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(match characters.next() {
                Some('0') => '\0',
                Some(other) => other,
                None => '\\',
            }),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_comes_back(original in "(\\PC|[\\\\0\0])*") {
            let column = text(&original);
            prop_assert!(!column.contains('\0'));
            prop_assert_eq!(untext(&column), original);
        }
    }
}
