//! JupyterLab: a notebook, a terminal, an upload.

use serde_json::{Value, json};
use thirtyfour::prelude::*;

use crate::app::{App, Visit};
use crate::browser::Browser;
use crate::harness::venv_program;

pub struct JupyterLab;

/// More than it sends at once.
const LENGTH: usize = 3 << 20;

/// What a terminal shows is drawn; this has it be text as well.
const SETTINGS: &str = r#"{"screenReaderMode": true}"#;

impl App for JupyterLab {
    const OPENS_WEB_SOCKETS: bool = true;

    fn command(&self) -> Value {
        let script = format!(
            "export JUPYTER_CONFIG_DIR=\"$PWD/.jupyter\"
            settings=\"$JUPYTER_CONFIG_DIR/lab/user-settings/@jupyterlab/terminal-extension\"
            mkdir -p \"$settings\"
            echo '{SETTINGS}' > \"$settings/plugin.jupyterlab-settings\"
            exec \"$@\""
        );
        json!([
            "sh",
            "-c",
            script,
            "sh",
            venv_program("jupyter-lab"),
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            "--port={port}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=sesame",
            "--ServerApp.allow_remote_access=True",
        ])
    }

    async fn is_used(&self, visit: &Visit) {
        let browser = &visit.browser;
        visit.goes_to("/lab?token=sesame").await;
        browser
            .click(".jp-LauncherCard[data-category='Notebook']")
            .await;
        // What is run before is not run.
        browser.reads("#jp-main-statusbar", "| Idle").await;
        browser.click(".jp-Notebook .cm-content").await;
        browser.types("print(6 * 7, 'from the kernel')").await;
        browser.presses(Key::Shift, Key::Enter.into()).await;
        browser
            .reads(".jp-OutputArea-output", "42 from the kernel")
            .await;

        browser.click("[data-command='launcher:create']").await;
        browser
            .click(".jp-LauncherCard[title='Start a new terminal session']")
            .await;
        browser.click(".jp-Terminal .xterm-screen").await;
        browser.types("echo $((6 * 7)) from the shell\n").await;
        browser
            .reads(".xterm-accessibility", "42 from the shell")
            .await;

        upload(visit).await;
    }
}

async fn upload(visit: &Visit) {
    let browser = &visit.browser;
    let away = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..=250).cycle().take(LENGTH).collect();
    let file = away.path().join("weights.bin");
    std::fs::write(&file, &content).unwrap();
    // Where a person would see the dialog of their system, the input waits in the page.
    let instead = "HTMLInputElement.prototype.click = function () {
        this.id = 'chosen';
        document.body.append(this);
    }";
    browser.execute(instead, Vec::new()).await.unwrap();
    browser.click("[title^='Upload Files']").await;
    let input = async |browser: &Browser| browser.find(By::Id("chosen")).await.ok();
    let input = browser.until("input for files", input).await;
    input.send_keys(file.display().to_string()).await.unwrap();
    browser.reads(".jp-DirListing-item", "weights.bin").await;
    visit.finds("weights.bin", &content).await;
}
