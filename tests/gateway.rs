//! The gateway's promises, held over real sockets: visitors on one side, small apps
//! made by the tests on the other.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

#[path = "gateway/house.rs"]
mod house;
#[path = "gateway/support.rs"]
mod support;
#[path = "gateway/wire.rs"]
mod wire;

#[path = "gateway/access.rs"]
mod access;
#[path = "gateway/crowd.rs"]
mod crowd;
#[path = "gateway/http2.rs"]
mod http2;
#[path = "gateway/http2_floods.rs"]
mod http2_floods;
#[path = "gateway/http2_frames.rs"]
mod http2_frames;
#[path = "gateway/idle.rs"]
mod idle;
#[path = "gateway/lifecycle.rs"]
mod lifecycle;
#[path = "gateway/names.rs"]
mod names;
#[path = "gateway/proxy.rs"]
mod proxy;
#[path = "gateway/streams.rs"]
mod streams;
#[path = "gateway/suspicious.rs"]
mod suspicious;
#[path = "gateway/tls.rs"]
mod tls;
#[path = "gateway/traffic.rs"]
mod traffic;
