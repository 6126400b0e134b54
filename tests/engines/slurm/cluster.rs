//! Slurm clusters of the tests' own: a controller and three hosts with GPUs, all on this
//! machine. What finds one is what [`Cluster::environment`] says.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::host::Host;
use crate::scratch;

/// Its hosts, and which GPUs each has. The GPUs are `/dev/null`, but Slurm cannot tell.
pub const NODES: [Gpus; 3] = [
    Gpus::new("n1", "a10g", 4),
    Gpus::new("n2", "a10g", 4),
    Gpus::new("n3", "l4", 2),
];

/// Longer than Slurm takes to tell that a host is gone, which is what takes it longest.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Gpus {
    pub node: &'static str,
    pub kind: &'static str,
    pub count: u32,
}

impl Gpus {
    const fn new(node: &'static str, kind: &'static str, count: u32) -> Self {
        Self { node, kind, count }
    }
}

/// Fields are dropped in this order: the hosts before the directory they write to.
pub struct Cluster {
    controller: Host,
    nodes: [Host; NODES.len()],
    /// Tells them all which user it is that asks.
    _munge: Host,
    /// Who kills some of it is alone with it.
    users: RwLock<()>,
    dir: PathBuf,
    /// The same, where it is to be removed.
    _temporary: Option<TempDir>,
}

/// The one that all tests of this process may use.
pub fn slurm() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = scratch().join("slurm");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Cluster::start(dir, "")
    })
}

impl Cluster {
    /// One whose `slurm.conf` has these lines as well, gone when it is dropped.
    pub fn with(lines: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("slurm-")
            // Other users have to get at its socket.
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir_in(scratch())
            .unwrap();
        let mut cluster = Self::start(dir.path().to_owned(), lines);
        cluster._temporary = Some(dir);
        cluster
    }

    fn start(dir: PathBuf, lines: &str) -> Self {
        assert!(
            std::env::var_os("DWELL_TEST_OUTSIDE").is_some(),
            "clusters are for `make test-slurm`, which leaves nothing behind of their jobs"
        );
        let ports = free_ports();
        configure(&dir, ports, lines);
        let cluster = Self {
            controller: Host::new(&dir, ports[0], &["slurmctld", "-D", "-i"]),
            nodes: std::array::from_fn(|node| {
                let daemon = ["slurmd", "-D", "-N", NODES[node].node];
                Host::new(&dir, ports[node + 1], &daemon)
            }),
            _munge: munge(&dir),
            users: RwLock::new(()),
            dir,
            _temporary: None,
        };
        cluster.slurmctld_comes_back();
        for gpus in &NODES {
            cluster.slurmd_comes_back(gpus.node);
        }
        cluster
    }

