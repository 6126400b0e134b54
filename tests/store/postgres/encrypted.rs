//! A server that is reached by network, over TLS.

use std::net::TcpListener;
use std::path::Path;

use dwell::store::Store;
use dwell::store::postgres::{Address, Postgres};
use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::refusal;
use crate::cluster::Cluster;
use crate::rows::*;

struct Encrypted {
    cluster: Cluster,
    port: u16,
    dir: tempfile::TempDir,
}

impl Encrypted {
    /// One that is called `name`.
    fn start(name: &str) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([name.to_owned()]).unwrap();
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        drop(held);
        let key = signing_key.serialize_pem();
        let cluster = Cluster::start_encrypted(port, &cert.pem(), &key);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("its.pem"), cert.pem()).unwrap();
        let other = generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(dir.path().join("others.pem"), other.cert.pem()).unwrap();
        Self { cluster, port, dir }
    }

    fn address(&self, database: &str, how: &str) -> Address {
        let url = format!("postgres://dwell@localhost:{}/{database}?{how}", self.port);
        url.parse().unwrap()
    }

    fn known_by(&self, file: &str) -> String {
        let file = self.dir.path().join(file);
        format!(
            "sslmode=verify-full&sslrootcert={}",
            Path::new(&file).display()
        )
    }
}

#[tokio::test]
async fn a_server_is_known_by_the_certificate_that_the_url_names_and_all_is_encrypted() {
    let server = Encrypted::start("localhost");
    let database = server.cluster.database();
    let address = server.address(&database, &server.known_by("its.pem"));
    let store = Postgres::open(&address).await.unwrap();
    store.commit(vec![put(&session(1))]).await.unwrap();
    assert_eq!(store.open_sessions(&ann(), None).await.unwrap().len(), 1);
    let connections = |how: &str| {
        let count = format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE application_name = 'dwell' AND {how}"
        );
        server
            .cluster
            .sql(&database, &count)
            .parse::<u32>()
            .unwrap()
    };
    assert!(connections("ssl") >= 1);
    assert_eq!(connections("NOT ssl"), 0);
}

#[tokio::test]
async fn a_server_that_is_another_or_would_be_spoken_to_in_the_clear_is_refused_with_a_sentence() {
    let server = Encrypted::start("localhost");
    let elsewhere = Encrypted::start("db.example.com");
    for (server, how, says) in [
        (&server, server.known_by("others.pem"), "certificate"),
        (&elsewhere, elsewhere.known_by("its.pem"), "certificate"),
        (&server, "sslmode=disable".to_owned(), "no encryption"),
    ] {
        let database = server.cluster.database();
        let refused = refusal(&server.address(&database, &how)).await;
        assert!(refused.contains(says), "{how}: {refused}");
    }
}
