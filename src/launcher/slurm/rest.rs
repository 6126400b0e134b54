//! Asking Slurm by slurmrestd, where its commands are not at hand.

mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dwell_core::job::JobId;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::interface::{Batch, Interface, Node, SlurmError};
use super::job::Job;
use crate::trust;
use wire::{Answer, VERSIONS, Version};

/// How long an answer may take. A controller that is busy makes its clients wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// It says a few kilobytes of each job of the cluster, whosever it is.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// So much of one that cannot be understood is told.
const BEGINNING_BYTES: usize = 200;

const USER_NAME: HeaderName = HeaderName::from_static("x-slurm-user-name");
const USER_TOKEN: HeaderName = HeaderName::from_static("x-slurm-user-token");

/// What the configuration says of slurmrestd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestSettings {
    /// Where it is.
    pub address: RestAddress,
    /// Whose jobs are ours, by name.
    pub user: String,
    /// A file with that user's token, which is read each time. None where whoever reaches
    /// slurmrestd is known by that, as on its Unix socket.
    pub token_file: Option<PathBuf>,
    /// Whom it is known by over `https`, in PEM, where that is not who the web trusts.
    pub certificate: Option<PathBuf>,
    /// Further properties of jobs, as slurmrestd takes them: an object.
    pub job: Value,
}

/// Where slurmrestd is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestAddress {
    /// A Unix socket.
    Socket(PathBuf),
    /// A bare origin, `http` or `https`.
    Origin(String),
}

/// A slurmrestd.
pub(super) struct Rest {
    settings: RestSettings,
    /// What it and we speak, once that is known.
    version: Mutex<Option<Version>>,
    /// Whether a job that was submitted was seen to be that user's.
    user_is_right: AtomicBool,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[async_trait]
impl Interface for Rest {
    async fn submit(&self, batch: &Batch<'_>) -> Result<JobId, SlurmError> {
        let version = self.version().await?;
        let body = version.submission(batch, &self.settings.job);
        let answer = self.ask(version, Method::POST, "job/submit", Some(&body));
        let answer = answer.await?;
        // It may say with the id what the job has to wait for, as an error.
        match answer.job_id {
            Some(id) if id > 0 => self.is_ours(JobId(id.to_string())).await,
            Some(_) | None => answer.done().and_then(|_| {
                let why = "slurmrestd does not say which job it submitted".to_owned();
                Err(SlurmError::Unclear(why))
            }),
        }
    }

    async fn jobs(&self) -> Result<Vec<Job>, SlurmError> {
        let jobs = self.all("jobs").await?.jobs()?.into_iter();
        let ours = jobs.filter(|job| job.is_of_another(&self.settings.user).is_none());
        Ok(ours.filter_map(wire::WireJob::job).collect())
    }

    async fn cancel(&self, name: &str, id: &JobId) -> Result<(), SlurmError> {
        if !self.is_called(id, name).await? {
            return Ok(());
        }
        let (version, job) = (self.version().await?, format!("job/{id}"));
        let answer = self.ask(version, Method::DELETE, &job, None).await;
        answer?.done().map(drop)
    }

    async fn limit(&self, name: &str, id: &JobId, minutes: u64) -> Result<(), SlurmError> {
        if !self.is_called(id, name).await? {
            return Ok(());
        }
        let (version, job) = (self.version().await?, format!("job/{id}"));
        let body = version.limit(minutes);
        let answer = self.ask(version, Method::POST, &job, Some(&body)).await;
        answer?.done().map(drop)
    }

    async fn nodes(&self, partition: Option<&str>) -> Result<Vec<Node>, SlurmError> {
        let nodes = self.all("nodes").await?.nodes()?.into_iter();
        Ok(nodes.filter_map(|node| node.node(partition)).collect())
    }

    async fn waiting(&self, partition: Option<&str>) -> Result<Vec<String>, SlurmError> {
        let jobs = self.all("jobs").await?.jobs()?.into_iter();
        Ok(jobs.filter_map(|job| job.waits_for(partition)).collect())
    }
}

impl Rest {
    pub(super) const fn new(settings: RestSettings) -> Self {
        Self {
            settings,
            version: Mutex::new(None),
            user_is_right: AtomicBool::new(false),
        }
    }

