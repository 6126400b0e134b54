//! End to end: the real binary, real apps, real clients.

mod bad_input;
mod clients;
mod command_line;
mod crowd;
mod harness;
mod lifecycle;
mod misbehaviour;
mod restart;
mod tenants;
