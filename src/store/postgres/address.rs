//! Where a Postgres database is, and as whom we come.

use std::fmt;
use std::str::FromStr;

use sqlx_core::connection::ConnectOptions;
use sqlx_core::url::Url;
use sqlx_postgres::PgConnectOptions;

/// A statement that takes longer has failed.
const STATEMENT_MAX: &str = "30s";
/// Whoever holds a lock that long is not waited for.
const LOCK_MAX: &str = "10s";
/// A transaction that was begun and whose client has vanished is undone after this.
const SILENCE_MAX: &str = "5s";

/// Where a Postgres database is, and as whom we come: `postgres://USER@HOST/DATABASE`.
/// What it does not say, `PGHOST`, `PGUSER`, `PGPASSWORD`, `PGPASSFILE` and their like do.
/// Shown without the password.
#[derive(Clone)]
pub struct Address {
    url: String,
    options: Box<PgConnectOptions>,
}

impl Address {
    /// How to connect.
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

impl FromStr for Address {
    type Err = String;

    /// The sentence never shows what was given: there may be a password in it.
    fn from_str(url: &str) -> Result<Self, String> {
        const LIKE: &str = "write it like postgres://USER@HOST/DATABASE";
        let wrong = |why: &dyn fmt::Display| format!("the Postgres URL is wrong ({why}); {LIKE}");
        let parsed: Url = url.parse().map_err(|why| wrong(&why))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(wrong(&"it does not begin with postgres://"));
        }
        let options: PgConnectOptions = url.parse().map_err(|why| wrong(&why))?;
        let limits = [
            ("statement_timeout", STATEMENT_MAX),
            ("lock_timeout", LOCK_MAX),
            ("idle_in_transaction_session_timeout", SILENCE_MAX),
        ];
        let named = options.get_application_name().is_some();
        let options = options.options(limits).disable_statement_logging();
        Ok(Self {
            url: url.to_owned(),
            options: Box::new(if named {
                options
            } else {
                options.application_name("dwell")
            }),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.options;
        let (user, port) = (at.get_username(), at.get_port());
        let database = at.get_database().unwrap_or(user);
        match at.get_socket() {
            Some(socket) => {
                let socket = socket.display();
                write!(f, "postgres://{user}@{socket}:{port}/{database}")
            }
            None => write!(f, "postgres://{user}@{}:{port}/{database}", at.get_host()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Address {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let with = "postgres://ann:secret@db.example.com:5433/dwell?sslmode=require";
        let address: Address = with.parse().unwrap();
        let shown = "postgres://ann@db.example.com:5433/dwell";
        assert_eq!(address.to_string(), shown);
        assert_eq!(format!("{address:?}"), shown);
        let wrong = [
            "postgres://ann:secret@db.example.com:port/dwell",
            "postgres://ann:secret@/dwell?sslmode=no",
            "postgres://ann:secret@[1/dwell",
            "mysql://ann:secret@host/dwell",
        ];
        for wrong in wrong {
            let sentence = wrong.parse::<Address>().unwrap_err();
            assert!(!sentence.contains("secret"), "{sentence}");
            assert!(sentence.contains("postgres://USER@HOST/DATABASE"));
        }
    }

    #[test]
    fn a_socket_is_named_by_its_directory() {
        let address: Address = "postgres://ann@localhost/dwell?host=/run/postgresql&port=1"
            .parse()
            .unwrap();
        assert_eq!(
            address.to_string(),
            "postgres://ann@/run/postgresql:1/dwell"
        );
    }
}
