//! A client of the API: what the command line needs of it.

pub mod find;
pub mod logs;
pub mod wire;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use find::Found;
use logs::LogStream;
use wire::{
    Created, Document, GpuStanding, KeyCreated, KeyRow, MachineRow, MachineSpec, NewKey,
    NewSession, NewShare, Session, SessionToken, ShareCreated, ShareRow, Usage, VersionRow,
};

type Http = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The longest answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest that connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest that an answer may take to begin: a route may wait 300 s on purpose.
const ANSWER_LIMIT: Duration = Duration::from_secs(330);

/// Why a request came to nothing. A sentence, with the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "no server answers at {url} ({why}); start one with `dwell serve`, or name another with --url or DWELL_URL"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What the system says.
        why: String,
    },
    /// The server refuses.
    #[error("{detail}{}", hint(*status))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its sentence.
        detail: String,
    },
    /// Something answers, but not as this client understands.
    #[error("{url} does not answer as a Dwell server does: {why}")]
    NotUnderstood {
        /// Where.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
}

fn hint(status: u16) -> &'static str {
    if status == StatusCode::UNAUTHORIZED.as_u16() {
        "; give a key of this server with --api-key or DWELL_API_KEY, or its data directory with --data-dir"
    } else {
        ""
    }
}

/// What the server answered: understood, and word for word.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// As this client understands it.
    pub value: T,
    /// The API's own JSON.
    pub json: String,
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: Http,
    base: String,
    key: Option<HeaderValue>,
}

impl Client {
    /// A client of the server that was found.
    ///
    /// # Errors
    /// When its URL or its key cannot be one.
    pub fn new(server: &Found) -> Result<Self, ClientError> {
        let base = server.url.trim_end_matches('/').to_owned();
        let not_understood = |why: &str| ClientError::NotUnderstood {
            url: base.clone(),
            why: why.to_owned(),
        };
        let uri: Uri = base
            .parse()
            .map_err(|_| not_understood("it is no URL; write it like http://127.0.0.1:8080"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(not_understood(
                "a URL begins with http:// or https://, like http://127.0.0.1:8080",
            ));
        }
        let key = server
            .key
            .as_deref()
            .map(|key| HeaderValue::try_from(format!("Bearer {key}")))
            .transpose()
            .map_err(|_| not_understood("the API key has characters that no key has"))?
            .map(|mut key| {
                key.set_sensitive(true);
                key
            });
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self {
            http: hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                .build(connector),
            base,
            key,
        })
    }

    /// Where the server is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    // --- Sessions -------------------------------------------------------------

