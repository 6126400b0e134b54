//! The processes inside a container, as their host sees them. No engine is asked.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CGROUPS: &str = "/sys/fs/cgroup";

/// A container that runs: its first process, with which the kernel ends all others of
/// its PID namespace, and where its cgroups are.
pub struct Inside {
    /// The host's id of its first process.
    pub pid: Pid,
    first: OwnedFd,
    cgroups: Vec<PathBuf>,
}

impl Inside {
    /// What runs in the container `id` whose first process is `pid`.
    ///
    /// # Errors
    /// When there is no such process here, or it is none of that container's.
    pub fn open(pid: i32, id: &str) -> io::Result<Self> {
        let first = pidfd(pid)?;
        let said = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let cgroups = cgroups(&said, id);
        // An engine that is on another host, or in another PID namespace, means another
        // process. One that has ended meanwhile has left the cgroup.
        if cgroups.is_empty() && !has_ended(first.as_fd()) {
            let why = format!("process {pid} is not in the container {id}");
            return Err(io::Error::other(why));
        }
        let pid = Pid::from_raw(pid);
        Ok(Self {
            pid,
            first,
            cgroups,
        })
    }

    /// Readable once the last process is gone.
    #[must_use]
    pub fn end(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }

    /// TERM to every process.
    pub fn terminate(&self) {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(ours) = namespace(self.pid.as_raw()) else {
            return;
        };
        for pid in processes() {
            if namespace(pid).as_ref() == Some(&ours) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }

    /// KILL to every process.
    pub fn kill(&self) {
        // Who is frozen does not die.
        for cgroup in &self.cgroups {
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
        }
        // SAFETY: a call of the kernel with a descriptor that is open and no memory.
        unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.first.as_raw_fd(),
                libc::SIGKILL,
                none,
                0,
            );
        }
        for cgroup in &self.cgroups {
            // Whoever came in by another way than the first process.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
    }

    /// Is the last process gone?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // The first process is not waited for before all others of its namespace are gone.
        has_ended(self.end()) && self.cgroups.iter().all(|cgroup| is_empty(cgroup))
    }

    /// Whether some process was killed for want of memory. Only as long as the cgroup is
    /// there, which is not for long after the end.
    #[must_use]
    pub fn was_out_of_memory(&self) -> bool {
        let killed = |file: PathBuf| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count.trim() != "0")
        };
        self.cgroups.iter().any(|cgroup| {
            killed(cgroup.join("memory.events")) || killed(cgroup.join("memory.oom_control"))
        })
    }
}

/// Every process of this host.
fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: a call of the kernel with two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_ended(first: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(first, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The directories of the cgroups that `/proc/PID/cgroup` tells of and that are of the
/// container `id`.
fn cgroups(said: &str, id: &str) -> Vec<PathBuf> {
    let directory = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let hybrid = Path::new(CGROUPS).join("unified");
        let root = match controllers {
            "" if hybrid.is_dir() => hybrid,
            "" => PathBuf::from(CGROUPS),
            v1 => Path::new(CGROUPS).join(v1.trim_start_matches("name=")),
        };
        Some(root.join(path.trim_start_matches('/')))
    };
    said.lines()
        .filter(|line| line.contains(id))
        .filter_map(directory)
        .collect()
}

/// Whether no process is in the cgroup or one below it.
fn is_empty(cgroup: &Path) -> bool {
    let has_none = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map_or(true, |processes| processes.is_empty());
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    has_none
        && below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .all(|entry| is_empty(&entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroups_of_a_container_are_those_that_name_it() {
        let said = "8:pids:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n\
                    2:devices:/elsewhere\n";
        let found = cgroups(said, "abc");
        let wanted = ["pids", "cpu,cpuacct", "systemd"]
            .map(|root| Path::new(CGROUPS).join(root).join("docker/abc"));
        assert_eq!(found, wanted);
        let own = std::process::id().try_into().unwrap();
        let error = Inside::open(own, "no-such-container").err().unwrap();
        assert!(
            error.to_string().contains("not in the container"),
            "{error}"
        );
    }
}
