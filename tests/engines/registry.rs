//! A registry of images, and the line by which an engine reaches it, which may be slow.

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::MutexGuard;

use crate::engine::Engine;

const PATIENCE: Duration = Duration::from_secs(30);
/// So often the line gives what it may.
const BEAT: Duration = Duration::from_millis(50);
/// As fast as it can.
pub const FAST: u64 = u64::MAX;

pub struct Registry<'a> {
    /// No other is there meanwhile.
    _port: MutexGuard<'a, u16>,
    process: Child,
    /// Bytes a second that the engine gets.
    rate: Arc<AtomicU64>,
    /// It goes on while a test waits for a program.
    line: Option<Runtime>,
    /// What the engine calls it.
    pub address: String,
    _dir: tempfile::TempDir,
}

impl<'a> Registry<'a> {
    /// One that this engine reaches.
    pub async fn of(engine: &'a Engine) -> Self {
        let port = engine.registry_port.lock().await;
        let held = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let behind = held.local_addr().unwrap();
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nhttp: {{ addr: \"{behind}\" }}\n\
             storage: {{ filesystem: {{ rootdirectory: {:?} }} }}\n",
            dir.path().join("images")
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry");
        process.arg("serve").arg(&config);
        let process = process
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = process.spawn();
        let process = process.expect("`make test-engines` installs docker-registry");
        let began = Instant::now();
        while std::net::TcpStream::connect(behind).is_err() {
            assert!(began.elapsed() < PATIENCE, "no registry");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let rate = Arc::new(AtomicU64::new(FAST));
        // It listens before anybody is told where.
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let held = Arc::clone(&rate);
        let line = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        line.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (engine, _) = listener.accept().await.unwrap();
                let registry = TcpStream::connect(behind).await.unwrap();
                let rate = Arc::clone(&held);
                tokio::spawn(async move {
                    let (from_engine, mut to_engine) = engine.into_split();
                    let (mut from_registry, mut to_registry) = registry.into_split();
                    let mut from_engine = from_engine;
                    let up = tokio::io::copy(&mut from_engine, &mut to_registry);
                    let down = held_back(&mut from_registry, &mut to_engine, &rate);
                    // Neither side is told more than that it is over.
                    let _ = tokio::join!(up, down);
                });
            }
        });
        Self {
            process,
            rate,
            line: Some(line),
            address: format!("127.0.0.1:{port}"),
            _dir: dir,
            _port: port,
        }
    }

    /// From now on the engine gets so many bytes a second.
    pub fn gives(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// As when its host goes.
    pub fn dies(&mut self) {
        if let Some(line) = self.line.take() {
            line.shutdown_background();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.dies();
    }
}

async fn held_back(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    rate: &AtomicU64,
) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let beats = u64::try_from(1_000 / BEAT.as_millis()).unwrap();
    let mut piece = vec![0; PIECE];
    loop {
        let most = rate.load(Ordering::Relaxed);
        if most != FAST {
            tokio::time::sleep(BEAT).await;
        }
        let most = usize::try_from(most / beats).unwrap().min(PIECE);
        if most == 0 {
            continue;
        }
        let read = from.read(&mut piece[..most]).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..read]).await?;
    }
}

/// A tree like another, with a file of so many bytes that cannot be made smaller.
pub fn grow(tree: &Path, bytes: usize) {
    let mut noise = vec![0; bytes];
    fastrand::Rng::new().fill(&mut noise);
    std::fs::write(tree.join("noise"), noise).unwrap();
}
