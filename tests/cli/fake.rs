//! A small API: answers what it is told to, and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::IntoResponse;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /sessions?include_ended=true`.
    pub what: String,
    /// The bearer token, if there was one.
    pub key: Option<String>,
    /// The body, if it was JSON.
    pub body: serde_json::Value,
}

#[derive(Default)]
struct Inner {
    /// By method and path: the answers in their order; the last one is kept.
    answers: HashMap<String, Vec<(u16, String)>>,
    asked: Vec<Asked>,
}

/// A server on a port of its own, until it is dropped.
pub struct Fake {
    /// Where.
    pub url: String,
    inner: Arc<Mutex<Inner>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Mutex::new(Inner::default()));
        let app = Router::new().fallback(answer).with_state(inner.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        let fake = Self {
            url,
            inner,
            runtime: Some(runtime),
        };
        fake.on(
            "GET /openapi.json",
            200,
            r#"{"info": {"title": "Dwell", "version": "0.1.0"}}"#,
        );
        fake
    }

    /// From now on `what` (a method and a path without query) is answered so; if it
    /// has an answer already, after that one was given.
    pub fn on(&self, what: &str, status: u16, body: &str) {
        let mut inner = self.inner.lock().unwrap();
        let answers = inner.answers.entry(what.to_owned()).or_default();
        answers.push((status, body.to_owned()));
    }

    /// From now on `what` is answered so and not as before.
    pub fn now(&self, what: &str, status: u16, body: &str) {
        self.inner.lock().unwrap().answers.remove(what);
        self.on(what, status, body);
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.inner.lock().unwrap().asked.clone()
    }

    /// The first request for `what`, query included, if it came.
    pub fn find(&self, what: &str) -> Option<Asked> {
        self.asked().into_iter().find(|asked| asked.what == what)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    State(inner): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let mut inner = inner.lock().unwrap();
    let key = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    inner.asked.push(Asked {
        what: format!("{method} {uri}"),
        key: key.map(ToOwned::to_owned),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let what = format!("{method} {}", uri.path());
    let (status, body) = match inner.answers.get_mut(&what) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => (404, format!(r#"{{"detail": "no answer to {what}"}}"#)),
    };
    let kind = if uri.path() == "/v2/stream-logs" {
        "text/event-stream"
    } else {
        "application/json"
    };
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, kind)], body)
}
