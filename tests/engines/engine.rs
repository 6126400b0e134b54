//! Docker Engine and Podman, started by the tests and for them alone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use dwell::engine::{EngineSettings, GpuPassing, Subnets};
use dwell::launcher::local::Manner;
use dwell_core::time::Millis;
use tokio::sync::{MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::image;

/// What all sessions here run in: busybox and nothing else.
pub const BUSYBOX: &str = "dwell-test/busybox:1";

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

/// Where its containers' files are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// As it likes, on this host's own disk.
    Usual,
    /// On a disk that both engines can limit.
    Btrfs,
}

pub struct Engine {
    pub kind: Kind,
    storage: Storage,
    dir: PathBuf,
    daemon: Mutex<Option<Child>>,
    /// Where a registry may be that it reaches in the clear; whoever holds it has one there.
    pub registry_port: tokio::sync::Mutex<u16>,
    /// Who kills it is alone with it.
    users: RwLock<()>,
    /// There is one like it on another disk at a time.
    on_btrfs: tokio::sync::Mutex<()>,
}

/// Another engine of the same kind, which can limit what is written.
pub struct OnBtrfs<'a> {
    engine: Engine,
    _turn: MutexGuard<'a, ()>,
}

impl std::ops::Deref for OnBtrfs<'_> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

pub fn docker() -> &'static Engine {
    static DOCKER: OnceLock<Engine> = OnceLock::new();
    DOCKER.get_or_init(|| Engine::new(Kind::Docker, Storage::Usual))
}

pub fn podman() -> &'static Engine {
    static PODMAN: OnceLock<Engine> = OnceLock::new();
    PODMAN.get_or_init(|| Engine::new(Kind::Podman, Storage::Usual))
}

impl Engine {
    fn new(kind: Kind, storage: Storage) -> Self {
        assert!(
            std::env::var_os("DWELL_TEST_OUTSIDE").is_some(),
            "engines are for `make test-engines`, which keeps the host's network out of it"
        );
        let name = match storage {
            Storage::Usual => format!("engines-{kind:?}"),
            Storage::Btrfs => format!("engines-{kind:?}-btrfs"),
        };
        let dir = crate::scratch().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("disk")).unwrap();
        if storage == Storage::Btrfs {
            mount_btrfs(&dir.join("image"), &dir.join("disk"));
        }
        let engine = Self {
            kind,
            storage,
            dir,
            daemon: Mutex::new(None),
            registry_port: tokio::sync::Mutex::new(free_port()),
            users: RwLock::new(()),
            on_btrfs: tokio::sync::Mutex::default(),
        };
        engine.come_back();
        engine.import(&image::busybox(&engine.dir), BUSYBOX);
        engine
    }

    /// Another one of its kind, as soon as no other test has it.
    pub async fn on_btrfs(&self) -> OnBtrfs<'_> {
        let turn = self.on_btrfs.lock().await;
        OnBtrfs {
            engine: Self::new(self.kind, Storage::Btrfs),
            _turn: turn,
        }
    }

    /// Whether it makes containers with a limit on what they write.
    pub fn limits_disk(&self) -> bool {
        let made = self.cli(&["create", "--storage-opt", "size=20M", BUSYBOX, "true"]);
        let id = String::from_utf8(made.stdout).unwrap();
        if made.status.success() {
            self.docker(&["rm", id.trim()]);
        }
        made.status.success()
    }

    /// One user among others.
    pub async fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.users.read().await
    }

    /// The only user.
    pub async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.users.write().await
    }

    /// Which Podman wants to be short; gone with all else when the tests are.
    fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(self.dir.file_name().unwrap())
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

    /// As when it is told to.
    pub fn goes(&self) {
        let mut daemon = self.daemon.lock().unwrap().take().unwrap();
        crate::harness::signal(daemon.id(), nix::sys::signal::Signal::SIGTERM);
        daemon.wait().unwrap();
    }

    /// Where all is that it has.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    pub fn come_back(&self) {
        let _ = std::fs::remove_file(self.socket());
        let at = |name: &str| self.dir.join(name);
        let mut command = match self.kind {
            Kind::Docker => {
                let mut command = Command::new("dockerd");
                command
                    .arg("--data-root")
                    .arg(at("disk/data"))
                    .arg("--exec-root")
                    .arg(at("exec"))
                    .arg("--pidfile")
                    .arg(at("pid"))
                    .args(["--cgroup-parent", "/dwell-test"])
                    // With the usual five it goes on for more than a minute.
                    .args(["--max-download-attempts", "1"])
                    .args(["--host", &self.host()]);
                // The one that was killed could not remove it.
                let _ = std::fs::remove_file(at("pid"));
                match self.storage {
                    // Its containers outlive it.
                    Storage::Usual => command.arg("--live-restore"),
                    // The rules of the host's network are the usual one's.
                    Storage::Btrfs => command
                        .args(["--storage-driver", "btrfs", "--bridge", "none"])
                        .arg("--iptables=false"),
                };
                command
            }
            Kind::Podman => {
                std::fs::write(at("containers.conf"), CONTAINERS_CONF).unwrap();
                // It may be held when the engine comes back, and stays what it is.
                if let Ok(port) = self.registry_port.try_lock() {
                    let registries =
                        format!("[[registry]]\nlocation = \"127.0.0.1:{port}\"\ninsecure = true\n");
                    std::fs::write(at("registries.conf"), registries).unwrap();
                }
                let mut command = Command::new("podman");
                command
                    .env("CONTAINERS_CONF", at("containers.conf"))
                    .env("CONTAINERS_REGISTRIES_CONF", at("registries.conf"))
                    .arg("--root")
                    .arg(at("disk/root"))
                    .arg("--runroot")
                    .arg(self.run_dir())
                    .arg("--network-config-dir")
                    .arg(at("networks"));
                if self.storage == Storage::Btrfs {
                    command.args(["--storage-driver", "btrfs"]);
                }
                command.args(["system", "service", "--time=0", &self.host()]);
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
             [[launcher]]\nkind = \"docker\"\nhost = \"{}\"\nsubnets = \"{}\"\n",
            self.host(),
            match self.storage {
                Storage::Usual => "10.213.0.0/16",
                Storage::Btrfs => "10.214.0.0/16",
            }
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

impl Drop for Engine {
    /// Only one that was there for one test goes before all do.
    fn drop(&mut self) {
        // Their bridges would outlive it, with the addresses that the next one gives out.
        self.cli(&["network", "prune", "--force"]);
        let daemon = self.daemon.lock().unwrap().take();
        if let Some(mut daemon) = daemon {
            crate::harness::signal(daemon.id(), nix::sys::signal::Signal::SIGTERM);
            let _ = daemon.wait();
        }
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.dir.join("disk"))
            .status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn free_port() -> u16 {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    held.local_addr().unwrap().port()
}

/// A disk in a file.
fn mount_btrfs(image: &Path, at: &Path) {
    std::fs::File::create(image)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let made = Command::new("mkfs.btrfs").arg(image).output();
    let made = made.expect("`make test-engines` installs it");
    assert!(made.status.success(), "{made:?}");
    let mut mount = Command::new("mount");
    mount.args(["-o", "loop"]).arg(image).arg(at);
    assert!(mount.status().unwrap().success());
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
