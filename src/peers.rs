//! What servers say to each other: requests that one passes on to another.

use axum::body::Body;
use axum::http::header::HeaderName;
use axum::http::uri::{PathAndQuery, Uri};
use axum::http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// A server that is there accepts a connection within this.
const CONNECTED_WITHIN: Duration = Duration::from_secs(1);
/// One that has gone without a word is noticed after four times this.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// On a request that another server has passed on: it is not passed on again.
pub const PASSED_ON: HeaderName = HeaderName::from_static("dwell-passed-on");

/// Calls other servers. Clones share their connections.
#[derive(Clone)]
pub struct Peers(Client<HttpsConnector<HttpConnector>, Body>);

impl Default for Peers {
    fn default() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECTED_WITHIN));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(3));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }
}

impl Peers {
    /// The answer of another server, at `origin`, to `request`. None if there is no such
    /// place.
    ///
    /// # Errors
    /// When none comes.
    pub async fn pass_on(
        &self,
        mut request: Request<Body>,
        origin: &str,
    ) -> Option<Result<Response<Incoming>, Error>> {
        let headers = request.headers_mut();
        headers.insert(PASSED_ON, HeaderValue::from_static("1"));
        self.hand_over(request, origin).await
    }

    /// The same of this server's successor, which does with it as this one would have.
    ///
    /// # Errors
    /// When none comes.
    pub async fn hand_over(
        &self,
        mut request: Request<Body>,
        origin: &str,
    ) -> Option<Result<Response<Incoming>, Error>> {
        let path = request.uri().path_and_query();
        let path = path.map_or("/", PathAndQuery::as_str);
        *request.uri_mut() = format!("{origin}{path}").parse::<Uri>().ok()?;
        Some(self.0.request(request).await)
    }
}
