//! What the container engine does of what its sessions ask for.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use dwell_core::gpu::Gpu;

use super::{Finding, Verdict};
use crate::agent::spec::AppLimits;
use crate::config::Config;
use crate::engine::{About, Engine, EngineSettings, GpuPassing, Make, Storage};
use crate::gpus;

/// The oldest API that Dwell is tested with: that of Docker Engine 20.10 and Podman 4.
const OLDEST_API: (u32, u32) = (1, 41);
/// Docker's device requests need it beside the engine.
const NVIDIA_HOOK: &str = "nvidia-container-runtime-hook";
/// Where CDI is looked for by an engine that does not say.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The engine that the config names; without one, that where servers look for one that are
/// not told another place. What that cannot do nobody may want.
pub async fn containers(config: Option<&Config>) -> Vec<Finding> {
    if let Some(config) = config
        && let Some(settings) = &config.launcher.engine
    {
        return look(&settings.host, &Asked::by(settings, config.app_limits)).await;
    }
    let Some(host) = usual_host() else {
        return vec![Finding::warn(
            CHECK,
            "no container engine".to_owned(),
            "sessions without an image work without. To have others, install Docker Engine or \
             Podman and name it in the config: [[launcher]] kind = \"docker\"",
        )];
    };
    let mut findings = look(&host, &Asked::default()).await;
    for finding in &mut findings {
        if finding.verdict == Verdict::Fail {
            finding.verdict = Verdict::Warn;
        }
    }
    findings
}

const CHECK: &str = "containers";

/// What is asked of an engine.
#[derive(Default)]
struct Asked {
    memory: bool,
    processes: bool,
    cpu_millis: Option<u64>,
    disk: bool,
    gpus: GpuPassing,
}

impl Asked {
    fn by(settings: &EngineSettings, limits: AppLimits) -> Self {
        Self {
            memory: limits.memory_mib.is_some(),
            processes: limits.pids.is_some(),
            cpu_millis: settings.cpu_millis,
            disk: settings.disk_mib.is_some(),
            gpus: settings.gpus,
        }
    }
}

fn usual_host() -> Option<String> {
    const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
    std::env::var("DOCKER_HOST").ok().or_else(|| {
        let there = SOCKETS.into_iter().find(|path| Path::new(path).exists());
        there.map(|path| format!("unix://{path}"))
    })
}

async fn look(host: &str, asked: &Asked) -> Vec<Finding> {
    let said = async { Engine::connect(host).await?.about().await };
    let about = match said.await {
        Ok(about) => about,
        Err(why) => {
            return vec![Finding::fail(
                CHECK,
                why,
                "start it, or name the one that runs: DOCKER_HOST=unix:///PATH, or host under \
                 [[launcher]]",
            )];
        }
    };
    let mut findings = vec![version(&about, host), limits(&about, asked)];
    if asked.disk {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        findings.push(disk(&about.storage, &mounts));
    }
    let gpus = gpus::discover().gpus;
    if !gpus.is_empty() {
        findings.push(passing(&about, asked.gpus, &gpus, is_in_path(NVIDIA_HOOK)));
    }
    findings
}

const fn name(make: Make) -> &'static str {
    match make {
        Make::Docker => "Docker Engine",
        Make::Podman => "Podman",
    }
}

fn version(about: &About, host: &str) -> Finding {
    let found = format!(
        "{} {} (API {}) at {host}",
        name(about.make),
        about.version,
        about.api
    );
    let api = about.api.split_once('.');
    let api = api.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if api.is_some_and(|api: (u32, u32)| api >= OLDEST_API) {
        Finding::ok(CHECK, found)
    } else {
        Finding::warn(
            CHECK,
            format!("{found}, which is older than any that Dwell is tested with"),
            "install Docker Engine 20.10 or Podman 4, or newer",
        )
    }
}

/// An engine leaves out the limits that it cannot set, and says so only in its own log.
fn limits(about: &About, asked: &Asked) -> Finding {
    const CHECK: &str = "container limits";
    let all = [
        ("memory", about.limits_memory, asked.memory),
        ("processes", about.limits_processes, asked.processes),
        ("cores", about.limits_cores, asked.cpu_millis.is_some()),
    ];
    if let (Make::Docker, Some(cores), Some(cpu_millis)) =
        (about.make, about.cores, asked.cpu_millis)
        && cpu_millis > cores * 1_000
    {
        return Finding::fail(
            CHECK,
            format!("no container can be made: it may have more than the {cores} cores there are"),
            "set cpus under [[launcher]] to as many at most",
        );
    }
    let missing: Vec<_> = all.iter().filter(|(_, can, _)| !can).collect();
    let names: Vec<_> = missing.iter().map(|(what, ..)| *what).collect();
    if names.is_empty() {
        let found = "on memory, processes and cores".to_owned();
        return Finding::ok(CHECK, found);
    }
    let found = format!("none holds on {}", names.join(" and "));
    let remedy = "give the engine the cgroup controllers memory, pids and cpu: a kernel may need \
                  cgroup_enable=memory when it boots, an engine that is in a container or not \
                  root needs them delegated; then restart the engine";
    if missing.iter().any(|(.., is_asked)| *is_asked) {
        Finding::fail(CHECK, found, remedy)
    } else {
        Finding::warn(CHECK, found, remedy)
    }
}

