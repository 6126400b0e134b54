//! End to end: the real binary, real apps, real clients.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod bad_input;
mod clients;
#[expect(dead_code, reason = "the store's tests need more of it")]
#[path = "../postgres/cluster.rs"]
mod cluster;
mod command_line;
mod crowd;
mod deadlines;
mod harness;
mod hosts;
mod large_bodies;
mod lifecycle;
mod misbehaviour;
mod postgres;
mod restart;
mod sweep;
mod takeover;
mod tenants;
