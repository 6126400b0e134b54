//! How the authority is spoken to.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::Limited;
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use super::AcmeError;
use crate::trust;

/// How long an answer's head may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// More than any answer has.
const ANSWER_MAX: usize = 1 << 20;

type Body = BodyWrapper<Bytes>;

/// HTTPS alone.
pub(super) struct Https(Client<HttpsConnector<HttpConnector>, Body>);

impl Https {
    /// With whom the certificates in `authority` vouch for, or the web's.
    pub(super) fn new(authority: Option<&Path>) -> Result<Self, AcmeError> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust::client_config(authority).map_err(AcmeError)?)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let asked = tokio::time::timeout(ANSWER_WITHIN, self.0.request(request));
        Box::pin(async move {
            let said = |what: String| Error::Other(format!("{host} {what}").into());
            let answer = match asked.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(said(format!("cannot be reached: {}", last(&error)))),
                Err(_) => return Err(said(format!("did not answer within {ANSWER_WITHIN:?}"))),
            };
            let status = answer.status();
            let kind = answer.headers().get(header::CONTENT_TYPE);
            let is_problem = kind.is_some_and(|kind| kind == "application/problem+json");
            if !status.is_success() && !is_problem {
                return Err(said(format!("answers {status}")));
            }
            Ok(answer.map(|body| Limited::new(body, ANSWER_MAX)).into())
        })
    }
}

/// What is at the bottom of an error: the others say that there was one.
fn last(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => last(source),
        None => error.to_string(),
    }
}