/// Whether `disk_mib` holds; where it does not, a session's log says so too.
fn disk(storage: &Storage, mounts: &str) -> Finding {
    const CHECK: &str = "container disk";
    let driver = &storage.driver;
    let upon = storage.filesystem.as_deref();
    let can = match driver.as_str() {
        "btrfs" | "zfs" => true,
        "overlay" | "overlay2" => upon == Some("xfs") && has_project_quotas(mounts, &storage.dir),
        _ => false,
    };
    if can {
        return Finding::ok(CHECK, format!("the storage driver {driver} limits it"));
    }
    let upon = upon.map(|it| format!(" upon {it}")).unwrap_or_default();
    Finding::fail(
        CHECK,
        format!("disk_mib does not hold: the storage driver {driver}{upon} limits nothing"),
        "keep the engine's data on xfs that is mounted with pquota, or on btrfs with the storage \
         driver of that name; or leave out disk_mib",
    )
}

/// Of what is mounted where `dir` is, by `/proc/self/mountinfo`.
fn has_project_quotas(mounts: &str, dir: &Path) -> bool {
    let holding = mounts.lines().filter_map(|line| {
        let mounted_at = line.split(' ').nth(4)?;
        let (_, options) = line.rsplit_once(' ')?;
        dir.starts_with(mounted_at).then_some((mounted_at, options))
    });
    holding
        .max_by_key(|(mounted_at, _)| mounted_at.len())
        .is_some_and(|(_, options)| {
            let mut options = options.split(',');
            options.any(|option| matches!(option, "pquota" | "prjquota"))
        })
}

/// Whether the engine passes these GPUs by what the config says.
fn passing(about: &About, passing: GpuPassing, gpus: &[Gpu], has_hook: bool) -> Finding {
    const CHECK: &str = "container GPUs";
    let fail = |found: String, remedy| Finding::fail(CHECK, found, remedy);
    match (passing, about.make) {
        (GpuPassing::DeviceRequests, Make::Podman) => fail(
            "Podman takes no device requests, and leaves them out".to_owned(),
            "set gpus = \"cdi\" under [[launcher]]",
        ),
        (GpuPassing::DeviceRequests, Make::Docker) if has_hook || about.has_nvidia_runtime => {
            Finding::ok(CHECK, "passed by device requests".to_owned())
        }
        (GpuPassing::DeviceRequests, Make::Docker) => fail(
            "the engine has nothing of NVIDIA's to pass them by".to_owned(),
            "install nvidia-container-toolkit and restart the engine",
        ),
        (GpuPassing::Cdi, Make::Docker) if about.cdi_dirs.is_empty() => fail(
            "the engine passes nothing by CDI".to_owned(),
            "set {\"features\": {\"cdi\": true}} in the daemon.json of a Docker Engine 25 or newer; or \
             gpus = \"device-requests\" under [[launcher]]",
        ),
        (GpuPassing::Cdi, Make::Podman) if major(&about.version) < 5 => fail(
            format!(
                "Podman {} passes no GPUs to who asks by its API",
                about.version
            ),
            "install Podman 5 or newer, or Docker Engine",
        ),
        (GpuPassing::Cdi, Make::Docker | Make::Podman) => {
            let specifications = specifications(about);
            let nameless = gpus.iter().map(|gpu| gpu.visible_device.as_str());
            let nameless: Vec<_> = nameless
                .filter(|gpu| !specifications.iter().any(|it| it.contains(gpu)))
                .collect();
            if nameless.is_empty() {
                return Finding::ok(CHECK, "passed by CDI".to_owned());
            }
            fail(
                format!("no CDI specification names {}", nameless.join(", ")),
                "write one: nvidia-ctk cdi generate --device-name-strategy=uuid \
                 --output=/etc/cdi/nvidia.yaml",
            )
        }
    }
}

fn major(version: &str) -> u32 {
    let first = version.split('.').next();
    first.and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// What CDI is told of NVIDIA's devices on this host, which is the engine's too.
fn specifications(about: &About) -> Vec<String> {
    let usual = CDI_DIRS.map(Into::into);
    let dirs = match about.cdi_dirs.as_slice() {
        [] => &usual,
        said => said,
    };
    let files = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok());
    files
        .flatten()
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .filter(|text| text.contains("nvidia.com/gpu"))
        .collect()
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH");
    let path = path.as_deref().unwrap_or(OsStr::new("/usr/bin"));
    std::env::split_paths(path).any(|dir| dir.join(program).exists())
}

#[cfg(test)]
mod tests {
    use dwell_core::gpu::{GpuId, GpuType};

    use super::*;

