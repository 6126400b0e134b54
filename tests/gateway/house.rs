//! A gateway that has one listener for all: sessions by their names, and the API.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use dwell::admission::Admission;
use dwell::gateway::{Desk, Gateway, Open, RouteStatus, Settings, TimeLimits, Tls};
use dwell::keys::SlugSecret;
use dwell::session_urls::{Origin, Scheme, SessionUrls};
use dwell_core::id::SessionId;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use crate::support::*;

/// The domain of all houses.
pub const DOMAIN: &str = "gpu.test";

/// How a house is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// In the clear.
    Clear,
    /// In the clear, behind something that takes TLS off.
    Proxy,
    /// By TLS.
    Tls,
}

pub struct House {
    pub gateway: Gateway,
    pub admission: Admission,
    pub at: SocketAddr,
    pub certificate: Certificate,
    urls: SessionUrls,
    _open: Open,
}

impl House {
    pub async fn new(front: Front) -> Self {
        Self::with(front, TimeLimits::default()).await
    }

    pub async fn with(front: Front, limits: TimeLimits) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let origin = match front {
            Front::Clear => Origin {
                scheme: Scheme::Http,
                port: at.port(),
            },
            Front::Proxy | Front::Tls => Origin {
                scheme: Scheme::Https,
                port: 443,
            },
        };
        let urls = SessionUrls::names(DOMAIN, origin, SlugSecret::new([7; 32]));
        let certificate = Certificate::new();
        let tls = (front == Front::Tls).then(|| certificate.tls());
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().keep_fresh(Duration::from_millis(10)));
        }
        let settings = Settings {
            urls: urls.clone(),
            limits,
            tls,
            ..Settings::ports(Ipv4Addr::LOCALHOST.into())
        };
        let admission = admission();
        let gateway = Gateway::with(settings, admission.clone(), HashMap::new());
        let desk = Desk::new(Router::new().fallback(async || "the API"));
        let open = gateway.receive(listener, desk).await.unwrap();
        Self {
            gateway,
            admission,
            at,
            certificate,
            urls,
            _open: open,
        }
    }

    /// A house in which session 1 runs, whose app this is, and that session's host.
    pub async fn of(front: Front, app: SocketAddr) -> (Self, String) {
        let house = Self::new(front).await;
        let host = house.publish(1, running(app)).await;
        (house, host)
    }

    /// Session `number` is so far; returns its host.
    pub async fn publish(&self, number: u128, status: RouteStatus) -> String {
        let published = self.gateway.publish(0, route(number, status)).await;
        published.expect("a name needs nothing");
        let url = self.urls.url(SessionId(Uuid::from_u128(number)), 0);
        url.split_once("://").unwrap().1.to_owned()
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    pub async fn visitor(&self) -> Visitor {
        visitor(self.connect().await).await
    }

    /// What comes back for these very bytes until the connection is closed.
    pub async fn raw(&self, bytes: &str) -> String {
        raw(self.connect().await, bytes).await
    }

    /// A connection encrypted, on which one of these protocols is spoken.
    pub async fn tls(&self, protocols: &[&str]) -> TlsStream<TcpStream> {
        self.try_tls(protocols, &self.certificate).await.unwrap()
    }

    /// The same for who trusts `trusted` alone.
    pub async fn try_tls(
        &self,
        protocols: &[&str],
        trusted: &Certificate,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        encrypted(self.connect().await, protocols, trusted).await
    }

    /// A connection by HTTP/2 of who has room for hardly anything that it is sent.
    pub async fn tls_of_no_room(&self) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1_024).unwrap();
        let stream = socket.connect(self.at).await.unwrap();
        encrypted(stream, &["h2"], &self.certificate).await.unwrap()
    }

    /// A visitor that speaks HTTP/2.
    pub async fn http2(&self) -> SendRequest<Body> {
        let stream = TokioIo::new(self.tls(&["h2"]).await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn encrypted(
    stream: TcpStream,
    protocols: &[&str],
    trusted: &Certificate,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(format!("any.{DOMAIN}")).unwrap();
    soon(connector.connect(name, stream)).await
}

/// A certificate of the domain and its names, signed by itself, and its files.
pub struct Certificate {
    folder: tempfile::TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let der = write(folder.path());
        Self { folder, der }
    }

    fn tls(&self) -> Tls {
        let file = |name| self.folder.path().join(name);
        Tls::from_files(&file("certificate.pem"), &file("key.pem")).unwrap()
    }

    /// Another one takes its place, in the same files; returned is the one before.
    pub fn renew(&mut self) -> CertificateDer<'static> {
        let new = write(self.folder.path());
        std::mem::replace(&mut self.der, new)
    }

    /// The file has nothing to read.
    pub fn spoil(&self) {
        std::fs::write(self.folder.path().join("certificate.pem"), "nothing").unwrap();
    }
}

fn write(folder: &std::path::Path) -> CertificateDer<'static> {
    let names = vec![DOMAIN.to_owned(), format!("*.{DOMAIN}")];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("certificate.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}
