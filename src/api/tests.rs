//! The API's promises, on the real driver and a real store; what an agent would say
//! the tests say.

mod auth;
mod machines;
mod misfits;
mod platform;
mod sessions;
mod shares;
mod wire;
mod world;
