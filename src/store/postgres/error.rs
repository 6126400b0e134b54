//! What Postgres says, as a sentence that names the server and the remedy.

use sqlx_core::Error;
use sqlx_postgres::{PgDatabaseError, PgSeverity};

use super::Address;
use crate::store::StoreError;

/// What went wrong, and what may be done about it without asking anybody.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    pub(super) sentence: StoreError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection is gone, or none could be had: another one may do.
    Lost,
    /// It collided with another transaction: it may do when tried again.
    Collided,
    /// What was asked for is refused; something else may not be.
    Refused,
    /// Nothing of the kind can be done as things are.
    Unable,
}

impl Trouble {
    /// What `error`, met at `address`, means.
    pub(super) fn of(address: &Address, error: &Error) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sqlx's list of errors is open; the rest is about rows"
        )]
        let (kind, what) = match error {
            Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => said(error),
                None => (Kind::Unable, format!("could not be used ({error})")),
            },
            Error::Io(_) | Error::Tls(_) | Error::Protocol(_) => (Kind::Lost, unreachable(error)),
            Error::Configuration(_) | Error::InvalidArgument(_) => {
                (Kind::Unable, format!("could not be used ({error})"))
            }
            Error::Encode(_) => (
                Kind::Refused,
                format!("was asked to keep what cannot be kept ({error})"),
            ),
            _ => (
                Kind::Refused,
                format!(
                    "has a row that cannot be read ({error}); was it written by another version \
                     of dwell?"
                ),
            ),
        };
        Self::at(address, kind, &what)
    }

    /// It does not answer.
    pub(super) fn silent(address: &Address) -> Self {
        Self::at(address, Kind::Lost, &unreachable(&"it does not answer"))
    }

    pub(super) fn at(address: &Address, kind: Kind, what: &str) -> Self {
        Self {
            kind,
            sentence: StoreError(format!("{address} {what}")),
        }
    }
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> Self {
        trouble.sentence
    }
}

/// Of these no more is heard, whatever the transaction was: the session is over.
pub(super) fn ends_session(error: &Error) -> bool {
    let said = error.as_database_error();
    said.and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_none_or(is_fatal)
}

fn is_fatal(error: &PgDatabaseError) -> bool {
    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

fn unreachable(why: &dyn std::fmt::Display) -> String {
    format!(
        "cannot be reached ({why}); see whether Postgres runs there and the network leads to it"
    )
}

/// By SQLSTATE, as the appendix of Postgres's manual lists them.
fn said(error: &PgDatabaseError) -> (Kind, String) {
    let message = error.message();
    let code = error.code();
    let unable = |what: &str| (Kind::Unable, what.to_owned());
    match code {
        "40001" | "40P01" => (
            Kind::Collided,
            format!("has others who write to it all the time ({message}); try again"),
        ),
        "25006" => unable(
            "is read-only: it is a standby, or was made so; name the primary, or let it be \
             written again",
        ),
        "28000" | "28P01" => (
            Kind::Unable,
            format!(
                "does not let us in ({message}); give the password by PGPASSWORD, PGPASSFILE or \
                 in the config file, and look at the server's pg_hba.conf"
            ),
        ),
        "3D000" => unable("is not there: make the database with createdb, or name another"),
        "42501" => (
            Kind::Unable,
            format!("does not allow it ({message}); make dwell's user the owner of the database"),
        ),
        "42P01" | "42703" | "3F000" => (
            Kind::Unable,
            format!("lacks something of dwell's ({message}); restore the database from a backup"),
        ),
        "42P07" => (
            Kind::Unable,
            format!(
                "has something else of a name that dwell needs ({message}); give dwell a database \
                 of its own"
            ),
        ),
        "53100" => {
            unable("could not be written: its disk is full; free some space there and try again")
        }
        "53300" => (
            Kind::Lost,
            format!("takes no more connections ({message}); raise max_connections there"),
        ),
        "55P03" => unable(
            "is locked by another session; look for it in pg_stat_activity, and try again when \
             that is done",
        ),
        "57014" => unable("took too long to answer and was told to stop; see what keeps it busy"),
        "57P04" => unable("was dropped; make the database anew, or name another"),
        "XX001" | "XX002" => (
            Kind::Unable,
            format!("is damaged ({message}); look at its disk, then restore it from a backup"),
        ),
        _ if is_fatal(error) || code.starts_with("08") || code.starts_with("57P") => {
            (Kind::Lost, unreachable(&message))
        }
        _ if code.starts_with("23") => (
            Kind::Refused,
            format!("refused what contradicts it ({message}); please report this as a bug"),
        ),
        _ => (Kind::Refused, format!("could not be used ({message})")),
    }
}
