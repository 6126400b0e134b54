//! What is said of ACME, and whether it goes with the rest.

use std::path::PathBuf;

use super::ConfigError;
use crate::acme::{Acme, LETS_ENCRYPT, Patience, check_authority};
use crate::session_urls::{Domain, Scheme};

/// What is said of ACME, by flags or by the file. See [`Acme`] for what each means.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each is what it is in Acme")]
pub struct AcmeSays {
    pub names: Vec<String>,
    pub email: Option<String>,
    pub directory: Option<String>,
    pub authority: Option<PathBuf>,
}

impl AcmeSays {
    /// Of flags and file together.
    pub(super) fn or(self, file: Self) -> Self {
        Self {
            names: if self.names.is_empty() {
                file.names
            } else {
                self.names
            },
            email: self.email.or(file.email),
            directory: self.directory.or(file.directory),
            authority: self.authority.or(file.authority),
        }
    }

    pub(super) fn resolve(self) -> Result<Option<Acme>, ConfigError> {
        let wrong = |sentence: String| ConfigError {
            place: None,
            sentence: format!("acme: {sentence}"),
        };
        if self.names.is_empty() {
            let is_said =
                self.email.is_some() || self.directory.is_some() || self.authority.is_some();
            return match is_said {
                true => Err(wrong(
                    "there is no name to get a certificate for; say one with --acme-name"
                        .to_owned(),
                )),
                false => Ok(None),
            };
        }
        if let Some(file) = &self.authority {
            check_authority(file).map_err(wrong)?;
        }
        let mut names = Vec::new();
        for name in self.names {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(Some(Acme {
            names,
            email: self.email,
            directory: self.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned()),
            authority: self.authority,
            patience: Patience::default(),
        }))
    }
}

/// Do these names go with where sessions are?
pub(super) fn check_names(
    acme: &Acme,
    domain: Option<&Domain>,
    session_host: Option<&str>,
    has_files: bool,
) -> Result<(), String> {
    match domain {
        Some(domain) => {
            let name = &domain.name;
            if domain
                .origin
                .is_some_and(|origin| origin.scheme == Scheme::Http)
            {
                return Err(format!(
                    "visitors of http://{name} speak in the clear; a certificate is of no use"
                ));
            }
            let is_sessions = |it: &&String| it.ends_with(&format!(".{name}"));
            if let Some(it) = acme.names.iter().find(is_sessions) {
                return Err(format!(
                    "every name under {name} is a session's, and {it} would stand in public logs; \
                     sessions need a certificate of *.{name}, which has files"
                ));
            }
            if !has_files {
                return Err(format!(
                    "sessions under {name} need a certificate of *.{name}, which ACME gives only \
                     to who proves it in DNS; get it elsewhere and name its files with \
                     --tls-certificate and --tls-key"
                ));
            }
        }
        None => {
            if let Some(host) = session_host
                && !has_files
                && !acme.names.contains(&host.to_ascii_lowercase())
            {
                return Err(format!(
                    "session URLs are of {host}, and there would be no certificate for it; say \
                     --acme-name {host} too"
                ));
            }
        }
    }
    Ok(())
}
