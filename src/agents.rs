//! The agents that a server hands out to jobs of clusters, each named by its hash.
//!
//! One that was promised to a job is kept as long as sessions are: the job may wait in its
//! queue while the server is upgraded. Anyone may have them: they are nobody's secret, and
//! what they are to do is not in them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{self, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use crate::keys::hex;
use crate::launcher::handout::PATH;
use crate::peers::{PASSED_ON, Peers};

/// What the agent is called that is installed beside the server, and runs on more hosts.
const STATIC_AGENT: &str = "dwell-agent";
/// How often what is kept is looked at.
const LOOK_EVERY: Duration = Duration::from_hours(1);

/// The agents in a directory. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Agents {
    dir: PathBuf,
    /// All servers, if there are several: another may have been the one that promised.
    servers: watch::Receiver<Option<Vec<String>>>,
    peers: Peers,
}

/// A server's own agent: the one beside it, or else itself, which is one too.
#[must_use]
pub fn own() -> PathBuf {
    let beside = std::env::current_exe().map(|this| this.with_file_name(STATIC_AGENT));
    match beside {
        Ok(beside) if beside.is_file() => beside,
        // Still the same file when the one on disk has been replaced by a newer one.
        Ok(_) | Err(_) => PathBuf::from("/proc/self/exe"),
    }
}

impl Agents {
    /// Those in `dir`, and what `servers` have.
    #[must_use]
    pub fn new(dir: PathBuf, servers: watch::Receiver<Option<Vec<String>>>) -> Self {
        Self {
            dir,
            servers,
            peers: Peers::default(),
        }
    }

    /// Take in this program, and return its hash.
    ///
    /// # Errors
    /// When it cannot be read, or the directory not written.
    pub async fn take_in(&self, agent: PathBuf) -> io::Result<String> {
        let dir = self.dir.clone();
        let taken = tokio::task::spawn_blocking(move || copy_in(&agent, &dir));
        taken.await.map_err(io::Error::other)?
    }

    /// Keep the agent with the hash `promised`, and others for `retention` after they were
    /// promised last.
    pub async fn keep(self, promised: String, retention: Duration) {
        loop {
            let (dir, promised) = (self.dir.clone(), promised.clone());
            let looked = tokio::task::spawn_blocking(move || {
                File::open(dir.join(promised))?.set_modified(SystemTime::now())?;
                remove_older(&dir, retention)
            });
            if let Ok(Err(error)) = looked.await {
                tracing::warn!("the agents in {}: {error}", self.dir.display());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Where jobs fetch them.
    pub fn router(self) -> Router {
        Router::new()
            .route(&format!("{PATH}{{sha256}}"), get(hand_out))
            .with_state(self)
    }

    /// What another server answers that has it.
    async fn of_another(&self, method: &Method, uri: &Uri) -> Option<Response> {
        let servers = self.servers.borrow().clone();
        for server in servers.into_iter().flatten() {
            let mut question = Request::new(Body::empty());
            question.method_mut().clone_from(method);
            question.uri_mut().clone_from(uri);
            if let Some(Ok(answer)) = self.peers.pass_on(question, &server).await
                && answer.status() == StatusCode::OK
            {
                return Some(answer.into_response());
            }
        }
        None
    }
}

async fn hand_out(
    State(agents): State<Agents>,
    extract::Path(sha256): extract::Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let not_here = || {
        let sentence = "There is no such agent here; jobs are told the address of theirs\n";
        (StatusCode::NOT_FOUND, sentence).into_response()
    };
    if !is_hash(&sha256) {
        return not_here();
    }
    let Ok(file) = tokio::fs::File::open(agents.dir.join(&sha256)).await else {
        if headers.contains_key(PASSED_ON) {
            return not_here();
        }
        let elsewhere = agents.of_another(&method, &uri).await;
        return elsewhere.unwrap_or_else(not_here);
    };
    let Ok(metadata) = file.metadata().await else {
        return not_here();
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, metadata.len().to_string()),
        (header::ETAG, format!("\"{sha256}\"")),
        (
            header::CACHE_CONTROL,
            "public, max-age=31536000, immutable".to_owned(),
        ),
    ];
    let body = Body::from_stream(ReaderStream::with_capacity(file, 64 * 1024));
    (headers, body).into_response()
}

fn is_hash(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it))
}

/// Copy `agent` to what its hash names in `dir`, whole or not at all.
fn copy_in(agent: &Path, dir: &Path) -> io::Result<String> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let draft = dir.join(format!("{}.new", Uuid::new_v4()));
    let copied = copy_and_hash(agent, &draft).and_then(|sha256| {
        fs::rename(&draft, dir.join(&sha256))?;
        File::open(dir)?.sync_all()?;
        Ok(sha256)
    });
    if copied.is_err() {
        drop(fs::remove_file(&draft));
    }
    copied
}

fn copy_and_hash(from: &Path, to: &Path) -> io::Result<String> {
    let mut from = File::open(from)?;
    let mut options = OpenOptions::new();
    let mut to = options.write(true).create_new(true).mode(0o600).open(to)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
            break;
        };
        hash.update(chunk);
        to.write_all(chunk)?;
    }
    to.sync_all()?;
    Ok(hex(&hash.finalize()))
}

