//! A program that runs until a test, or the end of all tests, kills it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

pub struct Daemon {
    command: Mutex<Command>,
    running: Mutex<Option<Child>>,
}

impl Daemon {
    /// Start it; what it says goes to `dir/NAME.log`.
    pub fn start(dir: &Path, name: &str, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let daemon = Self {
            command: Mutex::new(command),
            running: Mutex::new(None),
        };
        daemon.comes_back();
        daemon
    }

    /// As when it crashes.
    pub fn dies(&self) {
        let mut child = self.running.lock().unwrap().take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn comes_back(&self) {
        let mut command = self.command.lock().unwrap();
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let before = self.running.lock().unwrap().replace(child);
        assert!(before.is_none(), "it runs");
    }

    pub fn pid(&self) -> u32 {
        self.running.lock().unwrap().as_ref().unwrap().id()
    }
}
