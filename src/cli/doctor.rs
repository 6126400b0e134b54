//! `dwell doctor`: what this host allows, and what to do about what it does not.

mod clusters;
mod containers;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

use super::args::{JsonArg, ServerArgs, StoreArg};
use super::output::{Failure, print, table};
use crate::client::find::{FoundBy, Wanted};
use crate::client::{Client, ClientError};
use crate::config::{Config, Flags};
use crate::data_dir::DataDir;
use crate::gpus;
use crate::store::{StoreAt, postgres};

/// Below this much free space, sessions will soon fail.
const SPACE_LOW_MIB: u64 = 1_024;
/// Below this many open files, a server with many sessions runs out.
const OPEN_FILES_LOW: u64 = 4_096;

/// Say what this host allows, and what to do about what it does not
///
/// Exits with 1 if anything fails.
#[derive(Args)]
#[command(after_help = "Examples:
  dwell doctor
  dwell doctor --data-dir /srv/dwell
  dwell doctor --store postgres://dwell@db.example.com/dwell
  dwell doctor --config /etc/dwell.toml
  dwell doctor --json")]
pub struct DoctorArgs {
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    store: StoreArg,
    /// The config file of the server that is to run here
    #[arg(long, env = "DWELL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    const fn ok(check: &'static str, found: String) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found,
            remedy: None,
        }
    }

    fn warn(check: &'static str, found: String, remedy: &str) -> Self {
        Self {
            check,
            verdict: Verdict::Warn,
            found,
            remedy: Some(remedy.to_owned()),
        }
    }

    fn fail(check: &'static str, found: String, remedy: &str) -> Self {
        Self {
            check,
            verdict: Verdict::Fail,
            found,
            remedy: Some(remedy.to_owned()),
        }
    }
}

/// Look at everything and tell.
pub async fn doctor(args: DoctorArgs) -> Result<(), Failure> {
    let mut wanted = args.server.wanted();
    let mut store_at = args.store.place();
    let mut findings = Vec::new();
    let mut config = None;
    if let Some(file) = &args.config {
        match configured(file, &wanted, &args.store) {
            Ok(read) => {
                wanted.data_dir = Some(read.data_dir.0.clone());
                store_at = Ok(read.store.clone());
                config = Some(read);
                findings.push(Finding::ok("config", format!("{} is read", file.display())));
            }
            Err(finding) => findings.push(finding),
        }
    }
    let data_dir = wanted.data_dir();
    findings.extend([
        data_dir_writable(&data_dir),
        space(&data_dir),
        store(store_at, &data_dir).await,
        server(&wanted).await,
        gpus(),
        pid_namespaces(),
        cgroups(Path::new("/sys/fs/cgroup")),
    ]);
    findings.extend(containers::containers(config.as_ref()).await);
    findings.extend(clusters::clusters(config.as_ref()).await);
    findings.push(open_files());
    if args.json.json {
        let json = serde_json::to_string(&findings).map_err(|why| Failure::new(why.to_string()))?;
        print(&json)?;
    } else {
        print(&report(&findings))?;
    }
    if findings
        .iter()
        .any(|finding| finding.verdict == Verdict::Fail)
    {
        return Err(Failure::Said);
    }
    Ok(())
}

/// What a server would make of the config file.
fn configured(file: &Path, wanted: &Wanted, store: &StoreArg) -> Result<Config, Finding> {
    let flags = Flags {
        data_dir: wanted.data_dir.clone(),
        store: store.said(),
        ..Flags::default()
    };
    Config::load(Some(file), flags)
        .map_err(|error| Finding::fail("config", error.to_string(), "correct it"))
}

fn report(findings: &[Finding]) -> String {
    let rows = findings.iter().map(|finding| {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        [
            verdict.to_owned(),
            finding.check.to_owned(),
            finding.found.clone(),
        ]
    });
    let remedies = findings.iter().filter_map(|finding| {
        let remedy = finding.remedy.as_ref()?;
        Some(format!("\n{}: {remedy}", finding.check))
    });
    table(["", "CHECK", "FOUND"], rows) + "\n" + &remedies.collect::<String>()
}

