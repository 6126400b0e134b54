//! Is the app ready? It is when its ready path answers anything below 500.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// While the app is young it is asked often: each wait is a start made slower.
const EAGER: Duration = Duration::from_millis(2);
const EAGER_FOR: Duration = Duration::from_secs(3);
const PATIENT: Duration = Duration::from_millis(50);
/// An app that takes a connection but does not answer is asked again after this.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Where an app listens that runs on this host itself.
#[must_use]
pub fn on_this_host(port: u16) -> Vec<SocketAddr> {
    vec![
        (Ipv4Addr::LOCALHOST, port).into(),
        (Ipv6Addr::LOCALHOST, port).into(),
    ]
}

/// Waits until the app answers in one of these places, and says where.
pub async fn answered(places: &[SocketAddr], path: &str) -> SocketAddr {
    let began = Instant::now();
    loop {
        for &place in places {
            if let Ok(stream) = TcpStream::connect(place).await
                && timeout(ANSWER_WITHIN, is_ready(stream, place, path)).await == Ok(Some(true))
            {
                return place;
            }
        }
        sleep(if began.elapsed() < EAGER_FOR {
            EAGER
        } else {
            PATIENT
        })
        .await;
    }
}

async fn is_ready(stream: TcpStream, place: SocketAddr, path: &str) -> Option<bool> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    let request = Request::get(path)
        .header("host", place.to_string())
        .header("user-agent", "dwell-probe")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection has to be driven for the answer to come; a server that closes
    // it right after has answered all the same.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    Some(answer.ok()?.status().as_u16() < 500)
}
