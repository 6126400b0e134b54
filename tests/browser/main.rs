//! Apps that others wrote, used through their sessions' URLs by a real browser: each app
//! through every way that leads to one.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod app;
mod browser;
mod code_server;
#[expect(dead_code, reason = "the tests of the tunnel use the rest of it")]
#[path = "../tunnel/far.rs"]
mod far;
mod frames;
mod gradio;
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
#[path = "../e2e/harness.rs"]
mod harness;
mod jupyterlab;
#[expect(dead_code, reason = "the tests of the tunnel use the rest of it")]
#[path = "../tunnel/network.rs"]
mod network;
#[expect(dead_code, reason = "the tests of the tunnel use the rest of it")]
#[path = "../tunnel/relay.rs"]
mod relay;
mod way;

use code_server::CodeServer;
use gradio::Gradio;
use jupyterlab::JupyterLab;

/// An app, used through every way.
macro_rules! works {
    ($name:ident, $app:expr) => {
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn through_a_port() {
                app::is_used($app, way::port().await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn through_a_name_with_tls_and_http_2() {
                app::is_used($app, way::name().await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn through_a_tunnel_from_another_host() {
                app::is_used($app, way::tunnel().await).await;
            }
        }
    };
}

works!(jupyterlab_works, JupyterLab);
works!(gradio_works, Gradio);
works!(code_server_works, CodeServer);