    /// A new session: of a machine, or from a command.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn create_session(&self, new: &NewSession) -> Result<Created, ClientError> {
        let path = if new.machine_id.is_some() {
            "/session"
        } else {
            "/session/dynamic"
        };
        Ok(self.post(path, new).await?.value)
    }

    /// One session, open or ended.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn session(&self, id: &str) -> Result<Answer<Session>, ClientError> {
        self.get(&format!("/session/{}", encode(id))).await
    }

    /// Open sessions, newest first; with `ended`, the latest of those that have ended
    /// too.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn sessions(&self, ended: bool) -> Result<Answer<Vec<Session>>, ClientError> {
        self.get(if ended {
            "/sessions?include_ended=true&limit=1000"
        } else {
            "/sessions"
        })
        .await
    }

    /// More minutes for a session that runs.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn extend(&self, id: &str, minutes: u32) -> Result<String, ClientError> {
        let path = format!("/session/{}/increase-timeout", encode(id));
        let body = serde_json::json!({ "minutes": minutes });
        Ok(self.post::<Document>(&path, &body).await?.json)
    }

    /// End a session; with `wait`, until it has ended or half a minute has passed.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn stop(&self, id: &str, wait: bool) -> Result<String, ClientError> {
        let path = format!("/session/{}?wait_for_shutdown={wait}", encode(id));
        let answer = self.ask::<Document>(Method::DELETE, &path, None).await?;
        Ok(answer.json)
    }

    /// Keep a session's files as a new version of its machine.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn snapshot(&self, id: &str) -> Result<Answer<Document>, ClientError> {
        let path = format!("/session/{}/snapshot", encode(id));
        self.post(&path, &serde_json::json!({})).await
    }

    /// What a session's app wrote and writes, from the first line on until the session
    /// ends.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn logs(&self, id: &str) -> Result<LogStream, ClientError> {
        let path = format!("/v2/stream-logs?session_id={}", encode(id));
        let response = self.send(Method::GET, &path, None).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        Ok(LogStream::new(self.base.clone(), response.into_body()))
    }

    // --- Machines -------------------------------------------------------------

    /// All machines.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn machines(&self) -> Result<Answer<Vec<MachineRow>>, ClientError> {
        self.get("/machines").await
    }

    /// One machine.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn machine(&self, id: &str) -> Result<Answer<MachineRow>, ClientError> {
        self.get(&format!("/machine/{}", encode(id))).await
    }

    /// A new machine.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn create_machine(
        &self,
        machine: &MachineSpec,
    ) -> Result<Answer<MachineRow>, ClientError> {
        self.post("/machine/serverless", machine).await
    }

    /// Change a machine; what is not in `patch` stays.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn update_machine(
        &self,
        id: &str,
        patch: &MachineSpec,
    ) -> Result<Answer<MachineRow>, ClientError> {
        let path = format!("/machine/serverless/{}", encode(id));
        self.ask(Method::PATCH, &path, Some(self.body(patch)?))
            .await
    }

    /// Delete a machine.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn delete_machine(&self, id: &str) -> Result<String, ClientError> {
        let path = format!("/machine/{}", encode(id));
        let answer = self.ask::<Document>(Method::DELETE, &path, None).await?;
        Ok(answer.json)
    }

    /// A machine's versions, newest first.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn versions(&self, id: &str) -> Result<Answer<Vec<VersionRow>>, ClientError> {
        self.get(&format!("/machine/serverless/{}/versions", encode(id)))
            .await
    }

    // --- Keys and usage -------------------------------------------------------

    /// The owner's keys.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn keys(&self) -> Result<Answer<Vec<KeyRow>>, ClientError> {
        self.get("/platform/api-keys").await
    }

    /// A new key.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn create_key(&self, new: &NewKey) -> Result<Answer<KeyCreated>, ClientError> {
        self.post("/platform/api-keys", new).await
    }

    /// A key is to be good no more.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn revoke_key(&self, id: &str) -> Result<String, ClientError> {
        let path = format!("/platform/api-keys/{}", encode(id));
        let answer = self.ask::<Document>(Method::DELETE, &path, None).await?;
        Ok(answer.json)
    }

    /// A session's share links, newest first.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn shares(&self, session: &str) -> Result<Answer<Vec<ShareRow>>, ClientError> {
        let path = format!("/session/{}/shares", encode(session));
        self.get(&path).await
    }

    /// A new share link.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn create_share(
        &self,
        session: &str,
        new: &NewShare,
    ) -> Result<Answer<ShareCreated>, ClientError> {
        let path = format!("/session/{}/shares", encode(session));
        self.post(&path, new).await
    }

    /// A share link is to be good no more.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn revoke_share(&self, session: &str, id: &str) -> Result<String, ClientError> {
        let path = format!("/session/{}/shares/{}", encode(session), encode(id));
        let answer = self.ask::<Document>(Method::DELETE, &path, None).await?;
        Ok(answer.json)
    }

    /// The session's own token.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn token(&self, session: &str) -> Result<Answer<SessionToken>, ClientError> {
        let path = format!("/session/{}/token", encode(session));
        self.get(&path).await
    }

    /// GPU time and cost by GPU type, from one moment until another.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn usage(
        &self,
        since: Option<&str>,
        until: Option<&str>,
    ) -> Result<Answer<Usage>, ClientError> {
        let bounds = [("start_time", since), ("end_time", until)];
        let query: Vec<_> = bounds
            .into_iter()
            .filter_map(|(name, at)| Some(format!("{name}={}", encode(at?))))
            .collect();
        self.get(&format!("/platform/usage?{}", query.join("&")))
            .await
    }

    /// What there is of each GPU type, and where.
    ///
    /// # Errors
    /// As the API refuses it.
    pub async fn gpus(&self) -> Result<Answer<Vec<GpuStanding>>, ClientError> {
        self.get("/platform/gpus").await
    }

    /// The server's version, as its own description of itself says.
    ///
    /// # Errors
    /// When nobody answers, or it is no Dwell server.
    pub async fn version(&self) -> Result<String, ClientError> {
        let answer = self.get::<wire::OpenApi>("/openapi.json").await?;
        let info = answer.value.info;
        if info.title.to_lowercase().contains("dwell") {
            return Ok(info.version);
        }
        Err(self.not_understood(format!("it calls itself {}", info.title)))
    }

    // --- Within ---------------------------------------------------------------

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.ask(Method::GET, path, None).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Answer<T>, ClientError> {
        self.ask(Method::POST, path, Some(self.body(body)?)).await
    }

    fn body(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body)
            .map(Bytes::from)
            .map_err(|why| self.not_understood(format!("the request cannot be written: {why}")))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer<T>, ClientError> {
        let response = self.send(method, path, body).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let json = self.read(response).await?;
        let value = serde_json::from_str(&json)
            .map_err(|why| self.not_understood(format!("{path} says {why}")))?;
        Ok(Answer { value, json })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(ACCEPT, "application/json, text/event-stream")
            .header(USER_AGENT, concat!("dwell/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|why| self.not_understood(why.to_string()))?;
        match tokio::time::timeout(ANSWER_LIMIT, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(why)) => Err(self.unreachable(root_cause(&why))),
            Err(_) => Err(self.unreachable("it takes too long to answer".to_owned())),
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<String, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|why| self.unreachable(format!("its answer broke off: {why}")))?
            .to_bytes();
        String::from_utf8(body.to_vec()).map_err(|why| self.not_understood(why.to_string()))
    }

    async fn refused(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        match self.read(response).await {
            Err(error) => error,
            Ok(body) => match wire::detail(&body) {
                Some(detail) => ClientError::Refused {
                    status: status.as_u16(),
                    detail,
                },
                None => self.not_understood(format!("HTTP status {status}")),
            },
        }
    }

    fn unreachable(&self, why: String) -> ClientError {
        ClientError::Unreachable {
            url: self.base.clone(),
            why,
        }
    }

    fn not_understood(&self, why: String) -> ClientError {
        ClientError::NotUnderstood {
            url: self.base.clone(),
            why,
        }
    }
}

/// What is at the bottom of an error: `Connection refused` rather than `client error`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let text = cause.to_string();
    match text.split_once(" (os error") {
        Some((sentence, _)) => sentence.to_lowercase(),
        None => text,
    }
}

/// `text` as one segment of a path or one value of a query.
fn encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
