//! What every app has in common: it is started, used, and leaves nothing.

use std::path::PathBuf;

use serde_json::Value;

use crate::browser::Browser;
use crate::far::url_of;
use crate::way::Way;

pub trait App {
    /// Of its own, besides what a page loads.
    const OPENS_WEB_SOCKETS: bool;

    /// The words that start it.
    fn command(&self) -> Value;

    /// What a person does with it.
    async fn is_used(&self, visit: &Visit);
}

/// A person at a session's URL.
pub struct Visit {
    pub browser: Browser,
    /// Without a slash at its end.
    pub url: String,
    /// The app's directory.
    pub work: PathBuf,
}

pub async fn is_used<A: App>(app: A, way: Way) {
    let api = &way.server.api;
    let id = api.create(app.command()).await;
    let url = url_of(&api.running(&id).await);
    let url = url.trim_end_matches('/').to_owned();
    assert!(url.starts_with(way.scheme), "{url}");
    let visit = Visit {
        browser: Browser::open(&[&url], &way.flags).await,
        work: way.server.dir.join("sessions").join(&id).join("work"),
        url,
    };
    app.is_used(&visit).await;
    visit.browser.has_no_complaint_about(&visit.url).await;
    if way.is_http2 {
        assert_eq!(visit.browser.protocol().await, "h2");
    }
    let spoken = visit.browser.close().await;
    let over_http2 = spoken.contains(":protocol: websocket");
    assert_eq!(over_http2, way.is_http2 && A::OPENS_WEB_SOCKETS);
    api.stop(&id).await;
    way.server.nothing_is_left(&[id]).await;
}

impl Visit {
    /// Until the app's directory has a file that says this.
    pub async fn finds(&self, name: &str, content: &[u8]) {
        let file = self.work.join(name);
        let is_there = async |_: &Browser| {
            let there = std::fs::read(&file).unwrap_or_default();
            (there == content).then_some(())
        };
        let what = format!("{} with its content", file.display());
        self.browser.until(&what, is_there).await;
    }

    pub async fn goes_to(&self, path: &str) {
        let url = format!("{}{path}", self.url);
        self.browser.goto(url).await.unwrap();
    }
}
