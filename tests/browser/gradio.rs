//! Gradio: results that arrive one by one from its queue.

use serde_json::{Value, json};

use crate::app::{App, Visit};
use crate::browser::Browser;
use crate::harness::{here, venv_program};

pub struct Gradio;

/// Keeps what the box says, and when.
const WATCH: &str = "
    window.seen = [];
    const look = () => {
        const says = document.querySelector('#said textarea').value;
        if (says !== '' && seen.at(-1)?.says !== says)
            seen.push({ says, at: performance.now() });
        requestAnimationFrame(look);
    };
    look();";

impl App for Gradio {
    const OPENS_WEB_SOCKETS: bool = false;

    fn command(&self) -> Value {
        json!([
            venv_program("python"),
            here("tests/apps/counts_in_gradio.py")
        ])
    }

    async fn is_used(&self, visit: &Visit) {
        let browser = &visit.browser;
        visit.goes_to("/").await;
        let watch = async |browser: &Browser| browser.execute(WATCH, Vec::new()).await.ok();
        browser.until("page with a box", watch).await;
        browser.click("#count").await;
        let seen = async |browser: &Browser| {
            let seen = browser.execute("return window.seen", Vec::new()).await;
            let seen: Vec<Value> = seen.unwrap().convert().unwrap();
            (seen.last()?["says"] == "counted to 5").then_some(seen)
        };
        let seen = browser.until("last result", seen).await;
        let said: Vec<_> = seen.iter().map(|seen| seen["says"].clone()).collect();
        let counted: Vec<_> = (1..=5).map(|n| json!(format!("counted to {n}"))).collect();
        assert_eq!(said, counted);
        // They came as they were said, over 1.2 s, and not together at the end.
        let at = |seen: &Value| seen["at"].as_f64().unwrap();
        let took = at(&seen[4]) - at(&seen[0]);
        assert!(took > 600.0, "{seen:?}");
    }
}
