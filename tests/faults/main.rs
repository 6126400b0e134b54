//! Faults: processes killed at every step and at random, disks that refuse; and what
//! must hold of whatever came of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod audit;
mod client;
mod disk;
mod failpoints;
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
mod ledger;
mod storm;
mod witness;
mod world;
