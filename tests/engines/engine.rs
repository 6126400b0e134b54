//! Docker Engine and Podman, started by the tests and for them alone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use dwell::engine::{EngineSettings, GpuPassing, Subnets};
use dwell::launcher::local::Manner;
use dwell_core::time::Millis;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::image;

/// What all sessions here run in: busybox and nothing else.
pub const BUSYBOX: &str = "dwell-test/busybox:1";

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

pub struct Engine {
    pub kind: Kind,
    dir: PathBuf,
    daemon: Mutex<Option<Child>>,
    /// Who kills it is alone with it.
    users: RwLock<()>,
}

pub fn docker() -> &'static Engine {
    static DOCKER: OnceLock<Engine> = OnceLock::new();
    DOCKER.get_or_init(|| Engine::new(Kind::Docker))
}

pub fn podman() -> &'static Engine {
    static PODMAN: OnceLock<Engine> = OnceLock::new();
    PODMAN.get_or_init(|| Engine::new(Kind::Podman))
}

impl Engine {
    fn new(kind: Kind) -> Self {
        assert!(
            std::env::var_os("DWELL_TEST_OUTSIDE").is_some(),
            "engines are for `make test-engines`, which keeps the host's network out of it"
        );
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("engines-{kind:?}"));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let engine = Self {
            kind,
            dir,
            daemon: Mutex::new(None),
            users: RwLock::new(()),
        };
        engine.come_back();
        engine.import(&image::busybox(&engine.dir), BUSYBOX);
        engine
    }

    /// One user among others.
    pub async fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.users.read().await
    }

    /// The only user.
    pub async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.users.write().await
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("engine.sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// As when its daemon crashes.
    pub fn dies(&self) {
        let mut daemon = self.daemon.lock().unwrap().take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub fn come_back(&self) {
        let _ = std::fs::remove_file(self.socket());
        let at = |name: &str| self.dir.join(name);
        let mut command = match self.kind {
            Kind::Docker => {
                let mut command = Command::new("dockerd");
                command
                    .arg("--data-root")
                    .arg(at("data"))
                    .arg("--exec-root")
                    .arg(at("exec"))
                    .arg("--pidfile")
                    .arg(at("pid"))
                    .args(["--cgroup-parent", "/dwell-test", "--live-restore"])
                    .args(["--host", &self.host()]);
                // The one that was killed could not remove it.
                let _ = std::fs::remove_file(at("pid"));
                command
            }
            Kind::Podman => {
                std::fs::write(at("containers.conf"), CONTAINERS_CONF).unwrap();
                let mut command = Command::new("podman");
                command
                    .env("CONTAINERS_CONF", at("containers.conf"))
                    .arg("--root")
                    .arg(at("root"))
                    .arg("--runroot")
                    .arg(at("run"))
                    .arg("--network-config-dir")
                    .arg(at("networks"))
                    .args(["system", "service", "--time=0", &self.host()]);
                command
            }
        };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(at("log"))
            .unwrap();
        let daemon = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let daemon = daemon.expect("`make test-engines` installs the engines");
        *self.daemon.lock().unwrap() = Some(daemon);
        let began = Instant::now();
        while !self.cli(&["version"]).status.success() {
            let log = std::fs::read_to_string(at("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "no engine: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn cli(&self, words: &[&str]) -> Output {
        Command::new("docker")
            .args(["--host", &self.host()])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What somebody else does at this engine.
    pub fn docker(&self, words: &[&str]) -> String {
        let output = self.cli(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Make an image of this tree.
    pub fn import(&self, tree: &Path, name: &str) {
        let tar = self.dir.join("image.tar");
        image::pack(tree, &tar);
        self.docker(&["import", tar.to_str().unwrap(), name]);
    }

    /// An image that says to be of another architecture.
    pub fn load_foreign(&self, name: &str) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("tree")).unwrap();
        std::fs::write(at("tree/file"), "of elsewhere").unwrap();
        let process = serde_json::json!({});
        image::save(&at("tree"), name, "s390x", &process, &at("image.tar"));
        self.docker(&["load", "--input", at("image.tar").to_str().unwrap()]);
    }

    pub fn settings(&self) -> EngineSettings {
        EngineSettings {
            host: self.host(),
            network: "dwell".into(),
            subnets: Subnets::default(),
            gpus: GpuPassing::DeviceRequests,
            pull_limit: Millis::from_minutes(1),
            cpu_millis: None,
            disk_mib: None,
        }
    }

    pub fn manner(&self) -> Manner {
        Manner {
            engine: Some(self.settings()),
            ..Manner::default()
        }
    }

    /// What a server's config says of it.
    pub fn config(&self) -> String {
        format!(
            "[gpus]\nCPU = 100\n[limits]\nsessions_per_machine = 100\ngrace_seconds = 0.3\n\
             [session]\nmemory_mib = 64\npids_max = 100\n\
             [[launcher]]\nkind = \"docker\"\nhost = \"{}\"\n",
            self.host()
        )
    }

    /// The same for apps that need more.
    pub fn roomy_config(&self) -> String {
        self.config()
            .replace("memory_mib = 64", "memory_mib = 1024")
    }

    /// An image with JupyterLab in it.
    pub fn jupyter(&self) -> &'static str {
        const NAME: &str = "dwell-test/jupyter:1";
        let tar = Path::new(env!("CARGO_MANIFEST_DIR")).join(".apps/jupyter.tar");
        assert!(tar.exists(), "`make test-engines` makes {}", tar.display());
        self.docker(&["import", tar.to_str().unwrap(), NAME]);
        NAME
    }

    /// The engine's name of a session's container, if it has one.
    pub fn container_of(&self, session: &str) -> Option<String> {
        let filter = format!("label=dwell.session={session}");
        let found = self.docker(&["ps", "--all", "--quiet", "--filter", &filter]);
        Some(found).filter(|found| !found.is_empty())
    }

    /// Until it has none any more.
    pub async fn has_nothing_of(&self, session: &str) {
        let began = Instant::now();
        while let Some(left) = self.container_of(session) {
            assert!(began.elapsed() < PATIENCE, "left: {left}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What Podman 4 needs on a host with cgroups of both versions.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;