    /// One user among others.
    pub async fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.users.read().await
    }

    /// The only user.
    pub async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.users.write().await
    }

    /// How programs of Slurm find it.
    pub fn environment(&self) -> [(&'static str, String); 1] {
        let file = self.dir.join("slurm.conf");
        [("SLURM_CONF", file.display().to_string())]
    }

    /// A place for what jobs write.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// One of Slurm's programs, whatever it says.
    pub fn asked(&self, words: &[&str]) -> Output {
        Command::new(words[0])
            .args(&words[1..])
            .envs(self.environment())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("`make test-slurm` installs Slurm")
    }

    /// What one of Slurm's programs prints, which must succeed.
    pub fn command(&self, words: &[&str]) -> String {
        let output = self.asked(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Submit a job that runs this line; its id.
    pub fn submit(&self, options: &[&str], line: &str) -> String {
        let fixed = ["sbatch", "--parsable", "--no-requeue", "--output=/dev/null"];
        self.command(&[&fixed, options, &["--wrap", line]].concat())
    }

    /// All jobs that it has not forgotten.
    pub fn jobs(&self) -> Vec<Value> {
        let mut said: Value = serde_json::from_str(&self.command(&["squeue", "--json"])).unwrap();
        assert_eq!(said["errors"], serde_json::json!([]));
        let jobs = said["jobs"].take();
        serde_json::from_value(jobs).unwrap()
    }

    pub fn job(&self, id: &str) -> Option<Value> {
        let id: u32 = id.parse().unwrap();
        self.jobs().into_iter().find(|job| job["job_id"] == id)
    }

    /// Until the job is so.
    pub async fn until(&self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let job = self.job(id).expect("a job that is not forgotten");
            if is_so(&job) {
                return job;
            }
            assert!(began.elapsed() < PATIENCE, "it stays so: {job}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until the job is in this state.
    pub async fn becomes(&self, id: &str, state: &str) -> Value {
        self.until(id, |job| job["job_state"] == state).await
    }

    /// Until it knows nothing of the job any more.
    pub async fn forgets(&self, id: &str) {
        let began = Instant::now();
        while let Some(job) = self.job(id) {
            assert!(began.elapsed() < PATIENCE, "it is remembered: {job}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As an operator does.
    pub fn suspend(&self, id: &str) {
        self.command(&["scontrol", "suspend", id]);
    }

    pub fn resume(&self, id: &str) {
        self.command(&["scontrol", "resume", id]);
    }

    /// Until the controller's files say how things stand, which takes it some seconds: what is
    /// not there when it is killed, it has never known.
    pub async fn is_saved(&self) {
        // That a job has started is not enough for it to write anything.
        let id = self.submit(&["--hold"], "true");
        let (now, began) = (SystemTime::now(), Instant::now());
        self.command(&["scancel", &id]);
        let saved = || std::fs::metadata(self.file("state/job_state"))?.modified();
        while !saved().is_ok_and(|saved| saved > now) {
            assert!(began.elapsed() < PATIENCE, "it is not saved");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A copy of those files.
    pub fn saved(&self) -> PathBuf {
        let copy = self.file("saved");
        copy_tree(&self.file("state"), &copy);
        copy
    }

    /// While it is dead: what it did after it had saved this is lost.
    pub fn restore(&self, saved: &Path) {
        std::fs::remove_dir_all(self.file("state")).unwrap();
        copy_tree(saved, &self.file("state"));
    }

    pub fn kill_slurmctld(&self) {
        self.controller.order("kill");
    }

    pub fn slurmctld_comes_back(&self) {
        self.controller.order("start");
        self.wait_for("no controller", || {
            self.asked(&["scontrol", "ping"]).status.success()
        });
    }

    /// A controller that takes connections and answers none.
    pub fn pause_slurmctld(&self) {
        self.controller.order("pause");
    }

    pub fn resume_slurmctld(&self) {
        self.controller.order("resume");
    }

    /// Its jobs go on.
    pub fn kill_slurmd(&self, node: &str) {
        self.node(node).order("kill");
    }

    pub fn slurmd_comes_back(&self, node: &str) {
        let host = self.node(node);
        host.order("start");
        self.wait_for("no host", || host.answers() && self.is_up(node));
    }

    /// The host loses power: its jobs are gone, and nobody says so.
    pub fn node_dies(&self, node: &str) {
        self.node(node).dies();
    }

    pub fn node_comes_back(&self, node: &str) {
        self.node(node).boots();
        self.slurmd_comes_back(node);
    }

    fn node(&self, name: &str) -> &Host {
        let index = NODES.iter().position(|gpus| gpus.node == name).unwrap();
        &self.nodes[index]
    }

    /// Would the controller send it jobs?
    fn is_up(&self, node: &str) -> bool {
        let format = ["--noheader", "--format=%T", "--partition=gpu"];
        let state = self.command(&[&["sinfo", "--nodes", node], &format[..]].concat());
        // A star says that it does not answer.
        !state.starts_with("down") && !state.ends_with('*')
    }

    fn wait_for(&self, otherwise: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "{otherwise}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }
}

fn munge(dir: &Path) -> Host {
    write_key(&dir.join("munge.key"));
    let at = |option: &str, name: &str| format!("--{option}={}", dir.join(name).display());
    let files = [
        at("key-file", "munge.key"),
        at("socket", "munge.sock"),
        at("pid-file", "munge.pid"),
        at("log-file", "munge.log"),
        at("seed-file", "munge.seed"),
    ];
    let mut daemon = vec!["munged", "--foreground"];
    daemon.extend(files.iter().map(String::as_str));
    let munge = Host::new(dir, None, &daemon);
    munge.order("start");
    let began = Instant::now();
    while !dir.join("munge.sock").exists() {
        assert!(began.elapsed() < PATIENCE, "no munge");
        std::thread::sleep(Duration::from_millis(5));
    }
    munge
}

fn write_key(file: &Path) {
    let key: [u8; 128] = std::array::from_fn(|_| fastrand::u8(..));
    std::fs::write(file, key).unwrap();
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// For the controller and each host.
fn free_ports() -> [u16; 1 + NODES.len()] {
    let held: [TcpListener; 1 + NODES.len()] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn configure(dir: &Path, ports: [u16; 1 + NODES.len()], lines: &str) {
    let mut nodes = String::new();
    let mut gres = "AutoDetect=off\n".to_owned();
    for (Gpus { node, kind, count }, port) in NODES.iter().zip(&ports[1..]) {
        nodes += &format!(
            "NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} \
             CPUs=8 RealMemory=4000 Gres=gpu:{kind}:{count}\n"
        );
        let device = dir.join(format!("{node}-gpu"));
        for index in 0..*count {
            let null = format!("{}{index}", device.display());
            mknod(
                &*null,
                SFlag::S_IFCHR,
                Mode::from_bits_retain(0o666),
                makedev(1, 3),
            )
            .unwrap();
        }
        let last = count - 1;
        gres += &format!(
            "NodeName={node} Name=gpu Type={kind} File={}[0-{last}]\n",
            device.display()
        );
    }
    let text = SLURM_CONF.replace("DIR", &dir.display().to_string())
        + &format!("SlurmctldPort={}\n{nodes}{PARTITIONS}{lines}\n", ports[0]);
    std::fs::create_dir(dir.join("state")).unwrap();
    std::fs::write(dir.join("slurm.conf"), text).unwrap();
    std::fs::write(dir.join("gres.conf"), gres).unwrap();
    std::fs::write(dir.join("cgroup.conf"), "CgroupPlugin=cgroup/v1\n").unwrap();
    write_key(&dir.join("jwt.key"));
}

/// Jobs are whatever descends from their first process, and nobody limits them.
const SLURM_CONF: &str = "ClusterName=dwell
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=DIR/munge.sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key=DIR/jwt.key
StateSaveLocation=DIR/state
SlurmdSpoolDir=DIR/spool-%n
SlurmctldPidFile=DIR/slurmctld.pid
SlurmdPidFile=DIR/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=4
SlurmdParameters=config_overrides
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
";

/// Whoever is in `urgent` gets what those in `gpu` have, if nothing is free.
const PARTITIONS: &str = "\
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 DefMemPerCPU=100
PartitionName=urgent Nodes=ALL PriorityTier=2 DefMemPerCPU=100
";
