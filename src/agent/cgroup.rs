//! The session's cgroups: to find and kill every process of it, and to limit them.
//!
//! Hosts differ. On a pure v2 host one directory does both, where the agent may
//! make one. On a hybrid host v2 tracks and kills, and the v1 controllers limit.
//! On others there is none, and the agent says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dwell_core::id::SessionId;

use crate::agent::spec::AppLimits;

const MOUNT: &str = "/sys/fs/cgroup";
/// All sessions' cgroups are in one of this name.
const PARENT: &str = "dwell";

/// The cgroups of one session.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// Where v2 tracks the processes and kills them all at once.
    unified: Option<PathBuf>,
    /// v1 directories that limit.
    limiting: Vec<PathBuf>,
    /// What could not be had, for people.
    pub missing: Vec<String>,
}

impl Cgroups {
    /// The cgroups that this host lets the session have, with its limits in force.
    #[must_use]
    pub fn create(session: SessionId, limits: AppLimits) -> Self {
        let mut cgroups = Self {
            unified: unified(session),
            ..Self::default()
        };
        if cgroups.unified.is_none() {
            cgroups.missing.push(
                "This host lets the agent have no cgroup of version 2; processes are found by descent alone".to_owned(),
            );
        }
        let memory_bytes = limits.memory_mib.map(|mib| mib.saturating_mul(1 << 20));
        cgroups.limit(
            session,
            "memory",
            "memory.max",
            "memory.limit_in_bytes",
            memory_bytes,
        );
        cgroups.limit(session, "pids", "pids.max", "pids.max", limits.pids);
        cgroups
    }

    /// The cgroups that an earlier agent of the session left.
    #[must_use]
    pub fn find(session: SessionId) -> Self {
        let name = session.to_string();
        let of = |root: PathBuf| Some(root.join(PARENT).join(&name)).filter(|path| path.is_dir());
        let unified = unified_places()
            .into_iter()
            .map(|place| place.join(&name))
            .find(|path| path.is_dir());
        let limiting = ["memory", "pids"]
            .iter()
            .filter_map(|name| of(Path::new(MOUNT).join(name)));
        Self {
            unified,
            limiting: limiting.collect(),
            missing: Vec::new(),
        }
    }

    /// Files that a process writes `0` to, to be in all of them.
    pub fn doors(&self) -> impl Iterator<Item = PathBuf> {
        self.limiting
            .iter()
            .chain(&self.unified)
            .map(|path| path.join("cgroup.procs"))
    }

    /// Kill every process in them at once. Says whether there was a way to.
    pub fn kill(&self) -> bool {
        self.unified
            .as_ref()
            .is_some_and(|path| fs::write(path.join("cgroup.kill"), "1").is_ok())
    }

    /// Is no process left in them?
    #[must_use]
    pub fn are_empty(&self) -> bool {
        self.unified.iter().chain(&self.limiting).all(|path| {
            // One that is gone has none; a zombie is not listed.
            fs::read_to_string(path.join("cgroup.procs"))
                .map_or(true, |processes| processes.is_empty())
        })
    }

    /// Remove them. They are empty.
    pub fn remove(&self) {
        for path in self.unified.iter().chain(&self.limiting) {
            let _ = fs::remove_dir(path);
        }
    }

    fn limit(
        &mut self,
        session: SessionId,
        controller: &str,
        v2: &str,
        v1: &str,
        limit: Option<u64>,
    ) {
        let Some(limit) = limit else { return };
        if let Some(path) = &self.unified
            && fs::write(path.join(v2), limit.to_string()).is_ok()
        {
            return;
        }
        let root = Path::new(MOUNT).join(controller);
        let path = root.join(PARENT).join(session.to_string());
        // Where nothing is mounted, what is made would be directories and no cgroups.
        let limited = fs::metadata(root.join("cgroup.procs"))
            .and_then(|_| fs::create_dir_all(&path))
            .and_then(|()| fs::write(path.join(v1), limit.to_string()));
        match limited {
            Ok(()) => self.limiting.push(path),
            Err(_) => self.missing.push(format!(
                "This host lets the agent have no {controller} controller; the limit on {controller} is not in force"
            )),
        }
    }
}

/// Directories in which a session's v2 cgroup may be, the best first.
fn unified_places() -> Vec<PathBuf> {
    let hybrid = Path::new(MOUNT).join("unified");
    let root = if hybrid.join("cgroup.procs").exists() {
        hybrid
    } else {
        PathBuf::from(MOUNT)
    };
    if !root.join("cgroup.procs").exists() {
        return Vec::new();
    }
    // Root's place is by itself; a user's is in what was delegated to it.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    vec![root.join(PARENT), root.join(own).join(PARENT)]
}

fn unified(session: SessionId) -> Option<PathBuf> {
    unified_places().into_iter().find_map(|place| {
        let path = place.join(session.to_string());
        fs::create_dir_all(&path).ok()?;
        // Where the controllers are v2's they must be handed down; where they are
        // not, or may not be, limits say so themselves.
        for level in [place.parent()?, &place] {
            for controller in ["+memory", "+pids"] {
                let _ = fs::write(level.join("cgroup.subtree_control"), controller);
            }
        }
        Some(path)
    })
}

/// Sessions that have a cgroup on this host, of whichever server.
#[must_use]
pub fn sessions() -> Vec<SessionId> {
    let mut places = unified_places();
    for controller in ["memory", "pids"] {
        places.push(Path::new(MOUNT).join(controller).join(PARENT));
    }
    places
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Put the calling process into the cgroups with these doors.
///
/// # Errors
/// When one does not let it in.
pub fn enter(doors: impl Iterator<Item = PathBuf>) -> io::Result<()> {
    for door in doors {
        fs::write(door, "0")?;
    }
    Ok(())
}
