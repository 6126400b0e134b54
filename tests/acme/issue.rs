//! A server gets its certificates, keeps them and renews them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::authority::Authority;
use crate::harness::{ROOMY, Server, app};
use crate::visitor::{certificate, connect, get, soon};

const NAME: &str = "gpu.test";

/// `dwell serve` that asks `ca` for a certificate for `names`.
fn serve(dir: &Path, ca: &Authority, names: &str) -> Server {
    let (directory, root) = (ca.directory(), ca.root_file());
    let more = [
        "--acme-name",
        names,
        "--acme-email",
        "ada@example.com",
        "--acme-directory",
        &directory,
        "--acme-ca",
        root.to_str().unwrap(),
    ];
    let server = Server::spawn(dir, ROOMY, "127.0.0.1:0", &more);
    ca.reaches(at(&server));
    server
}

fn at(server: &Server) -> std::net::SocketAddr {
    let url = &server.api.url;
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// All files under `dir` but directories, and their modes.
fn files(dir: &Path) -> Vec<(String, u32)> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().permissions().mode() & 0o777)
        })
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_gets_its_certificate_and_its_sessions_have_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let server = serve(dir.path(), &ca, NAME);
    certificate(&ca, at(&server), NAME).await;
    let answer = get(&ca, at(&server), NAME, "/openapi.json").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let id = server.api.create(app("streams.py")).await;
    let session = server.api.running(&id).await;
    let url = session["url"].as_str().unwrap();
    let url = url.strip_prefix("https://gpu.test:").unwrap();
    let port = url.trim_end_matches('/').parse().unwrap();
    let answer = get(&ca, (at(&server).ip(), port).into(), NAME, "/").await;
    assert!(answer.ends_with("hello"), "{answer}");
    server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;

    assert_eq!(ca.contacts(), [json!(["mailto:ada@example.com"])]);
    // Nobody else on this host may read its keys.
    let acme = dir.path().join("acme");
    let [(ca_dir, 0o700)] = &files(&acme)[..] else {
        panic!("{:?}", files(&acme));
    };
    let kept = files(&acme.join(ca_dir));
    let expected = ["account.json", "gpu.test.pem"].map(|name| (name.to_owned(), 0o600));
    assert_eq!(kept, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_uses_the_certificate_that_is_kept_and_asks_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let mut server = serve(dir.path(), &ca, NAME);
    let first = certificate(&ca, at(&server), NAME).await;
    server.kill();
    // Another name is one more to ask for, by the same account.
    let server = serve(dir.path(), &ca, "gpu.test,www.gpu.test");
    let mut stream = connect(&ca, at(&server), NAME, &[]).await;
    assert_eq!(
        stream
            .as_mut()
            .unwrap()
            .get_ref()
            .1
            .peer_certificates()
            .unwrap()[0],
        first
    );
    let other = certificate(&ca, at(&server), "www.gpu.test").await;
    assert_ne!(other, first);
    assert_eq!(certificate(&ca, at(&server), NAME).await, first);
    assert_eq!((ca.orders(), ca.accounts()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_before_it_expires_and_connections_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    ca.set_lifetime(Duration::from_secs(6));
    let server = serve(dir.path(), &ca, NAME);
    let first = certificate(&ca, at(&server), NAME).await;
    ca.set_lifetime(Duration::from_secs(86_400));
    // Whoever comes is shown one that is good, the old one until the new one is there.
    soon(async {
        loop {
            let stream = connect(&ca, at(&server), NAME, &[]).await.unwrap();
            if stream.get_ref().1.peer_certificates().unwrap()[0] != first {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!((ca.orders(), ca.accounts()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_apis_own_name_has_acmes_certificate_and_sessions_names_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let (wildcard, key) = (dir.path().join("wildcard.pem"), dir.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed([format!("*.{NAME}")]).unwrap();
    std::fs::write(&wildcard, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (directory, root) = (ca.directory(), ca.root_file());
    let more = [
        "--domain",
        NAME,
        "--tls-certificate",
        wildcard.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let config = format!(
        "{ROOMY}[acme]\nnames = [\"{NAME}\"]\ndirectory = \"{directory}\"\nca = \"{}\"\n",
        root.display()
    );
    let server = Server::spawn(&dir.path().join("data"), &config, "127.0.0.1:0", &more);
    ca.reaches(at(&server));
    certificate(&ca, at(&server), NAME).await;
    let others = connect(&ca, at(&server), "any.gpu.test", &[]).await;
    let refused = others.expect_err("the files' certificate is not the authority's");
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_proof_that_nobody_waits_for_is_shown_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new().await;
    let server = serve(dir.path(), &ca, NAME);
    certificate(&ca, at(&server), NAME).await;
    let none = connect(&ca, at(&server), NAME, &[b"acme-tls/1"]).await;
    assert!(none.is_err());
    // Beside others it is not one of theirs.
    let both: [&[u8]; 2] = [b"acme-tls/1", b"http/1.1"];
    let shown = connect(&ca, at(&server), NAME, &both).await.unwrap();
    assert_eq!(shown.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}