/// Remove what nobody was promised for longer than `retention`, drafts included.
fn remove_older(dir: &Path, retention: Duration) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > retention {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use tokio::net::TcpListener;
    use tower::ServiceExt;

    const DAY: Duration = Duration::from_hours(24);

    struct House {
        dir: tempfile::TempDir,
        servers: watch::Sender<Option<Vec<String>>>,
    }

    impl House {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                servers: watch::Sender::default(),
            }
        }

        fn agents(&self) -> Agents {
            Agents::new(self.dir.path().join("agents"), self.servers.subscribe())
        }

        /// Copy this in, and return its hash.
        fn put(&self, agent: &[u8]) -> String {
            let path = self.dir.path().join("dwell-agent");
            fs::write(&path, agent).unwrap();
            copy_in(&path, &self.agents().dir).unwrap()
        }

        async fn ask(&self, method: Method, path: &str) -> Response {
            let request = Request::builder().method(method).uri(path);
            let request = request.body(Body::empty()).unwrap();
            self.agents().router().oneshot(request).await.unwrap()
        }

        async fn body(&self, path: &str) -> (StatusCode, Vec<u8>) {
            let answer = self.ask(Method::GET, path).await;
            let status = answer.status();
            let body = to_bytes(answer.into_body(), 1 << 24).await.unwrap();
            (status, body.to_vec())
        }
    }

    #[tokio::test]
    async fn an_agent_is_handed_out_to_whoever_knows_its_hash() {
        let house = House::new();
        let agent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let sha256 = house.put(&agent);
        let path = format!("{PATH}{sha256}");
        assert_eq!(house.body(&path).await, (StatusCode::OK, agent.clone()));
        for method in [Method::GET, Method::HEAD] {
            let is_head = method == Method::HEAD;
            let answer = house.ask(method, &path).await;
            assert_eq!(answer.status(), StatusCode::OK);
            let header = |name| answer.headers()[name].to_str().unwrap();
            assert_eq!(header("content-length"), agent.len().to_string());
            assert!(header("cache-control").contains("immutable"));
            if is_head {
                let body = to_bytes(answer.into_body(), 1).await.unwrap();
                assert!(body.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn nothing_but_agents_is_handed_out() {
        let house = House::new();
        let sha256 = house.put(b"agent");
        fs::write(house.dir.path().join("admin.key"), "secret").unwrap();
        fs::write(house.agents().dir.join("draft.new"), "half").unwrap();
        for name in [
            "..%2Fadmin.key",
            "%2e%2e/admin.key",
            "draft.new",
            "",
            &sha256[1..],
            &sha256.to_uppercase(),
            &format!("{sha256}0"),
            &"0".repeat(64),
        ] {
            let (status, body) = house.body(&format!("{PATH}{name}")).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{name}");
            assert_ne!(body, b"secret");
        }
        let (_, sentence) = house.body(&format!("{PATH}{}", "0".repeat(64))).await;
        assert!(sentence.starts_with(b"There is no such agent here"));
    }

    #[tokio::test]
    async fn what_another_server_promised_is_fetched_from_it() {
        let (here, there) = (House::new(), House::new());
        let sha256 = there.put(b"the other's");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = there.agents().router();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let path = format!("{PATH}{sha256}");
        assert_eq!(here.body(&path).await.0, StatusCode::NOT_FOUND);
        let nobody = "http://127.0.0.1:1".to_owned();
        here.servers.send_replace(Some(vec![nobody, url.clone()]));
        let answer = here.body(&path).await;
        assert_eq!(answer, (StatusCode::OK, b"the other's".to_vec()));
        // Two who ask each other do not ask for ever.
        there.servers.send_replace(Some(vec![url]));
        let path = format!("{PATH}{}", "0".repeat(64));
        assert_eq!(here.body(&path).await.0, StatusCode::NOT_FOUND);
        serving.abort();
    }

    #[test]
    fn what_a_job_was_promised_outlives_an_upgrade_by_as_long_as_sessions_are_kept() {
        let house = House::new();
        let dir = house.agents().dir;
        let [old, older, new] = [&b"old"[..], b"older", b"new"].map(|agent| house.put(agent));
        for (agent, days) in [(&old, 29), (&older, 31)] {
            let file = File::open(dir.join(agent)).unwrap();
            file.set_modified(SystemTime::now() - DAY * days).unwrap();
        }
        remove_older(&dir, DAY * 30).unwrap();
        assert!(dir.join(old).exists() && dir.join(new).exists());
        assert!(!dir.join(&older).exists());
    }

    #[test]
    fn an_agent_that_is_there_already_is_there_once_and_promised_anew() {
        let house = House::new();
        let sha256 = house.put(b"agent");
        let path = house.agents().dir.join(&sha256);
        let long_ago = SystemTime::now() - DAY * 365;
        File::open(&path).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(house.put(b"agent"), sha256);
        let promised = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(promised.elapsed().unwrap() < DAY);
        assert_eq!(fs::read_dir(house.agents().dir).unwrap().count(), 1);
    }

    #[test]
    fn an_agent_that_cannot_be_read_leaves_nothing_behind() {
        let house = House::new();
        let dir = house.agents().dir;
        assert!(copy_in(&house.dir.path().join("none"), &dir).is_err());
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }
}
