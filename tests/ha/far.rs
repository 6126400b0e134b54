//! Agents on another host, which reach each server by a network.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::group::{Group, host_of, is_known, visit, web_socket};
use crate::harness::{Server, app, app_processes};
use crate::network::{Namespace, Subnet};
use crate::relay::Relay;

/// Agents call at a relay, which stands before the servers.
struct Far {
    group: Group,
    relay: Relay,
    _away: Namespace,
    _subnet: Subnet,
}

impl Far {
    async fn new(count: usize) -> Self {
        let (away, subnet) = (Namespace::new(), Subnet::new());
        subnet.connect(&away);
        let relay = Relay::at(subnet.ours()).await;
        let [program, word] = away.enter();
        let launcher = format!(
            "start_with = [\"{program}\", \"{word}\"]\nserver_url = \"http://{}\"\n",
            relay.at
        );
        let group = Group::listen(count, &format!("{}:0", subnet.ours()), &launcher);
        Self {
            group,
            relay,
            _away: away,
            _subnet: subnet,
        }
    }

    fn server(&self, number: usize) -> &Server {
        &self.group.servers[number]
    }

    /// Agents that call from now on come to that one.
    fn call_at(&self, number: usize) {
        self.relay
            .lead_to(self.server(number).listen.parse().unwrap());
    }
}

async fn is_echoed(socket: &mut WebSocketStream<TcpStream>, word: &str) {
    socket.send(Message::text(word)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(word));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_hangs_on_any_server_and_visitors_come_through_each() {
    let mut far = Far::new(3).await;
    // One that does not lead, and that is not who is asked.
    far.call_at(1);
    let api = far.server(2).api.clone();
    let id = api.create(app("streams.py")).await;
    let host = host_of(&api.running(&id).await);
    let processes = app_processes(std::slice::from_ref(&id));
    let mut sockets = Vec::new();
    for number in 0..3 {
        let server = far.server(number);
        is_known(server, &host).await;
        let mut socket = web_socket(server, &host).await;
        is_echoed(&mut socket, "before").await;
        sockets.push(socket);
    }
    // The one that leads dies: what passes through the others goes on.
    let dead = far.group.leader();
    far.group.servers[0].kill();
    let mut echoes = 0;
    while far.group.leader() == dead || echoes < 10 {
        is_echoed(&mut sockets[1], "meanwhile").await;
        is_echoed(&mut sockets[2], "meanwhile").await;
        echoes += 1;
    }
    far.group.leads_one_of(&[1, 2]).await;
    let path = format!("/session/{id}/increase-timeout");
    let extended = api.post(&path, serde_json::json!({"minutes": 1})).await;
    assert_eq!(extended.status, 200, "{extended:?}");
    // The one that agents were calling at dies too, and with it nothing of the session.
    far.call_at(2);
    far.group.servers[1].kill();
    far.group.leads_one_of(&[2]).await;
    is_echoed(&mut sockets[2], "after").await;
    assert_eq!(visit(far.server(2), &host).await.unwrap().text, "hello");
    assert_eq!(api.session(&id).await["timeout"], 6);
    assert_eq!(app_processes(std::slice::from_ref(&id)), processes);
    api.stop(&id).await;
    far.group.nothing_is_left(&[id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_follows_is_replaced_in_place_and_visitors_come_through_it_at_once() {
    let mut far = Far::new(2).await;
    far.call_at(0);
    let api = far.server(0).api.clone();
    let id = api.create(app("streams.py")).await;
    let host = host_of(&api.running(&id).await);
    is_known(far.server(1), &host).await;
    let mut before = web_socket(far.server(1), &host).await;
    is_echoed(&mut before, "before").await;
    // The agent's line is to the one that leads, where nothing happens.
    let mut old = far.group.servers[1].is_taken_over();
    let began = std::time::Instant::now();
    for _ in 0..10 {
        let answer = visit(far.server(1), &host).await.unwrap();
        assert_eq!((answer.status, &*answer.text), (200, "hello"));
    }
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    is_echoed(&mut before, "after").await;
    before.close(None).await.unwrap();
    while before.next().await.is_some() {}
    drop(before);
    assert!(old.wait().unwrap().success());
    assert_eq!(visit(far.server(1), &host).await.unwrap().text, "hello");
    api.stop(&id).await;
    far.group.nothing_is_left(&[id]).await;
}
