//! Dwell: interactive sessions on GPUs, in one binary.
//!
//! Data goes one way: a request comes to the [`api`], the [`driver`] has the core
//! decide, the [`store`] commits what follows, and only then is it done by a
//! [`launcher`], an agent (through the [`tunnel`]) or the [`gateway`]. See
//! `ARCHITECTURE.md` for the map.

pub mod acme;
pub mod admission;
pub mod agent;
pub mod agents;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod driver;
pub mod engine;
pub mod failpoint;
pub mod gate;
pub mod gateway;
pub mod gpus;
pub mod keep_alive;
pub mod keys;
pub mod launcher;
pub mod member;
pub mod peers;
pub mod read_ahead;
pub mod seals;
pub mod server;
pub mod session_log;
pub mod session_urls;
pub mod shares;
pub mod store;
pub mod sweep;
pub mod takeover;
pub mod telemetry;
pub mod trust;
pub mod tunnel;
