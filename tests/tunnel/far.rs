//! A server, and agents that only reach it through a relay.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Api, ROOMY, Server, app};
use crate::network::{Namespace, Subnet};
use crate::relay::Relay;

/// What stands between the server's host and the agents'.
pub struct Way {
    pub away: Namespace,
    pub relay: Relay,
    pub subnet: Subnet,
}

impl Way {
    /// A cable with a relay at its near end.
    pub async fn new() -> Self {
        let (away, subnet) = (Namespace::new(), Subnet::new());
        subnet.connect(&away);
        let relay = Relay::at(subnet.ours()).await;
        Self {
            away,
            relay,
            subnet,
        }
    }

    /// The configuration of a server whose agents are there; `more` is of the launcher.
    pub fn config(&self, scheme: &str, more: &str) -> String {
        let [program, word] = self.away.enter();
        let at = self.relay.at;
        format!(
            "{ROOMY}[[launcher]]\nkind = \"local\"\nstart_with = [\"{program}\", \"{word}\"]\n\
             server_url = \"{scheme}://{at}\"\n{more}"
        )
    }
}

/// A server in the clear, whose agents are elsewhere.
pub struct Far {
    pub server: Server,
    pub way: Way,
}

impl Far {
    pub async fn new() -> Self {
        Self::behind(Way::new().await).await
    }

    pub async fn behind(way: Way) -> Self {
        let server = Server::start(&way.config("http", ""));
        way.relay.lead_to(address(&server.api.url));
        Self { server, way }
    }

    pub fn api(&self) -> &Api {
        &self.server.api
    }

    /// A session of the app that streams, and its URL.
    pub async fn session(&self) -> (String, String) {
        let id = self.api().create(app("streams.py")).await;
        let session = self.api().running(&id).await;
        (id, url_of(&session))
    }

    pub async fn visit(&self, url: &str) {
        let answer = self.api().get(url).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "hello"));
    }
}

pub fn url_of(session: &Value) -> String {
    session["url"].as_str().unwrap().to_owned()
}

pub fn address(url: &str) -> SocketAddr {
    let (_, rest) = url.split_once("://").unwrap();
    rest.trim_end_matches('/').parse().unwrap()
}

pub async fn web_socket(url: &str) -> WebSocketStream<TcpStream> {
    let at = address(url);
    let stream = TcpStream::connect(at).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async(format!("ws://{at}/"), stream)
        .await
        .unwrap();
    socket
}

pub async fn is_echoed<S>(socket: &mut WebSocketStream<S>, word: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(Message::text(word)).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(word));
}
