//! What a port shows as sessions come and go.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use dwell::gateway::{Gateway, RouteStatus};
use dwell_core::session::Ending;
use hyper::Response;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::*;

const HTML: [(&str, &str); 1] = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];

/// An address where nothing listens.
async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// An app that answers everything with `name`.
async fn named(name: &'static str) -> App {
    App::new(move |_| async move { Response::new(body(name)) }).await
}

#[tokio::test]
async fn what_is_not_running_says_so_to_people_and_programs() {
    let failed = RouteStatus::Ended(Ending::failed("The app said <boo>.".to_owned()));
    let cases = [
        (RouteStatus::Starting, 503, "starting", "is starting"),
        (RouteStatus::Stopping, 503, "stopping", "is being ended"),
        (ended(), 410, "ended", "has ended: its time was up."),
        (failed, 410, "ended", "it failed. The app said <boo>."),
        (running(nowhere().await), 502, "running", "does not accept"),
    ];
    for (state, status, word, sentence) in cases {
        let site = Site::new(route(1, state)).await;
        let program = site.get("/api", &[]).await;
        assert_eq!(program.status(), status);
        assert_eq!(program.headers()["content-type"], "application/json");
        let json: serde_json::Value = serde_json::from_slice(program.body()).unwrap();
        assert_eq!(json["status"], word);
        assert!(
            json["detail"].as_str().unwrap().contains(sentence),
            "{json}"
        );

        let person = site.get("/", &HTML).await;
        assert_eq!(person.status(), status);
        assert_eq!(person.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(person.headers()["cache-control"], "no-store");
        let sentence = sentence.replace('<', "&lt;").replace('>', "&gt;");
        assert!(text(&person).contains(&sentence), "{}", text(&person));
        let is_starting = word == "starting";
        assert_eq!(person.headers().contains_key("retry-after"), is_starting);
        assert_eq!(
            text(&person).contains("http-equiv=\"refresh\""),
            is_starting
        );

        let head = site.send(request("HEAD", "/", &HTML, "")).await;
        assert_eq!(head.status(), status);
        assert!(head.body().is_empty());
    }
}

#[tokio::test]
async fn nothing_forbids_that_a_session_is_framed() {
    for state in [RouteStatus::Starting, running(named("app").await.at)] {
        let response = Site::new(route(1, state)).await.get("/", &HTML).await;
        assert!(!response.headers().contains_key("x-frame-options"));
        let policy = response.headers().get("content-security-policy");
        assert!(policy.is_none_or(|policy| !policy.to_str().unwrap().contains("frame")));
    }
}

#[tokio::test]
async fn a_visitor_sees_its_session_from_start_to_end() {
    let site = Site::new(route(1, RouteStatus::Starting)).await;
    let mut visitor = site.visitor().await;
    assert_eq!(
        visitor.send(request("GET", "/", &[], "")).await.status(),
        503
    );
    site.publish(route(1, running(named("app").await.at))).await;
    assert_eq!(
        text(&visitor.send(request("GET", "/", &[], "")).await),
        "app"
    );
    site.publish(route(1, RouteStatus::Stopping)).await;
    assert_eq!(
        visitor.send(request("GET", "/", &[], "")).await.status(),
        503
    );
    site.publish(route(1, ended())).await;
    visitor.is_closed().await;
    assert_eq!(site.get("/", &[]).await.status(), 410);
}

#[tokio::test]
async fn a_connection_to_one_session_never_reaches_another() {
    let site = Site::of(named("one").await.at).await;
    // Accepted before the other one, which is answered.
    let mut unused = site.visitor().await;
    let mut used = site.visitor().await;
    assert_eq!(text(&used.send(request("GET", "/", &[], "")).await), "one");
    site.publish(route(2, running(named("two").await.at))).await;
    used.is_closed().await;
    unused.is_closed().await;
    assert_eq!(text(&site.get("/", &[]).await), "two");
}

#[tokio::test]
async fn a_request_half_sent_to_one_session_is_not_answered_by_another() {
    let site = Site::of(named("one").await.at).await;
    let mut half = site.connect().await;
    half.write_all(b"GET / HT").await.unwrap();
    // Accepted after that one, so that one has been read from when this is answered.
    assert_eq!(text(&site.get("/", &[]).await), "one");
    let two = running(named("two").await.at);
    site.publish(route(2, two)).await;
    half.write_all(b"TP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut half).await;
    assert!(answer.starts_with("HTTP/1.1 410 Gone"), "{answer}");
}

#[tokio::test]
async fn an_exchange_under_way_is_finished_by_the_app_that_began_it() {
    let (arrived, mut has_arrived) = mpsc::unbounded_channel();
    let (finish, may_finish) = tokio::sync::watch::channel(false);
    let slow = App::new(move |_| {
        let (arrived, mut may_finish) = (arrived.clone(), may_finish.clone());
        async move {
            arrived.send(()).unwrap();
            may_finish.wait_for(|may| *may).await.unwrap();
            Response::new(body("one"))
        }
    })
    .await;
    let site = Site::of(slow.at).await;
    let mut visitor = site.visitor().await;
    let exchange = tokio::spawn(async move {
        let response = visitor.send(request("GET", "/", &[], "")).await;
        (visitor, response)
    });
    soon(has_arrived.recv()).await.unwrap();
    site.publish(route(2, running(named("two").await.at))).await;
    finish.send(true).unwrap();
    let (mut visitor, response) = soon(exchange).await.unwrap();
    assert_eq!(text(&response), "one");
    visitor.is_closed().await;
}

#[tokio::test]
async fn a_port_that_is_in_use_cannot_be_published_on() {
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = other.local_addr().unwrap().port();
    let gateway = Gateway::new(Ipv4Addr::LOCALHOST.into(), admission());
    let refused = gateway.publish(port, route(1, RouteStatus::Starting)).await;
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn a_shutdown_closes_ports_and_leaves_them_to_whoever_is_next() {
    let site = Site::of(named("one").await.at).await;
    let mut visitor = site.visitor().await;
    visitor.send(request("GET", "/", &[], "")).await;
    soon(site.gateway.shutdown()).await;
    visitor.is_closed().await;
    let refused = TcpStream::connect(site.at).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // The connections that the gateway closed are in TIME_WAIT now.
    let next = Gateway::new(Ipv4Addr::LOCALHOST.into(), admission());
    let at_once = next.publish(site.at.port(), route(2, RouteStatus::Starting));
    at_once.await.unwrap();
}
