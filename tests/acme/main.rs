//! Certificates by ACME, from a certificate authority of the tests' own that checks what
//! a real one does.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod authority;
mod challenge;
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
mod issue;
mod jws;
mod trouble;
mod visitor;
