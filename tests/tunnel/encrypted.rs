//! The whole of it: names under a domain, TLS for visitors and for agents, HTTP/2.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::far::{Way, address, is_echoed, url_of};
use crate::harness::{PATIENCE, Server, app};

const DOMAIN: &str = "gpu.test";

/// A certificate that the server has, and visitors and agents trust.
struct Known {
    roots: RootCertStore,
}

impl Known {
    fn to_files_in(dir: &Path, hosts: &[String]) -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(hosts).unwrap();
        std::fs::write(dir.join("certificate.pem"), cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        Self { roots }
    }

    async fn connect(&self, at: SocketAddr, host: &str, protocol: &str) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let stream = TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_elsewhere_has_a_name_and_nothing_passes_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    let way = Way::new().await;
    let hosts = [format!("*.{DOMAIN}"), way.subnet.ours().to_string()];
    let known = Known::to_files_in(dir.path(), &hosts);
    let file = |name| dir.path().join(name).display().to_string();
    let (certificate, key) = (file("certificate.pem"), file("key.pem"));
    let config = way.config(
        "https",
        &format!("server_certificate = \"{certificate}\"\n"),
    );
    let more = [
        "--domain",
        DOMAIN,
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
    ];
    let server = Server::spawn(&dir.path().join("data"), &config, "127.0.0.1:0", &more);
    let at = address(&server.api.url);
    way.relay.lead_to(at);
    let id = server.api.create(app("streams.py")).await;
    let url = url_of(&server.api.running(&id).await);
    let host = url.strip_prefix("https://").unwrap().trim_end_matches('/');
    let (host, port) = host.split_once(':').unwrap();
    assert_eq!(port, at.port().to_string());
    assert!(host.ends_with(&format!(".{DOMAIN}")), "{url}");

    let stream = known.connect(at, host, "h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::get(&url).body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let content = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(content, "hello");

    let stream = known.connect(at, host, "http/1.1").await;
    let asked = format!("wss://{host}:{port}/");
    let (mut socket, _) = tokio_tungstenite::client_async(asked, stream)
        .await
        .unwrap();
    is_echoed(&mut socket, "through it all").await;

    server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_speaks_to_no_server_that_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let way = Way::new().await;
    let hosts = [way.subnet.ours().to_string()];
    let (own, others) = (dir.path().join("own"), dir.path().join("others"));
    for place in [&own, &others] {
        std::fs::create_dir(place).unwrap();
        Known::to_files_in(place, &hosts);
    }
    let file = |place: &Path, name| place.join(name).display().to_string();
    let trusted = file(&others, "certificate.pem");
    let config = way.config("https", &format!("server_certificate = \"{trusted}\"\n"));
    let (certificate, key) = (file(&own, "certificate.pem"), file(&own, "key.pem"));
    let more = ["--tls-certificate", &certificate, "--tls-key", &key];
    let server = Server::spawn(&dir.path().join("data"), &config, "127.0.0.1:0", &more);
    way.relay.lead_to(address(&server.api.url));
    let id = server.api.create(app("streams.py")).await;
    // It calls again and again, and is heard by nobody.
    let called = async {
        while way.relay.count() < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, called).await.unwrap();
    assert_eq!(server.api.session(&id).await["status"], "starting");
}
