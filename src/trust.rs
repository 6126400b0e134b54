//! Whom this program trusts when it is the client.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Knows a server by the certificates in this PEM file or those that they have signed, or
/// else by one that the web trusts.
///
/// # Errors
/// When the file cannot be read, or something in it is no certificate.
pub fn client_config(certificates: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match certificates {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
            let found = CertificateDer::pem_file_iter(file).map_err(|why| wrong(&why))?;
            for certificate in found {
                let certificate = certificate.map_err(|why| wrong(&why))?;
                roots.add(certificate).map_err(|why| wrong(&why))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"there is no certificate in it"));
            }
        }
    }
    Ok(
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}
