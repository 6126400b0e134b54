//! A certificate with its key, and how long it is good.

use std::fmt;

use dwell_core::time::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::AcmeError;
use crate::clock;

/// A certificate with all that leads up to its root, and its key.
pub(super) struct Certificate {
    pub(super) certified: CertifiedKey,
    pub(super) life: Life,
}

impl Certificate {
    /// Of a key and certificates in PEM.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, AcmeError> {
        let wrong = |why: &dyn fmt::Display| AcmeError(format!("it cannot be read: {why}"));
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|why| wrong(&why))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let chain = chain.map_err(|why| wrong(&why))?;
        let first = chain.first().ok_or_else(|| wrong(&"there is none"))?;
        let life = Life::of(first)?;
        let certified = CertifiedKey::from_der(chain, key, &default_provider());
        let certified = certified.map_err(|why| wrong(&why))?;
        Ok(Self { certified, life })
    }
}

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    from: Timestamp,
    until: Timestamp,
}

impl Life {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, AcmeError> {
        let (_, read) = X509Certificate::from_der(certificate)
            .map_err(|why| AcmeError(format!("it cannot be read: {why}")))?;
        let validity = read.validity();
        let millis = |seconds: i64| Timestamp(seconds.saturating_mul(1_000));
        Ok(Self {
            from: millis(validity.not_before.timestamp()),
            until: millis(validity.not_after.timestamp()),
        })
    }

    /// With a third of its time left, as Let's Encrypt advises.
    pub(super) const fn renew_at(self) -> Timestamp {
        let (from, until) = (self.from.0, self.until.0);
        Timestamp(from.saturating_add(until.saturating_sub(from) / 3 * 2))
    }

    pub(super) const fn is_over(self, now: Timestamp) -> bool {
        now.0 > self.until.0
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "good until {}", clock::rfc3339(self.until))
    }
}

/// A new key, and the request to certify it for `name` (DER).
pub(super) fn request(name: &str) -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let request = params(name)?.serialize_request(&key)?;
    Ok((key, request.der().to_vec()))
}

/// What shows that `name` is this server's: the authority looks for `digest` in it.
pub(super) fn proof(name: &str, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
    let made = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = params(name)?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key)?;
        Ok((certificate.der().clone(), key.serialize_der()))
    };
    let wrong = |why: &dyn fmt::Display| AcmeError(format!("the proof cannot be made: {why}"));
    let (certificate, key) = made().map_err(|why| wrong(&why))?;
    let key = PrivatePkcs8KeyDer::from(key).into();
    let key = default_provider().key_provider.load_private_key(key);
    // Not `from_der`, which takes no certificate with a critical extension such as this.
    Ok(CertifiedKey::new(
        vec![certificate],
        key.map_err(|why| wrong(&why))?,
    ))
}

fn params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_with_a_third_of_its_time_left() {
        let day = 86_400_000;
        let life = Life {
            from: Timestamp(0),
            until: Timestamp(90 * day),
        };
        assert_eq!(life.renew_at(), Timestamp(60 * day));
        assert!(!life.is_over(Timestamp(90 * day)));
        assert!(life.is_over(Timestamp(90 * day + 1)));
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let certificate = params("gpu.test").unwrap().self_signed(&key).unwrap();
        let pem = |key: &KeyPair| key.serialize_pem() + &certificate.pem();
        assert!(Certificate::from_pem(pem(&key).as_bytes()).is_ok());
        assert!(Certificate::from_pem(pem(&other).as_bytes()).is_err());
        assert!(Certificate::from_pem(key.serialize_pem().as_bytes()).is_err());
    }
}
