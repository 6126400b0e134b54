//! Agents behind a router that translates addresses, and forgets.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::far::{Far, Way, is_echoed, web_socket};
use crate::harness::PATIENCE;
use crate::network::{Namespace, Subnet};
use crate::relay::Relay;

/// For how long the router remembers a connection on which nothing is said.
const REMEMBERED: Duration = Duration::from_secs(15);

const RULES: &str = "
table ip router {
  chain translate { type nat hook postrouting priority 100; oif eth0 masquerade; }
  chain forward { type filter hook forward priority 0; ct state invalid drop; }
  chain input { type filter hook input priority 0; policy drop; }
}";

/// A session's host whose way to us goes through this router.
async fn behind_a_router() -> (Far, Namespace, Subnet) {
    let (outside, inside) = (Subnet::new(), Subnet::new());
    let (router, away) = (Namespace::new(), Namespace::new());
    outside.connect(&router);
    inside.connect_from(&router, &away);
    let (near, next) = (outside.ours().to_string(), inside.ours().to_string());
    away.has(&["ip", "route", "add", "default", "via", &next]);
    router.has(&["ip", "route", "add", "default", "via", &near]);
    let remembered = REMEMBERED.as_secs();
    for (name, value) in [
        ("ipv4/ip_forward", 1),
        ("netfilter/nf_conntrack_tcp_loose", 0),
        ("netfilter/nf_conntrack_tcp_timeout_established", remembered),
    ] {
        let set = format!("echo {value} > /proc/sys/net/{name}");
        router.has(&["sh", "-c", &set]);
    }
    router.has(&["nft", RULES]);
    let relay = Relay::at(outside.ours()).await;
    let way = Way {
        away,
        relay,
        subnet: outside,
    };
    (Far::behind(way).await, router, inside)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_forgets_what_is_quiet_forgets_none_of_a_tunnel() {
    let (far, _router, _inside) = behind_a_router().await;
    let (id, url) = far.session().await;
    far.visit(&url).await;
    let mut socket = web_socket(&url).await;
    is_echoed(&mut socket, "before").await;
    let calls = far.way.relay.count();
    // It is time itself that this is about.
    tokio::time::sleep(REMEMBERED * 2).await;
    is_echoed(&mut socket, "after").await;
    let began = Instant::now();
    far.visit(&url).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{began:?}");
    // What was used was ready: nothing had to be opened anew.
    assert!(far.way.relay.count() <= calls + 2, "{calls}");
    far.api().stop(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_was_started_anew_costs_a_visitor_seconds_at_most() {
    let (far, router, _inside) = behind_a_router().await;
    let (id, url) = far.session().await;
    far.visit(&url).await;
    let mut socket = web_socket(&url).await;
    is_echoed(&mut socket, "before").await;
    let near = far.way.subnet.ours().to_string();
    // It forgets what it translated to an address that it loses.
    router.has(&["ip", "link", "set", "eth0", "down"]);
    router.has(&["ip", "link", "set", "eth0", "up"]);
    router.has(&["ip", "route", "add", "default", "via", &near]);
    let began = Instant::now();
    far.visit(&url).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
    // What was in use is noticed too: nobody waits for ever for what is lost.
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(message)) if message.is_text()));
    assert_eq!(far.api().session(&id).await["status"], "running");
    far.api().stop(&id).await;
}
