//! What is kept for the next start: the account, and the certificates with their keys.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;

use super::AcmeError;
use super::certificate::Certificate;
use crate::data_dir::write_atomically;

/// Of one authority: what another has given is not shown in its place.
pub(super) struct Kept(PathBuf);

impl Kept {
    pub(super) fn new(under: PathBuf, directory: &str) -> Self {
        let url = directory.trim_start_matches("https://");
        let is_plain = |it: char| it.is_ascii_alphanumeric() || it == '.' || it == '-';
        Self(under.join(url.replace(|it| !is_plain(it), "_")))
    }

    pub(super) fn account(&self) -> Result<Option<AccountCredentials>, AcmeError> {
        let file = self.account_file();
        let Some(bytes) = read(&file)? else {
            return Ok(None);
        };
        let account = serde_json::from_slice(&bytes);
        account
            .map(Some)
            .map_err(|why| AcmeError(format!("{} cannot be read: {why}", file.display())))
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> Result<(), AcmeError> {
        let file = self.account_file();
        let bytes = serde_json::to_vec(account).map_err(|why| unwritable(&file, &why.into()))?;
        self.write(&file, &bytes)
    }

    pub(super) fn forget_account(&self) {
        // If it stays, the authority says the same at the next try.
        drop(fs::remove_file(self.account_file()));
    }

    pub(super) fn certificate(&self, name: &str) -> Result<Option<Certificate>, AcmeError> {
        let file = self.certificate_file(name);
        let Some(pem) = read(&file)? else {
            return Ok(None);
        };
        let certificate = Certificate::from_pem(&pem);
        certificate
            .map(Some)
            .map_err(|AcmeError(why)| AcmeError(format!("{}: {why}", file.display())))
    }

    /// Key and certificates in one file, so that they always belong together.
    pub(super) fn keep_certificate(&self, name: &str, pem: &str) -> Result<(), AcmeError> {
        self.write(&self.certificate_file(name), pem.as_bytes())
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> Result<(), AcmeError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .and_then(|()| write_atomically(file, bytes, 0o600))
            .map_err(|why| unwritable(file, &why))
    }

    fn account_file(&self) -> PathBuf {
        self.0.join("account.json")
    }

    fn certificate_file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }
}

fn read(file: &Path) -> Result<Option<Vec<u8>>, AcmeError> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(AcmeError(format!(
            "{} cannot be read: {why}",
            file.display()
        ))),
    }
}

fn unwritable(file: &Path, why: &io::Error) -> AcmeError {
    AcmeError(format!("{} cannot be written: {why}", file.display()))
}
