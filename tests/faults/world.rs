//! A data directory, the server that comes and goes there, and its apps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Door;
use super::harness::{Answer, Api, PATIENCE, Server, here, processes, signal};
use super::witness;
use dwell::failpoint::Point;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// A dollar a second, so that money is as exact as time; agents that are missed soon.
pub const CONFIG: &str = "\
[gpus]
CPU = 6
A10G = 2
[prices]
CPU = 3600.0
A10G = 7200.0
[limits]
sessions_per_machine = 100
grace_seconds = 1
heartbeat_seconds = 0.25
relaunch_after_seconds = 1
lost_after_seconds = 20
";

/// Every process of it has its directory among its words or in its environment.
pub struct World {
    place: TempDir,
    config: String,
    server: Option<Server>,
    predecessor: Option<Server>,
    door: Door,
}

impl World {
    /// A world whose server listens.
    pub fn new(config: &str) -> Self {
        Self::begin(tempfile::tempdir().unwrap(), config, None)
    }

    /// A world whose server, and all that it starts, can be made to die at `point`:
    /// at once if `armed`. The servers that come after it do not.
    pub fn with_failpoint(config: &str, point: Point, armed: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        if armed {
            std::fs::write(place.path().join("armed"), "").unwrap();
        }
        Self::begin(place, config, Some(point))
    }

    pub fn begin(place: TempDir, config: &str, point: Option<Point>) -> Self {
        witness::watch();
        let mut world = Self {
            place,
            config: config.to_owned(),
            server: None,
            predecessor: None,
            door: Door::to(Api::new("http://nobody", "")),
        };
        let failpoint = point.map(|point| world.failpoint(point));
        let environment: Vec<_> = failpoint.into_iter().collect();
        if let Err(error) = world.try_start(&[], &environment) {
            assert!(point.is_some() && !world.armed().exists(), "{error}");
            world.start();
        }
        world
    }

    fn failpoint(&self, point: Point) -> (&'static str, String) {
        let armed = self.armed().display().to_string();
        ("DWELL_FAILPOINT", format!("{point:?}@{armed}"))
    }

    fn try_start(&mut self, more: &[&str], environment: &[(&str, String)]) -> Result<(), String> {
        let mut environment = environment.to_vec();
        environment.push(("DWELL_TEST_WORLD", self.dir().display().to_string()));
        // Elsewhere each time: agents and clients must find it.
        let server = Server::try_start_in(
            &self.data_dir(),
            &self.config,
            "127.0.0.1:0",
            more,
            &environment,
        )?;
        self.door.lead_to(server.api.clone());
        self.server = Some(server);
        Ok(())
    }

    pub fn start(&mut self) {
        self.try_start(&[], &[]).unwrap();
    }

    /// Another server takes over, and can be made to die at `point` too. The one before
    /// stays, should it have to take all back.
    pub fn is_taken_over(&mut self, point: Point) {
        self.predecessor = self.server.take();
        let failpoint = self.failpoint(point);
        if let Err(error) = self.try_start(&["--takeover"], &[failpoint]) {
            assert!(!self.armed().exists(), "{error}");
        }
    }

    /// The server is killed, if there is one.
    pub fn kill(&mut self) {
        self.server = None;
        self.predecessor = None;
    }

    /// A server that has died by itself is started again.
    pub fn revive(&mut self) {
        if self.server.as_ref().is_none_or(is_dead) {
            self.server = self.predecessor.take();
            if self.server.as_ref().is_none_or(is_dead) {
                self.server = None;
                self.start();
            }
        }
    }

    pub fn dir(&self) -> &Path {
        self.place.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// While this file is there, the failpoint is armed.
    pub fn armed(&self) -> PathBuf {
        self.dir().join("armed")
    }

    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// Ask until someone answers something else than "later"; the server is revived
    /// when it has died. What was not acknowledged may have happened all the same.
    pub async fn ask(&mut self, method: Method, path: &str, body: Value) -> Answer {
        let began = Instant::now();
        loop {
            let asked = self.door.try_send(method.clone(), path, &body).await;
            match asked {
                Ok(answer) if answer.status != 503 => return answer,
                other => assert!(began.elapsed() < PATIENCE, "{path}: still {other:?}"),
            }
            self.revive();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn get(&mut self, path: &str) -> Value {
        let answer = self.ask(Method::GET, path, json!(null)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// The session once it is so.
    pub async fn until(&mut self, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let session = self.get(&format!("/session/{id}")).await;
            if is_so(&session) {
                return session;
            }
            assert!(began.elapsed() < PATIENCE, "still {session}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A test app that puts down when it is started, and says whose it is.
    pub fn app(&self, name: &str) -> Value {
        let (starts, app) = (self.starts_file(), here(&format!("tests/apps/{name}")));
        let line = format!(
            "read up idle < /proc/uptime; echo $DWELL_SESSION_ID $up >> {}; exec python3 -S {} {}",
            starts.display(),
            app.display(),
            self.dir().display()
        );
        json!(["sh", "-c", line])
    }

    fn starts_file(&self) -> PathBuf {
        self.dir().join("starts")
    }

    /// Each start of an app: its session, and when, in milliseconds since boot.
    pub fn starts(&self) -> Vec<(String, u64)> {
        let lines = std::fs::read_to_string(self.starts_file()).unwrap_or_default();
        lines
            .lines()
            .map(|line| {
                let (session, seconds) = line.split_once(' ').unwrap();
                // Hundredths of a second, written with a point.
                let hundredths: u64 = seconds.replace('.', "").parse().unwrap();
                (session.to_owned(), hundredths * 10)
            })
            .collect()
    }

    /// All processes but the server.
    pub fn processes(&self) -> Vec<u32> {
        let server = self.server.as_ref().map(Server::pid);
        let mut all = processes_of(self.dir());
        all.retain(|pid| Some(*pid) != server);
        all
    }

    /// Whatever the server left is killed.
    pub fn kill_all(&self) {
        // Again: a process that was being started may not have been seen.
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                signal(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn agents(&self) -> Vec<u32> {
        let sessions = self.data_dir().join("sessions").display().to_string();
        processes(|words, _| words.starts_with("dwell\0agent") && words.contains(&sessions))
    }

    pub fn first_processes(&self) -> Vec<u32> {
        let dir = self.dir().display().to_string();
        processes(|words, environment| {
            words.starts_with("dwell\0agent\0init") && environment.contains(&dir)
        })
    }

    pub fn apps(&self) -> Vec<u32> {
        let dir = self.dir().display().to_string();
        processes(|words, environment| {
            environment.contains("DWELL_SESSION_ID=") && words.contains(&dir)
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
        self.kill_all();
    }
}

fn is_dead(server: &Server) -> bool {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.pid()).unwrap());
    // Left for the harness to take note of.
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(pid), how) != Ok(WaitStatus::StillAlive)
}

fn processes_of(dir: &Path) -> Vec<u32> {
    let dir = dir.display().to_string();
    processes(|words, environment| words.contains(&dir) || environment.contains(&dir))
}
