//! VS Code in a browser: an editor and a terminal.

use serde_json::{Value, json};
use thirtyfour::prelude::*;

use crate::app::{App, Visit};
use crate::harness::here;

pub struct CodeServer;

const SETTINGS: &str = r#"{
  "terminal.integrated.gpuAcceleration": "off",
  "chat.disableAIFeatures": true,
  "workbench.startupEditor": "none",
  "telemetry.telemetryLevel": "off"
}"#;

impl App for CodeServer {
    const OPENS_WEB_SOCKETS: bool = true;

    fn command(&self) -> Value {
        let [node, code_server] = [".apps/node", ".apps/code-server"].map(here);
        assert!(code_server.exists(), "run `make setup-browser`");
        // What it keeps is in a home of its own.
        let script = format!(
            "mkdir -p place home/User
            echo 'all is quiet' > place/notes.txt
            echo '{SETTINGS}' > home/User/settings.json
            HOME=\"$PWD/home\" exec \"$@\" --user-data-dir home --config home/config.yaml place"
        );
        json!([
            "sh",
            "-c",
            script,
            "sh",
            node,
            code_server,
            "--auth=none",
            "--bind-addr=127.0.0.1:{port}",
            "--disable-telemetry",
            "--disable-update-check",
            "--disable-workspace-trust",
        ])
    }

    async fn is_used(&self, visit: &Visit) {
        let browser = &visit.browser;
        visit.goes_to("/").await;
        browser
            .click(".explorer-folders-view [aria-label^='notes.txt']")
            .await;
        browser
            .reads(".editor-instance .view-line", "all is quiet")
            .await;
        browser.click(".editor-instance .view-line").await;
        browser.presses(Key::Control, Key::Home.into()).await;
        browser.types("here ").await;
        browser.presses(Key::Control, 's').await;
        visit.finds("place/notes.txt", b"here all is quiet\n").await;

        browser.presses(Key::Control, '`').await;
        browser.click(".terminal .xterm-screen").await;
        browser.types("echo $((6 * 7)) from the shell\n").await;
        browser.reads(".xterm-rows", "42 from the shell").await;
    }
}