/// The directory, or the nearest above it that is there.
fn nearest_existing(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let existing = absolute.ancestors().find(|path| path.exists());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn data_dir_writable(dir: &DataDir) -> Finding {
    const CHECK: &str = "data directory";
    let place = nearest_existing(&dir.0);
    let shown = dir.0.display();
    let writable = AccessFlags::W_OK | AccessFlags::X_OK;
    match access(&place, writable) {
        Ok(()) if place.is_dir() && dir.0.exists() => {
            Finding::ok(CHECK, format!("{shown} can be written"))
        }
        Ok(()) if place.is_dir() => {
            Finding::ok(CHECK, format!("{shown} is not there yet and can be made"))
        }
        Ok(()) => Finding::fail(
            CHECK,
            format!("{} is no directory", place.display()),
            "name another one with --data-dir or DWELL_DATA_DIR",
        ),
        Err(why) => Finding::fail(
            CHECK,
            format!("{} cannot be written ({})", place.display(), why.desc()),
            "name a directory that you may write with --data-dir or DWELL_DATA_DIR",
        ),
    }
}

fn space(dir: &DataDir) -> Finding {
    const CHECK: &str = "disk space";
    const REMEDY: &str = "free some, or name a data directory on a larger disk with --data-dir";
    let place = nearest_existing(&dir.0);
    match statvfs(&place) {
        Err(why) => Finding::warn(CHECK, format!("it is not known ({})", why.desc()), REMEDY),
        Ok(disk) => {
            let bytes = u128::from(disk.blocks_available()) * u128::from(disk.fragment_size());
            let free_mib = u64::try_from(bytes >> 20).unwrap_or(u64::MAX);
            let found = if free_mib >= 10_240 {
                format!("{} GiB are free", free_mib >> 10)
            } else {
                format!("{free_mib} MiB are free")
            };
            if free_mib < SPACE_LOW_MIB {
                Finding::warn(CHECK, found, REMEDY)
            } else {
                Finding::ok(CHECK, found)
            }
        }
    }
}

/// The store is looked at and left as it is: a server may be at work on it.
async fn store(place: Result<StoreAt, String>, dir: &DataDir) -> Finding {
    const CHECK: &str = "store";
    const REMEDY: &str = "correct --store or DWELL_STORE, or see to the database";
    match place {
        Err(sentence) => Finding::fail(CHECK, sentence, REMEDY),
        Ok(StoreAt::DataDir) => Finding::ok(CHECK, format!("SQLite, {}", dir.store().display())),
        Ok(StoreAt::Postgres(address)) => match postgres::look(&address).await {
            Ok(found) => Finding::ok(CHECK, found),
            Err(error) => Finding::fail(CHECK, error.0, REMEDY),
        },
    }
}

async fn server(wanted: &Wanted) -> Finding {
    const CHECK: &str = "server";
    const START: &str = "start one with `dwell serve`; `dwell run` needs none";
    let found = match wanted.find() {
        Ok(found) => found,
        Err(none) => return Finding::warn(CHECK, none.to_string(), START),
    };
    let by = found.by;
    let client = match Client::new(&found) {
        Ok(client) => client,
        Err(error) => return Finding::fail(CHECK, error.to_string(), "correct --url or DWELL_URL"),
    };
    let ours = env!("CARGO_PKG_VERSION");
    let url = client.url();
    match client.version().await {
        Ok(version) if version != ours => Finding::warn(
            CHECK,
            format!("{url} runs version {version}, this is {ours}"),
            "use the same version on both sides",
        ),
        // That it answers is not all: it must know us too.
        Ok(version) => match client.sessions(false).await {
            Ok(answer) => Finding::ok(
                CHECK,
                format!(
                    "{url} runs version {version} and has {} open sessions of yours",
                    answer.value.len()
                ),
            ),
            Err(error) => Finding::warn(
                CHECK,
                format!("{url} runs version {version}, but: {error}"),
                "give a key that is good there with --api-key or DWELL_API_KEY",
            ),
        },
        Err(ClientError::Unreachable { why, .. }) => {
            let found = format!("none answers at {url} ({why})");
            match by {
                FoundBy::Default => Finding::warn(CHECK, found, START),
                FoundBy::Url | FoundBy::DataDir => {
                    Finding::fail(CHECK, found, "see whether it runs and the URL is right")
                }
            }
        }
        Err(error @ (ClientError::Refused { .. } | ClientError::NotUnderstood { .. })) => {
            let remedy = "name the right server with --url or DWELL_URL";
            match by {
                FoundBy::Default => Finding::warn(CHECK, error.to_string(), remedy),
                FoundBy::Url | FoundBy::DataDir => Finding::fail(CHECK, error.to_string(), remedy),
            }
        }
    }
}

fn gpus() -> Finding {
    const CHECK: &str = "GPUs";
    let discovery = gpus::discover();
    let usable = u32::try_from(discovery.gpus.len()).unwrap_or(u32::MAX);
    if usable == 0 || usable < discovery.devices {
        return Finding::warn(
            CHECK,
            discovery.note,
            "sessions of type CPU work without; else install the NVIDIA driver, or declare GPUs \
             in the config: [gpus] \"A10G\" = 1",
        );
    }
    Finding::ok(CHECK, discovery.note)
}

/// Whether an agent may give an app its own PID namespace: tried, not guessed.
fn pid_namespaces() -> Finding {
    const CHECK: &str = "PID namespaces";
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec this does one system call, which allocates
    // nothing and takes no lock.
    unsafe {
        command.pre_exec(|| unshare(CloneFlags::CLONE_NEWPID).map_err(io::Error::from));
    }
    match command.status() {
        Ok(_) => Finding::ok(
            CHECK,
            "allowed: every process of a session ends with it".to_owned(),
        ),
        Err(why) => Finding::warn(
            CHECK,
            format!("not allowed here ({why})"),
            "sessions work without: their processes are found by descent and cgroup. To have \
             them, run as root or with CAP_SYS_ADMIN",
        ),
    }
}

/// Which cgroups there are, and which of them this process may use.
fn cgroups(mount: &Path) -> Finding {
    const CHECK: &str = "cgroups";
    const WANTED: [&str; 2] = ["memory", "pids"];
    let pure = mount.join("cgroup.controllers").exists();
    let hybrid = mount.join("unified").join("cgroup.procs").exists();
    let v1: Vec<_> = WANTED
        .into_iter()
        .filter(|controller| mount.join(controller).join("cgroup.procs").exists())
        .collect();
    let root = if pure {
        mount.to_owned()
    } else {
        mount.join("unified")
    };
    let tracking = (pure || hybrid) && may_make_groups(&root);
    let limiting: Vec<_> = if pure {
        let own = own_group(&root);
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &&str| tracking && controllers.split_whitespace().any(|it| it == *name);
        WANTED.into_iter().filter(has).collect()
    } else {
        let may = |name: &&str| writable(&mount.join(name));
        v1.into_iter().filter(may).collect()
    };
    let kind = match (pure, hybrid, limiting.is_empty()) {
        (true, ..) => "version 2",
        (false, true, _) => "hybrid: version 2 to find and kill, version 1 to limit",
        (false, false, false) => "version 1",
        (false, false, true) => "none",
    };
    let limits = if limiting.is_empty() {
        "nothing can be limited".to_owned()
    } else {
        format!("limits on {}", limiting.join(" and "))
    };
    let found = format!("{kind}; {limits}");
    if !tracking {
        return Finding::warn(
            CHECK,
            format!("{found}; no group can be made to find and kill a session's processes"),
            "sessions work without: their processes are found by descent. To have them, run as \
             root, or in a group that is delegated to you: systemd-run --user --scope -p \
             Delegate=yes dwell serve",
        );
    }
    if limiting.len() < WANTED.len() {
        return Finding::warn(
            CHECK,
            found,
            "limits on memory and processes are in force only where their controllers are; \
             delegate memory and pids to this user",
        );
    }
    Finding::ok(CHECK, found)
}

/// The group that this process is in.
fn own_group(root: &Path) -> PathBuf {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    root.join(own.unwrap_or_default())
}

fn may_make_groups(root: &Path) -> bool {
    writable(root) || writable(&own_group(root))
}

fn writable(dir: &Path) -> bool {
    access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
        && statvfs(dir).is_ok_and(|mount| {
            !mount
                .flags()
                .contains(nix::sys::statvfs::FsFlags::ST_RDONLY)
        })
}

fn open_files() -> Finding {
    const CHECK: &str = "open files";
    const REMEDY: &str = "raise the limit before serving many: ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= OPEN_FILES_LOW => Finding::ok(CHECK, format!("up to {hard}")),
        Ok((_, hard)) => Finding::warn(CHECK, format!("up to {hard} only"), REMEDY),
        Err(why) => Finding::warn(
            CHECK,
            format!("the limit is not known ({})", why.desc()),
            REMEDY,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_what_was_found() {
        let findings = [
            Finding::ok("a", "fine".into()),
            Finding::warn("b", "odd".into(), "do this"),
        ];
        assert_eq!(
            report(&findings),
            "      CHECK  FOUND\nok    a      fine\nwarn  b      odd\n\nb: do this"
        );
    }

    #[test]
    fn a_host_without_cgroups_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let finding = cgroups(dir.path());
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.found.starts_with("none"), "{}", finding.found);
    }

    #[test]
    fn a_data_directory_that_cannot_be_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let below = data_dir_writable(&DataDir(file.join("data")));
        assert_eq!(below.verdict, Verdict::Fail);
        let new = data_dir_writable(&DataDir(dir.path().join("new")));
        assert_eq!(new.verdict, Verdict::Ok);
    }
}
