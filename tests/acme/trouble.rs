//! Authorities that are down, refuse, or see no proof.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use dwell::acme::Patience;
use dwell::config::{AcmeSays, Config, Flags};
use dwell::server::{Server, ShutdownMode};
use tokio::net::TcpListener;

use crate::authority::{Authority, Mood};
use crate::visitor::{certificate, connect, get, soon};

const NAME: &str = "gpu.test";

/// A server in this process, which soon tries again what failed.
async fn serve(dir: &Path, ca: &Authority) -> (Server, SocketAddr) {
    let flags = Flags {
        listen: Some((Ipv4Addr::LOCALHOST, 0).into()),
        data_dir: Some(dir.to_owned()),
        acme: AcmeSays {
            names: vec![NAME.to_owned()],
            directory: Some(ca.directory()),
            authority: Some(ca.root_file()),
            ..AcmeSays::default()
        },
        ..Flags::default()
    };
    let mut config = Config::load(None, flags).unwrap();
    config.acme.as_mut().unwrap().patience = Patience {
        first: Duration::from_millis(20),
        most: Duration::from_millis(100),
    };
    let server = Server::start(config, None).await.unwrap();
    let at = server.url().strip_prefix("http://").unwrap();
    let at = at.parse().unwrap();
    (server, at)
}

async fn answers(at: SocketAddr) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let asked = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_down_or_refuses_is_asked_again_and_the_server_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    ca.set_mood(Mood::Down);
    let (server, at) = serve(dir.path(), &ca).await;
    ca.reaches(at);
    for mood in [Mood::Down, Mood::Broken, Mood::Refusing] {
        ca.set_mood(mood);
        // Several tries of several requests each.
        ca.is_asked(8).await;
        assert!(answers(at).await, "{mood:?}");
        assert!(connect(&ca, at, NAME, &[]).await.is_err(), "{mood:?}");
    }
    ca.set_mood(Mood::Well);
    certificate(&ca, at, NAME).await;
    assert!(get(&ca, at, NAME, "/openapi.json").await.contains(" 200 "));
    assert_eq!((ca.orders(), ca.accounts()), (1, 1));
    server.shutdown(ShutdownMode::LeaveSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_elsewhere_gets_no_certificate_until_it_leads_here() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let (server, at) = serve(dir.path(), &ca).await;
    // Somebody who hangs up.
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    ca.reaches(elsewhere.local_addr().unwrap());
    for _ in 0..2 {
        drop(soon(elsewhere.accept()).await.unwrap());
    }
    assert!(connect(&ca, at, NAME, &[]).await.is_err());
    assert!(answers(at).await);
    ca.reaches(at);
    drop(elsewhere);
    certificate(&ca, at, NAME).await;
    assert_eq!(ca.accounts(), 1);
    server.shutdown(ShutdownMode::LeaveSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_renewed_is_shown_as_long_as_there_is_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    ca.set_lifetime(Duration::from_secs(4));
    let (server, at) = serve(dir.path(), &ca).await;
    ca.reaches(at);
    let first = certificate(&ca, at, NAME).await;
    ca.set_mood(Mood::Refusing);
    ca.is_asked(8).await;
    assert_eq!(certificate(&ca, at, NAME).await, first);
    ca.set_lifetime(Duration::from_secs(86_400));
    // It has lost its books as well.
    ca.forget_accounts();
    ca.set_mood(Mood::Well);
    soon(async { while certificate(&ca, at, NAME).await == first {} }).await;
    assert_eq!(ca.accounts(), 1);
    server.shutdown(ShutdownMode::LeaveSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_certificate_that_is_spoilt_is_asked_for_anew() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let (server, at) = serve(dir.path(), &ca).await;
    ca.reaches(at);
    certificate(&ca, at, NAME).await;
    server.shutdown(ShutdownMode::LeaveSessions).await;
    // The next one listens elsewhere, and asks before that can be said.
    ca.reaches_nobody();
    let kept = std::fs::read_dir(dir.path().join("acme")).unwrap().next();
    let kept = kept.unwrap().unwrap().path().join("gpu.test.pem");
    std::fs::write(kept, "nothing").unwrap();
    let (server, at) = serve(dir.path(), &ca).await;
    ca.reaches(at);
    certificate(&ca, at, NAME).await;
    assert_eq!((ca.orders(), ca.accounts()), (2, 1));
    server.shutdown(ShutdownMode::LeaveSessions).await;
}
