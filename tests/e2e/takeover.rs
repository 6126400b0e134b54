//! A server that is replaced in place: nobody who uses it notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::harness::{Api, PATIENCE, ROOMY, Server, app, app_processes, signal};

/// Somebody who uses the server all the time, and how often they were answered.
struct User {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl User {
    /// `visit` is to panic when it is not served.
    fn new<F, V>(visit: F) -> Self
    where
        F: Fn() -> V + Send + 'static,
        V: Future<Output = ()> + Send,
    {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<AtomicU64>::default(),
        );
        let (is_to_stop, counter) = (Arc::clone(&stop), Arc::clone(&served));
        let task = tokio::spawn(async move {
            while !is_to_stop.load(Ordering::Relaxed) {
                visit().await;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, served, task }
    }

    /// Until it was served again, twice: once may have been under way.
    async fn is_served_again(&self) {
        let before = self.served.load(Ordering::Relaxed);
        let served = async {
            while self.served.load(Ordering::Relaxed) < before + 2 && !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, served).await.unwrap();
    }

    async fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

async fn web_socket(url: &str) -> WebSocketStream<TcpStream> {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/"), stream)
        .await
        .unwrap();
    socket
}

async fn is_echoed(socket: &mut WebSocketStream<TcpStream>, word: &str) {
    socket.send(Message::text(word)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(word));
}

fn uses(api: &Api, session: &str, url: &str) -> Vec<User> {
    // Their connections are their own, and end with them.
    let api = Api::new(&api.url, &api.key);
    let (session, url) = (session.to_owned(), url.to_owned());
    let reads = {
        let api = api.clone();
        User::new(move || {
            let (api, session) = (api.clone(), session.clone());
            async move { assert_eq!(api.session(&session).await["status"], "running") }
        })
    };
    let opens = {
        let api = api.clone();
        User::new(move || {
            let api = api.clone();
            async move {
                let id = api.create(app("serve.py")).await;
                assert_eq!(api.delete(&format!("/session/{id}")).await.status, 200);
            }
        })
    };
    let waits = {
        let api = api.clone();
        User::new(move || {
            let api = api.clone();
            async move {
                let body = json!({"command": app("serve.py"), "wait_for_server": true});
                let answer = api.post("/session/dynamic", body).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let created = answer.json();
                let page = api.get(created["url"].as_str().unwrap()).await;
                assert_eq!(page.text, "hello");
                let id = created["session_id"].as_str().unwrap();
                let path = format!("/session/{id}?wait_for_shutdown=true");
                assert_eq!(api.delete(&path).await.status, 200);
                assert_eq!(api.session(id).await["status"], "ended");
            }
        })
    };
    let visits_anew = {
        let (key, url) = (api.key.clone(), url.clone());
        User::new(move || {
            let (api, url) = (Api::new(&url, &key), url.clone());
            async move { assert_eq!(api.get(&url).await.text, "hello") }
        })
    };
    let keeps_visiting = User::new(move || {
        let (api, url) = (api.clone(), url.clone());
        async move { assert_eq!(api.get(&url).await.text, "hello") }
    });
    vec![reads, opens, waits, visits_anew, keeps_visiting]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_refused_and_nothing_open_breaks_while_servers_take_over() {
    let mut server = Server::start(ROOMY);
    let id = server.api.create(app("streams.py")).await;
    let url = server.api.running(&id).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let processes = app_processes(std::slice::from_ref(&id));
    let mut socket = web_socket(&url).await;
    is_echoed(&mut socket, "before").await;
    let users = uses(&server.api, &id, &url);

    let mut retired = Vec::new();
    for round in 0..3 {
        let download = tokio::spawn({
            let (api, url) = (server.api.clone(), url.clone());
            async move {
                api.get(&format!("{}/slow", url.trim_end_matches('/')))
                    .await
            }
        });
        join_all(users.iter().map(User::is_served_again)).await;
        retired.push(server.is_taken_over());
        join_all(users.iter().map(User::is_served_again)).await;
        is_echoed(&mut socket, &format!("after takeover {round}")).await;
        let downloaded = download.await.unwrap();
        assert_eq!((downloaded.status, downloaded.text.len()), (200, 3_000));
    }
    join_all(users.into_iter().map(User::leave)).await;
    // The first still carries the WebSocket, and what it carries it ends with.
    assert!(retired[0].try_wait().unwrap().is_none());
    socket.close(None).await.unwrap();
    drop(socket);
    for mut server in retired {
        let gone = tokio::task::spawn_blocking(move || server.wait().unwrap());
        let status = tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
    assert_eq!(app_processes(std::slice::from_ref(&id)), processes);
    server.api.running(&id).await;
    server.api.stop(&id).await;
    server.nothing_is_left(&[id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_successor_fails_goes_on() {
    let server = Server::start(ROOMY);
    let id = server.api.create(app("streams.py")).await;
    let url = server.api.running(&id).await["url"]
        .as_str()
        .unwrap()
        .to_owned();
    let users = uses(&server.api, &id, &url);
    join_all(users.iter().map(User::is_served_again)).await;
    // It gets all that it asks for, and then it is gone.
    let data_dir = dwell::data_dir::DataDir(server.dir.clone());
    let given = tokio::task::spawn_blocking(move || dwell::takeover::Inheritance::ask(&data_dir));
    let given = given.await.unwrap().unwrap();
    assert!(!given.listeners.sessions.is_empty());
    drop(given);
    join_all(users.iter().map(User::is_served_again)).await;
    join_all(users.into_iter().map(User::leave)).await;
    server.api.stop(&id).await;
}

#[tokio::test]
async fn a_server_with_nobody_to_take_over_from_starts_as_usual() {
    let mut server = Server::start(ROOMY);
    server.kill();
    let killed = server.is_taken_over();
    drop(killed);
    assert_eq!(server.api.get("/sessions").await.status, 200);
    signal(server.pid(), Signal::SIGTERM);
}
