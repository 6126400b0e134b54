//! Several servers of one database: one decides, each serves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[cfg(test)]
#[expect(dead_code, reason = "the store's tests use the rest of it")]
#[path = "../postgres/cluster.rs"]
mod cluster;
#[cfg(test)]
mod far;
#[cfg(test)]
mod group;
#[cfg(test)]
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
#[cfg(test)]
mod leader;
#[cfg(test)]
#[expect(dead_code, reason = "the tunnel's tests use the rest of it")]
#[path = "../tunnel/network.rs"]
mod network;
#[cfg(test)]
#[expect(dead_code, reason = "the tunnel's tests use the rest of it")]
#[path = "../tunnel/relay.rs"]
mod relay;