    fn docker() -> About {
        About {
            make: Make::Docker,
            version: "29.1.3".into(),
            api: "1.52".into(),
            limits_memory: true,
            limits_processes: true,
            limits_cores: true,
            cores: Some(2),
            storage: Storage {
                driver: "overlay2".into(),
                filesystem: Some("xfs".into()),
                dir: "/srv/docker".into(),
            },
            has_nvidia_runtime: false,
            cdi_dirs: Vec::new(),
        }
    }

    fn podman(version: &str) -> About {
        About {
            make: Make::Podman,
            version: version.into(),
            ..docker()
        }
    }

    #[test]
    fn an_engine_that_is_older_than_the_tests_is_told_of() {
        for (api, verdict) in [
            ("1.41", Verdict::Ok),
            ("1.52", Verdict::Ok),
            ("2.0", Verdict::Ok),
            ("1.40", Verdict::Warn),
            ("", Verdict::Warn),
        ] {
            let about = About {
                api: api.into(),
                ..docker()
            };
            assert_eq!(version(&about, "unix:///e").verdict, verdict, "{api}");
        }
    }

    #[test]
    fn a_limit_that_does_not_hold_is_a_failure_where_it_is_asked_for() {
        let about = About {
            limits_memory: false,
            ..docker()
        };
        let asked = |memory| Asked {
            memory,
            processes: true,
            ..Asked::default()
        };
        assert_eq!(limits(&docker(), &asked(true)).verdict, Verdict::Ok);
        assert_eq!(limits(&about, &asked(false)).verdict, Verdict::Warn);
        let finding = limits(&about, &asked(true));
        assert_eq!(finding.verdict, Verdict::Fail);
        assert_eq!(finding.found, "none holds on memory");
    }

    #[test]
    fn more_cores_than_there_are_is_a_failure() {
        let of = |about: &About, cpu_millis| {
            let asked = Asked {
                cpu_millis: Some(cpu_millis),
                ..Asked::default()
            };
            limits(about, &asked).verdict
        };
        assert_eq!(of(&docker(), 2_000), Verdict::Ok);
        assert_eq!(of(&docker(), 2_001), Verdict::Fail);
        assert_eq!(of(&podman("5.4.2"), 2_001), Verdict::Ok);
    }

    #[test]
    fn a_disk_is_limited_by_project_quotas_or_by_the_driver() {
        let mounts = |options: &str| {
            format!(
                "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                 40 21 254:1 / /srv rw,relatime shared:9 - xfs /dev/vdb {options}\n\
                 41 21 254:2 / /srv/docker2 rw - xfs /dev/vdc rw,prjquota\n"
            )
        };
        let of = |driver: &str, filesystem: &str, mounts: &str| {
            let storage = Storage {
                driver: driver.into(),
                filesystem: Some(filesystem.into()),
                dir: "/srv/docker".into(),
            };
            disk(&storage, mounts).verdict
        };
        let with = mounts("rw,attr2,prjquota");
        let without = mounts("rw,attr2,noquota");
        assert_eq!(of("overlay2", "xfs", &with), Verdict::Ok);
        assert_eq!(of("overlay2", "xfs", &without), Verdict::Fail);
        assert_eq!(of("overlay2", "extfs", &with), Verdict::Fail);
        assert_eq!(of("btrfs", "", &without), Verdict::Ok);
        assert_eq!(of("vfs", "extfs", &with), Verdict::Fail);
    }

    #[test]
    fn gpus_are_passed_by_what_the_engine_has_for_it() {
        use GpuPassing::{Cdi, DeviceRequests};
        let gpu = Gpu {
            id: GpuId("GPU-1".into()),
            gpu_type: GpuType("A10G".into()),
            visible_device: "GPU-1".into(),
        };
        let of = |about: &About, by, has_hook| {
            passing(about, by, std::slice::from_ref(&gpu), has_hook).found
        };
        let dir = tempfile::tempdir().unwrap();
        let with_cdi = |about| About {
            cdi_dirs: vec![dir.path().to_owned()],
            ..about
        };
        let sentence = "the engine has nothing of NVIDIA's to pass them by";
        assert_eq!(of(&docker(), DeviceRequests, false), sentence);
        assert_eq!(
            of(&docker(), DeviceRequests, true),
            "passed by device requests"
        );
        let sentence = "Podman takes no device requests, and leaves them out";
        assert_eq!(of(&podman("5.4.2"), DeviceRequests, true), sentence);
        let sentence = "the engine passes nothing by CDI";
        assert_eq!(of(&docker(), Cdi, true), sentence);
        let sentence = "Podman 4.3.1 passes no GPUs to who asks by its API";
        assert_eq!(of(&with_cdi(podman("4.3.1")), Cdi, true), sentence);
        for about in [docker(), podman("5.4.2")].map(with_cdi) {
            fs::write(dir.path().join("nvidia.yaml"), "kind: nvidia.com/gpu").unwrap();
            let sentence = "no CDI specification names GPU-1";
            assert_eq!(of(&about, Cdi, false), sentence);
            let text = "kind: nvidia.com/gpu\ndevices:\n- name: GPU-1\n";
            fs::write(dir.path().join("nvidia.yaml"), text).unwrap();
            assert_eq!(of(&about, Cdi, false), "passed by CDI");
        }
    }
}
