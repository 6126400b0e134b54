//! The whole of it: names under a domain, TLS for visitors and for agents, HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Request;
use hyper::body::{Bytes, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::far::{Way, address, is_echoed, url_of};
use crate::harness::{PATIENCE, Server, app, memory};

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

/// A server whose sessions have names, and are elsewhere; nothing passes in the clear.
struct Encrypted {
    server: Server,
    at: SocketAddr,
    known: Known,
    _way: Way,
    _dir: TempDir,
}

impl Encrypted {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let way = Way::new().await;
        let hosts = [format!("*.{DOMAIN}"), way.subnet.ours().to_string()];
        let known = Known::to_files_in(dir.path(), &hosts);
        let file = |name| dir.path().join(name).display().to_string();
        let (certificate, key) = (file("certificate.pem"), file("key.pem"));
        let trusted = format!("server_certificate = \"{certificate}\"\n");
        let config = way.config("https", &trusted);
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
        Self {
            server,
            at,
            known,
            _way: way,
            _dir: dir,
        }
    }

    /// A session of this app, its URL, and its host.
    async fn session(&self, name: &str) -> (String, String, String) {
        let id = self.server.api.create(app(name)).await;
        let url = url_of(&self.server.api.running(&id).await);
        let host = url.strip_prefix("https://").unwrap().trim_end_matches('/');
        let (host, port) = host.split_once(':').unwrap();
        assert_eq!(port, self.at.port().to_string());
        assert!(host.ends_with(&format!(".{DOMAIN}")), "{url}");
        let host = host.to_owned();
        (id, url, host)
    }

    async fn http2<B>(&self, host: &str) -> SendRequest<B>
    where
        B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
    {
        let stream = self.known.connect(self.at, host, "h2").await;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn end(&self, id: String) {
        self.server.api.stop(&id).await;
        self.server.nothing_is_left(&[id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_elsewhere_has_a_name_and_nothing_passes_in_the_clear() {
    let house = Encrypted::new().await;
    let (id, url, host) = house.session("streams.py").await;
    let mut sender = house.http2(&host).await;
    let request = Request::get(&url).body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let content = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(content, "hello");

    let stream = house.known.connect(house.at, &host, "http/1.1").await;
    let asked = format!("wss://{host}:{}/", house.at.port());
    let (mut socket, _) = tokio_tungstenite::client_async(asked, stream)
        .await
        .unwrap();
    is_echoed(&mut socket, "through it all").await;
    house.end(id).await;
}

/// By HTTP/2 to the server, and through the agent's channels: what neither keeps.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_and_are_not_kept() {
    const LARGE: u64 = 1 << 30;
    let house = Encrypted::new().await;
    let (id, url, host) = house.session("large.py").await;
    let agent = house.server.agent_of(&id);
    let processes = [&[house.server.pid()], &agent[..]].concat();
    let before: Vec<u64> = processes.iter().copied().map(memory::forget_most).collect();

    let chunk = Bytes::from(vec![7; 1 << 16]);
    let chunks = (0..LARGE >> 16).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone())));
    let up = StreamBody::new(futures_util::stream::iter(chunks)).boxed();
    let up = Request::post(&url).header("content-length", LARGE).body(up);
    let down = Full::<Bytes>::default().boxed();
    let down = Request::get(format!("{url}/{LARGE}")).body(down);
    let mut sender = house.http2(&host).await;
    let up = sender.send_request(up.unwrap());
    let down = sender.send_request(down.unwrap()).await.unwrap();
    let read = async {
        let (mut body, mut read) = (down.into_body(), 0);
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len() as u64;
        }
        read
    };
    let (said, read) = tokio::join!(up, read);
    assert_eq!(read, LARGE);
    let said = said.unwrap().into_body().collect().await.unwrap();
    assert_eq!(said.to_bytes(), LARGE.to_string());

    for (pid, before) in processes.into_iter().zip(before) {
        let after = memory::most_kib(pid);
        assert!(
            after < before + (16 << 10),
            "{before} KiB became {after} KiB"
        );
    }
    house.end(id).await;
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
