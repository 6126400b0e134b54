//! TLS-ALPN-01 (RFC 8737) as an authority looks at it.

use std::net::SocketAddr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// Does who listens at `at` prove that `name` is its own?
pub async fn is_proven(at: SocketAddr, name: &str, authorization: &str) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let said = |what: &str| Err(format!("{name}: {what}"));
    let stream = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
    let server_name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect(server_name, stream)
        .await
        .map_err(|error| format!("{name}: no handshake: {error}"))?;
    let (_, tls) = stream.get_ref();
    if tls.alpn_protocol() != Some(b"acme-tls/1") {
        return said("another protocol was chosen");
    }
    let Some([shown]) = tls.peer_certificates() else {
        return said("not one certificate");
    };
    let shown = shown.clone();
    let (_, certificate) = X509Certificate::from_der(&shown).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    if names.value.general_names != [GeneralName::DNSName(name)] {
        return said("the certificate is for other names");
    }
    let identifier = certificate
        .extensions()
        .iter()
        .find(|it| it.oid.to_id_string() == ACME_IDENTIFIER);
    let Some(identifier) = identifier.filter(|it| it.critical) else {
        return said("no critical acmeIdentifier");
    };
    // An octet string of 32 bytes.
    let mut expected = vec![4, 32];
    expected.extend(digest(&SHA256, authorization.as_bytes()).as_ref());
    if identifier.value != expected {
        return said("another acmeIdentifier");
    }
    // Nothing is served here; a clean end is.
    match stream.read(&mut [0]).await {
        Ok(0) => Ok(()),
        Ok(_) => said("it speaks after the handshake"),
        Err(error) => said(&format!("no clean end: {error}")),
    }
}

/// Whoever it is, if the key is theirs: what is shown is looked at afterwards. Not by
/// webpki, which takes no certificate with a critical extension such as this.
#[derive(Debug)]
struct Anyone;

impl Anyone {
    fn verify(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
        let key = &certificate.public_key().subject_public_key.data;
        assert_eq!(signed.scheme, SignatureScheme::ECDSA_NISTP256_SHA256);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key)
            .verify(message, signed.signature())
            .map(|()| HandshakeSignatureValid::assertion())
            .map_err(|_| rustls::Error::General("the key is another's".to_owned()))
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