    /// The newest version that both sides know.
    async fn version(&self) -> Result<Version, SlurmError> {
        let known = *self.known();
        if let Some(version) = known {
            return Ok(version);
        }
        for version in VERSIONS {
            let (status, _) = self
                .send(Method::GET, &format!("/slurm/{version}/ping"), None)
                .await?;
            if status != StatusCode::NOT_FOUND {
                *self.known() = Some(version);
                return Ok(version);
            }
        }
        let (newest, oldest) = (VERSIONS[0], VERSIONS[VERSIONS.len() - 1]);
        Err(SlurmError::Unclear(format!(
            "slurmrestd has no version of its API between {oldest} and {newest}; see that it has \
             the plugin openapi/slurmctld, or openapi/v0.0.38 of old"
        )))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Version>> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job that was submitted, unless it is another user's: then it would not be known again.
    async fn is_ours(&self, id: JobId) -> Result<JobId, SlurmError> {
        if self.user_is_right.load(Ordering::Relaxed) {
            return Ok(id);
        }
        let (version, job) = (self.version().await?, format!("job/{id}"));
        let jobs = self.all(&job).await.and_then(Answer::jobs);
        // The next look will tell.
        let Some(job_is) = jobs.ok().and_then(|jobs| jobs.into_iter().next()) else {
            return Ok(id);
        };
        let user = &self.settings.user;
        let Some(whose) = job_is.is_of_another(user) else {
            self.user_is_right.store(true, Ordering::Relaxed);
            return Ok(id);
        };
        let why = format!(
            "slurmrestd submits jobs of {whose}, and not of {user}; set user = \"{whose}\" in the \
             [[launcher]]"
        );
        let cancelled = self.ask(version, Method::DELETE, &job, None).await;
        Err(match cancelled.and_then(Answer::done) {
            Ok(_) => SlurmError::Refused(why),
            Err(error) => SlurmError::Unclear(format!("{why}: {error}")),
        })
    }

    /// Is that the name of the job which has this id now?
    async fn is_called(&self, id: &JobId, name: &str) -> Result<bool, SlurmError> {
        let jobs = self.all(&format!("job/{id}")).await?.jobs()?;
        Ok(jobs.iter().any(|job| job.name.as_deref() == Some(name)))
    }

    async fn all(&self, what: &str) -> Result<Answer, SlurmError> {
        let version = self.version().await?;
        self.ask(version, Method::GET, what, None).await?.done()
    }

    /// What it answers, if that can be understood.
    async fn ask(
        &self,
        version: Version,
        method: Method,
        what: &str,
        body: Option<&Value>,
    ) -> Result<Answer, SlurmError> {
        let path = format!("/slurm/{version}/{what}");
        let (status, text) = self.send(method, &path, body).await?;
        if status == StatusCode::NOT_FOUND {
            // Perhaps it is another by now.
            *self.known() = None;
        }
        let odd = |why: &str| {
            SlurmError::Unclear(format!(
                "slurmrestd answers {status} to {path}, and not as it should: {why}"
            ))
        };
        let begins = String::from_utf8_lossy(&text[..text.len().min(BEGINNING_BYTES)]).into_owned();
        // It may be of all jobs of a large cluster.
        let read = spawn_blocking(move || serde_json::from_slice::<Answer>(&text));
        match read.await {
            Ok(Ok(answer)) if status.is_success() || answer.is_error() => Ok(answer),
            Ok(Ok(_)) => Err(odd(&begins)),
            Ok(Err(error)) => Err(odd(&format!("{error}: {begins}"))),
            Err(error) => Err(odd(&error.to_string())),
        }
    }

    /// One request, and its answer, whatever that is.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), SlurmError> {
        let answer = timeout(ANSWER_WITHIN, self.exchange(method, path, body));
        let why = match answer.await {
            Ok(Ok((StatusCode::UNAUTHORIZED, _))) => {
                "it does not know who asks; look at user and token_file of the [[launcher]]"
                    .to_owned()
            }
            Ok(Ok(answered)) => return Ok(answered),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {ANSWER_WITHIN:?}"),
        };
        let address = match &self.settings.address {
            RestAddress::Socket(path) => path.display().to_string(),
            RestAddress::Origin(origin) => origin.clone(),
        };
        Err(SlurmError::Unclear(format!(
            "slurmrestd at {address}: {why}"
        )))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = self.request(method, path, body).await?;
        let stream = self.connect().await?;
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| said(&error))?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let answer = sender.send_request(request).await.map_err(|it| said(&it))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
        Ok((status, body.await.map_err(|it| said(&it))?.to_bytes()))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let host = match &self.settings.address {
            RestAddress::Socket(_) => "localhost",
            RestAddress::Origin(origin) => origin.split("://").last().unwrap_or_default(),
        };
        let user = HeaderValue::from_str(&self.settings.user)
            .map_err(|_| "user is no name of a user".to_owned())?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(USER_NAME, user);
        if let Some(file) = &self.settings.token_file {
            let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
            let token = tokio::fs::read_to_string(file).await;
            let token = token.map_err(|error| wrong(&error))?;
            // As `scontrol token` prints it, or the token alone.
            let token = token.trim().trim_start_matches("SLURM_JWT=");
            let mut token =
                HeaderValue::from_str(token).map_err(|_| wrong(&"there is no token in it"))?;
            token.set_sensitive(true);
            request = request.header(USER_TOKEN, token);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(body)).map_err(|it| it.to_string())
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let origin = match &self.settings.address {
            RestAddress::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                return Ok(Box::new(stream.map_err(|error| error.to_string())?));
            }
            RestAddress::Origin(origin) => origin,
        };
        let uri: Uri = origin.parse().map_err(|_| "it is no address".to_owned())?;
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        if !is_secure {
            return Ok(Box::new(stream));
        }
        let trusted = trust::client_config(self.settings.certificate.as_deref())?;
        let name = host.to_owned().try_into();
        let name = name.map_err(|_| format!("{host} is no name of a host"))?;
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(trusted));
        let stream = connector.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| error.to_string())?))
    }
}

#[cfg(test)]
mod tests;
