//! A root with nothing in it but BusyBox, as small images have it.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

/// In namespaces of its own, whose end is the end of all that runs there.
const ENTER: &str = r#"
mount --bind "$0" "$0" && mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" || exit
for dir in $NO_PROGRAMS_IN; do
  mount --bind "$0/$dir" "$0/$dir" && mount -o remount,bind,noexec "$0/$dir" || exit
done
exec chroot "$0" /bin/env -u NO_PROGRAMS_IN "$@"
"#;

pub struct Root {
    dir: tempfile::TempDir,
    no_programs_in: std::cell::RefCell<Vec<String>>,
}

/// A job that runs there; it ends when it is dropped.
pub struct Job(Option<Child>);

#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub err: String,
}

impl Root {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "dev", "etc", "home", "proc", "tmp", "www"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = Self {
            dir,
            no_programs_in: std::cell::RefCell::default(),
        };
        let path = std::env::var_os("PATH").unwrap();
        let busybox = std::env::split_paths(&path)
            .map(|dir| dir.join("busybox"))
            .find(|path| path.is_file())
            .expect("BusyBox is in busybox-static");
        std::fs::copy(busybox, root.path("bin/busybox")).unwrap();
        for name in ["sh", "env"] {
            symlink("busybox", root.path("bin").join(name)).unwrap();
        }
        root.write("www/index.html", "here\n");
        root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// As clusters' homes are often mounted.
    pub fn forbid_programs(&self, dir: &str) {
        self.no_programs_in.borrow_mut().push(dir.to_owned());
    }

    pub fn names_in(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    pub fn start(&self, words: &[&str]) -> Job {
        self.start_with(&[], words)
    }

    pub fn start_with(&self, environment: &[(&str, &str)], words: &[&str]) -> Job {
        let path = std::env::var_os("PATH").unwrap();
        let job = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", ENTER])
            .arg(self.dir.path())
            .args(["PATH=/bin", "HOME=/home"])
            .args(words)
            .env_clear()
            .env("PATH", path)
            .env("NO_PROGRAMS_IN", self.no_programs_in.borrow().join(" "))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare is part of util-linux");
        Job(Some(job))
    }
}

impl Job {
    pub fn ended(mut self) -> Ended {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        Ended {
            status: output.status,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(job) = &mut self.0 {
            let _ = job.kill();
            let _ = job.wait();
        }
    }
}
