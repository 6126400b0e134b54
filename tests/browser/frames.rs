//! Private sessions in frames of another site's page, in a browser that keeps no
//! third-party cookies.

use axum::Router;
use axum::extract::Query;
use axum::response::Html;
use axum::routing::get;
use serde_json::json;
use thirtyfour::prelude::*;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::browser::Browser;
use crate::far::url_of;
use crate::harness::app;
use crate::way::{self, Way};

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_shows_a_private_session_by_an_entry() {
    let stage = Stage::new().await;
    stage.embeds(&stage.entry().await).await;
    stage.frame_has_the_app().await;
    // By what the browser keeps now, with nothing in the address.
    stage.embeds(&stage.url).await;
    stage.frame_has_the_app().await;

    // That is for frames of that site alone.
    let browser = &stage.browser;
    browser.goto(&stage.url).await.unwrap();
    browser.reads("a", "Sign in").await;
    // Where cookies are nobody else's, the app has both of its own: it is the browser that
    // kept one of them from the frame.
    browser.goto(stage.entry().await).await.unwrap();
    stage.has_the_app_with("apart everywhere").await;
    stage.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_in_within_a_frame_of_another_site() {
    let stage = Stage::new().await;
    let browser = &stage.browser;
    stage.embeds(&stage.url).await;
    browser.click("a[href*='/signin?']").await;
    browser.click("#key").await;
    browser.types(&stage.way.server.api.key).await;
    browser.click("button").await;
    stage.frame_has_the_app().await;
    stage.embeds(&stage.url).await;
    stage.frame_has_the_app().await;

    // The server knows the person there too, and asks for no key again.
    let again = format!("{}/signin?session={}&path=%2F", stage.home, stage.id);
    stage.embeds(&again).await;
    stage.frame_has_the_app().await;
    stage.ends().await;
}

/// A private session, another site, and a person who looks at that.
struct Stage {
    way: Way,
    id: String,
    /// The session's origin, the server's and the other site's.
    url: String,
    home: String,
    site: String,
    serving: JoinHandle<()>,
    browser: Browser,
}

impl Stage {
    async fn new() -> Self {
        let way = way::name().await;
        let api = &way.server.api;
        let command = app("tells_its_cookies.py");
        let session = json!({"command": command, "timeout": 5, "access": "private"});
        let id = api.create_with(session).await;
        let url = url_of(&api.running(&id).await);
        let (_, home) = url.split_once('.').unwrap();
        let home = format!("{}{home}", way.scheme);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let site = format!("http://embedder.test:{port}");
        let pages = Router::new().route("/", get(page_with_frame));
        let serving = tokio::spawn(async { axum::serve(listener, pages).await.unwrap() });
        let browser = Browser::open(&[&url, &home, &site], &way.flags).await;
        Self {
            way,
            id,
            url,
            home,
            site,
            serving,
            browser,
        }
    }

    /// An address that lets in once.
    async fn entry(&self) -> String {
        let path = format!("/session/{}/entry", self.id);
        let made = self.way.server.api.post(&path, json!({})).await;
        assert_eq!(made.status, 200, "{made:?}");
        url_of(&made.json())
    }

    /// Go to the other site, whose page shows this; what is done then is done in its frame.
    async fn embeds(&self, url: &str) {
        let shown: String = form_urlencoded::byte_serialize(url.as_bytes()).collect();
        let page = format!("{}/?url={shown}", self.site);
        self.browser.goto(page).await.unwrap();
        let frame = self.browser.find(By::Tag("iframe")).await.unwrap();
        frame.enter_frame().await.unwrap();
    }

    async fn frame_has_the_app(&self) {
        self.has_the_app_with("apart").await;
    }

    /// The app's page is there, and what it fetches and connects to, with these cookies.
    async fn has_the_app_with(&self, cookies: &str) {
        for id in ["fetched", "connected"] {
            let told = async |browser: &Browser| {
                let place = browser.find(By::Id(id)).await.ok()?;
                let told = place.text().await.ok()?;
                (!told.is_empty()).then_some(told)
            };
            let what = format!("word of what was {id}");
            let told = self.browser.until(&what, told).await;
            assert_eq!(told, cookies, "{id}");
        }
    }

    async fn ends(self) {
        self.browser.has_no_complaint_about(&self.url).await;
        self.browser.close().await;
        self.serving.abort();
        self.way.server.api.stop(&self.id).await;
        self.way.server.nothing_is_left(&[self.id]).await;
    }
}

#[derive(serde::Deserialize)]
struct Shown {
    url: String,
}

async fn page_with_frame(Query(Shown { url }): Query<Shown>) -> Html<String> {
    let url = url.replace('&', "&amp;");
    let frame = format!("<iframe src=\"{url}\" width=\"1000\" height=\"700\"></iframe>");
    Html(format!("<!doctype html>\n{frame}\n"))
}
