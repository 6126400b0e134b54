//! All rows of a store, as columns: what is copied from one kind of store to another.

/// What a column holds. Each kind of store has its own way to hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Id,
    /// Any text, to find rows by.
    Text,
    /// A `body`.
    Json,
    Integer,
    Bytes,
}

/// One value. Which it may be follows from the column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Null,
    Id([u8; 16]),
    Text(String),
    Integer(i64),
    Bytes(Vec<u8>),
}

/// One row.
pub(super) type Row = Vec<Value>;

/// A table, and its columns. The first of them is what a row is known by.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// Its columns' names, with commas.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// What its rows are known by.
    pub(super) fn key(&self) -> (&'static str, Kind) {
        self.columns.first().copied().unwrap_or(("id", Kind::Id))
    }
}

/// All tables of the newest schema, those first that others refer to. Who writes now
/// (`leadership`) is no record.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "meta",
        columns: &[("name", Kind::Text), ("value", Kind::Bytes)],
    },
    Table {
        name: "sessions",
        columns: &[
            ("id", Kind::Id),
            ("owner", Kind::Text),
            ("machine_id", Kind::Id),
            ("gpu_type", Kind::Text),
            ("created_at", Kind::Integer),
            ("ticket", Kind::Integer),
            ("ended_at", Kind::Integer),
            ("held_from", Kind::Integer),
            ("held_until", Kind::Integer),
            ("body", Kind::Json),
        ],
    },
    Table {
        name: "gpus",
        columns: &[("id", Kind::Text), ("free_since", Kind::Integer)],
    },
    Table {
        name: "machines",
        columns: &[
            ("id", Kind::Id),
            ("owner", Kind::Text),
            ("created_at", Kind::Integer),
            ("body", Kind::Json),
        ],
    },
    Table {
        name: "machine_versions",
        columns: &[
            ("id", Kind::Id),
            ("machine_id", Kind::Id),
            ("version", Kind::Integer),
            ("body", Kind::Json),
        ],
    },
    Table {
        name: "keys",
        columns: &[
            ("id", Kind::Id),
            ("owner", Kind::Text),
            ("created_at", Kind::Integer),
            ("body", Kind::Json),
        ],
    },
    Table {
        name: "shares",
        columns: &[
            ("id", Kind::Id),
            ("owner", Kind::Text),
            ("session_id", Kind::Id),
            ("created_at", Kind::Integer),
            ("body", Kind::Json),
        ],
    },
];
