//! How a command finds its server, and the key for it.

use std::path::PathBuf;

use crate::config::DEFAULT_LISTEN;
use crate::data_dir::DataDir;

/// What flags and `DWELL_…` say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `--url`.
    pub url: Option<String>,
    /// `--api-key`.
    pub api_key: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

/// A server, as far as one can know without asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub url: String,
    /// By what it knows us.
    pub key: Option<String>,
    /// How it was found.
    pub by: FoundBy,
}

/// How a server was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// Someone named its URL.
    Url,
    /// It holds the data directory.
    DataDir,
    /// Nobody named one: it may be where servers are by default.
    Default,
}

/// A data directory was named, but no server has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no server runs on the data directory {}; start one with `dwell serve --data-dir {}`", .0.0.display(), .0.0.display())]
pub struct NoServer(pub DataDir);

impl Wanted {
    /// The data directory that is meant: the one named, or the user's own.
    #[must_use]
    pub fn data_dir(&self) -> DataDir {
        self.data_dir
            .clone()
            .map_or_else(DataDir::default_for_user, DataDir)
    }

    /// The server that is meant: the one at the URL; or the one that holds the data
    /// directory; or, with neither named, the one at the default address.
    ///
    /// The admin key of a data directory goes to the server that holds it. To another
    /// URL it goes only if both were named together.
    ///
    /// # Errors
    /// When a data directory is named and no server holds it.
    pub fn find(&self) -> Result<Found, NoServer> {
        let data_dir = self.data_dir();
        let holder = data_dir.running_server();
        let admin_key = |trusted: bool| {
            let own = || data_dir.read_admin_key().filter(|_| trusted);
            self.api_key.clone().or_else(own)
        };
        match (&self.url, holder) {
            (Some(url), holder) => Ok(Found {
                url: url.clone(),
                key: admin_key(
                    self.data_dir.is_some() || holder.is_some_and(|held| same(&held.url, url)),
                ),
                by: FoundBy::Url,
            }),
            (None, Some(holder)) => Ok(Found {
                url: holder.url,
                key: admin_key(true),
                by: FoundBy::DataDir,
            }),
            (None, None) if self.data_dir.is_some() => Err(NoServer(data_dir)),
            (None, None) => Ok(Found {
                url: format!("http://{DEFAULT_LISTEN}"),
                key: self.api_key.clone(),
                by: FoundBy::Default,
            }),
        }
    }
}

/// Do two URLs name the same server?
fn same(a: &str, b: &str) -> bool {
    let plain = |url: &str| {
        url.trim_end_matches('/')
            .replacen("//localhost", "//127.0.0.1", 1)
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::{DataDirLock, ServerFile};

    /// A data directory with an admin key, and with a server if `url` says where.
    fn data_dir(url: Option<&str>) -> (tempfile::TempDir, Option<DataDirLock>) {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir(temp.path().to_owned());
        dir.create().unwrap();
        dir.write_admin_key("admin").unwrap();
        let lock = url.map(|url| {
            let url = url.to_owned();
            dir.write_server_file(&ServerFile { url, pid: 1 }).unwrap();
            dir.hold().unwrap()
        });
        (temp, lock)
    }

    #[test]
    fn a_data_directory_names_the_server_that_holds_it_and_its_key() {
        let (dir, _lock) = data_dir(Some("http://127.0.0.1:4000"));
        let mut wanted = Wanted {
            data_dir: Some(dir.path().to_owned()),
            ..Wanted::default()
        };
        let found = wanted.find().unwrap();
        assert_eq!(found.url, "http://127.0.0.1:4000");
        assert_eq!(found.key.as_deref(), Some("admin"));
        wanted.api_key = Some("mine".into());
        assert_eq!(wanted.find().unwrap().key.as_deref(), Some("mine"));
    }

    #[test]
    fn a_data_directory_without_a_server_is_said_to_have_none() {
        let (dir, _) = data_dir(None);
        let wanted = Wanted {
            data_dir: Some(dir.path().to_owned()),
            ..Wanted::default()
        };
        let refused = wanted.find().unwrap_err().to_string();
        assert!(refused.contains("dwell serve --data-dir"), "{refused}");
    }

    #[test]
    fn a_url_is_right_over_a_data_directory_whose_key_goes_along() {
        let (dir, _lock) = data_dir(Some("http://127.0.0.1:4000"));
        let wanted = Wanted {
            url: Some("http://gpu:1".into()),
            data_dir: Some(dir.path().to_owned()),
            api_key: None,
        };
        let found = wanted.find().unwrap();
        assert_eq!(found.url, "http://gpu:1");
        assert_eq!(found.key.as_deref(), Some("admin"));
    }

    #[test]
    fn localhost_is_the_same_server_by_either_name() {
        assert!(same("http://localhost:8080/", "http://127.0.0.1:8080"));
        assert!(!same("http://127.0.0.1:8080", "http://127.0.0.1:8081"));
    }
}
