//! Several servers of one database: one decides, each serves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[expect(dead_code, reason = "the tests of faults use the rest of it")]
#[path = "../faults/client.rs"]
mod client;
#[expect(dead_code, reason = "the store's tests use the rest of it")]
#[path = "../postgres/cluster.rs"]
mod cluster;
mod far;
mod group;
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
mod leader;
#[expect(dead_code, reason = "the tests of faults use the rest of it")]
#[path = "../faults/ledger.rs"]
mod ledger;
#[expect(dead_code, reason = "the tunnel's tests use the rest of it")]
#[path = "../tunnel/network.rs"]
mod network;
#[expect(dead_code, reason = "the tunnel's tests use the rest of it")]
#[path = "../tunnel/relay.rs"]
mod relay;
mod storm;
mod switch;
mod upgrade;
