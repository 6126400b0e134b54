//! Sessions on other hosts: agents in network namespaces of their own, which reach the
//! server through a relay that can be told to fail as networks do.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod crowd;
mod encrypted;
mod far;
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
mod network;
mod relay;
mod strangers;
mod translated;
mod trouble;
