//! What Dwell decides, and nothing of how it is done.
//!
//! No clock, socket, file, randomness or async: time comes in as an argument
//! ([`time::Moment`]), ids come in as arguments, and what is to be done comes out
//! as [`control_plane::Command`]s (for the server) and [`lease::Command`]s (for
//! the agent). Everything that can be got wrong about states, deadlines, leases,
//! placement, quotas and money is here and runs in `tests/simulation.rs`.
#![forbid(unsafe_code)]

pub mod control_plane;
pub mod gpu;
pub mod id;
pub mod job;
pub mod key;
pub mod leadership;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod metering;
pub mod owner;
pub mod placement;
pub mod ports;
pub mod pricing;
pub mod protocol;
pub mod quota;
pub mod refusal;
pub mod session;
pub mod share;
pub mod sweep;
pub mod time;
pub mod upstream;
