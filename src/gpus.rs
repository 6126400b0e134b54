//! The GPUs of this host, as NVML tells at run time. A host without NVML is simply
//! a host without GPUs.

use std::ffi::OsStr;

use dwell_core::gpu::{Gpu, GpuId, GpuType, Inventory};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// NVML as the driver installs it.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// What was found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The GPUs that sessions can be given, in NVML's order.
    pub gpus: Vec<Gpu>,
    /// How many there are in all, those left out included.
    pub devices: u32,
    /// How that came about, for a person: what was found, what was left out and why.
    pub note: String,
}

/// Looks for this host's GPUs. Whatever goes wrong is said in the note.
#[must_use]
pub fn discover() -> Discovery {
    discover_by(OsStr::new(LIBRARY))
}

/// A process that computes on a GPU of this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GpuProcess {
    /// The GPU.
    pub gpu: GpuId,
    /// The process.
    pub pid: i32,
}

/// The processes that compute on this host's GPUs; none where NVML has nothing to say.
#[must_use]
pub fn processes() -> Vec<GpuProcess> {
    processes_by(OsStr::new(LIBRARY))
}

fn processes_by(library: &OsStr) -> Vec<GpuProcess> {
    let Ok(nvml) = Nvml::builder().lib_path(library).init() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for index in 0..nvml.device_count().unwrap_or(0) {
        let Ok(device) = nvml.device_by_index(index) else {
            continue;
        };
        let (Ok(uuid), Ok(processes)) = (device.uuid(), device.running_compute_processes()) else {
            continue;
        };
        let of_gpu = processes.iter().filter_map(|process| {
            Some(GpuProcess {
                gpu: GpuId(uuid.clone()),
                pid: i32::try_from(process.pid).ok()?,
            })
        });
        found.extend(of_gpu);
    }
    found
}

/// What this host has to give: what is `declared`, what was found, and on a host
/// without any GPU `cpu_default` slots of type `CPU` ([`Inventory::of_host`] has the
/// rule). With it, sentences for the server's log.
#[must_use]
pub fn inventory(declared: &[(GpuType, u32)], cpu_default: u32) -> (Inventory, Vec<String>) {
    let Discovery {
        gpus,
        devices,
        note,
    } = discover();
    let mut notes = vec![note];
    notes.extend(contradictions(declared, &gpus));
    let inventory = Inventory::of_host(declared, &gpus, devices, cpu_default);
    (inventory, notes)
}

/// Where NVML has GPUs to show, but fewer than are declared.
fn contradictions(declared: &[(GpuType, u32)], found: &[Gpu]) -> Vec<String> {
    declared
        .iter()
        .filter(|(gpu_type, _)| !found.is_empty() && *gpu_type != GpuType::cpu())
        .filter_map(|(gpu_type, count)| {
            let of_type = found.iter().filter(|gpu| gpu.gpu_type == *gpu_type);
            let there = u32::try_from(of_type.count()).unwrap_or(u32::MAX);
            (*count > there).then(|| {
                format!(
                    "The config declares {count} GPUs of type {gpu_type}, but NVML finds {there}: \
                     sessions on the others may see no GPU; correct [gpus] in the config"
                )
            })
        })
        .collect()
}

fn discover_by(library: &OsStr) -> Discovery {
    let none = |why: String| Discovery {
        gpus: Vec::new(),
        devices: 0,
        note: format!("No GPUs were found: {why}"),
    };
    let nvml = match Nvml::builder().lib_path(library).init() {
        Ok(nvml) => nvml,
        Err(NvmlError::LibloadingError(_)) => {
            let library = library.display();
            return none(format!("this host has no NVML ({library})"));
        }
        Err(error) => return none(format!("NVML cannot be used ({error})")),
    };
    let devices = match nvml.device_count() {
        Ok(devices) => devices,
        Err(error) => return none(format!("NVML cannot count them ({error})")),
    };
    let (mut gpus, mut left_out) = (Vec::new(), String::new());
    for index in 0..devices {
        match gpu(&nvml, index) {
            Ok(gpu) => gpus.push(gpu),
            Err(why) => left_out += &format!("; GPU {index} is left out: {why}"),
        }
    }
    let names: Vec<_> = gpus.iter().map(|gpu| gpu.gpu_type.0.as_str()).collect();
    let names = if names.is_empty() {
        "none that can be used".to_owned()
    } else {
        names.join(", ")
    };
    Discovery {
        note: format!("GPUs found by NVML: {names}{left_out}"),
        gpus,
        devices,
    }
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, String> {
    let unnamed = |error: NvmlError| format!("NVML cannot name it ({error})");
    let device = nvml.device_by_index(index).map_err(unnamed)?;
    let product = device.name().map_err(unnamed)?;
    let uuid = device.uuid().map_err(unnamed)?;
    // A GPU that knows no MIG answers with an error.
    if device.mig_mode().is_ok_and(|mig| mig.current != 0) {
        return Err(format!(
            "{product} is divided by MIG, and its parts are not given out yet"
        ));
    }
    // Only the variants of one product need it: without it, the name alone must do.
    let memory_mib = device
        .memory_info()
        .map_or(0, |memory| memory.total / (1024 * 1024));
    Ok(Gpu {
        id: GpuId(uuid.clone()),
        gpu_type: GpuType::from_product(&product, memory_mib),
        visible_device: uuid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    #[test]
    fn gpus_go_by_their_uuid_and_one_that_cannot_be_named_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let found = discover_by(fake_nvml(&dir, "-DINIT=0").as_os_str());
        let gpus: Vec<_> = found
            .gpus
            .iter()
            .map(|gpu| {
                let Gpu {
                    id,
                    gpu_type,
                    visible_device,
                } = gpu;
                (id.0.as_str(), gpu_type.0.as_str(), visible_device.as_str())
            })
            .collect();
        assert_eq!(
            gpus,
            [("GPU-0", "A100-80GB", "GPU-0"), ("GPU-4", "T4", "GPU-4")]
        );
        assert_eq!(found.devices, 5);
        assert_eq!(
            found.note,
            "GPUs found by NVML: A100-80GB, T4; GPU 1 is left out: NVML cannot name it (device \
             fell off the bus or has otherwise become inacessible); GPU 2 is left out: NVIDIA \
             H200 is divided by MIG, and its parts are not given out yet; GPU 3 is left out: \
             NVML cannot name it (the current user does not have permission to perform this \
             operation)"
        );
    }

    #[test]
    fn what_computes_on_a_gpu_is_found_and_a_gpu_that_does_not_tell_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let processes = processes_by(fake_nvml(&dir, "-DINIT=0").as_os_str());
        let process = |gpu: &str, pid| GpuProcess {
            gpu: GpuId(gpu.into()),
            pid,
        };
        assert_eq!(
            processes,
            [
                process("GPU-0", 1_000),
                process("GPU-0", 1_001),
                process("GPU-4", 1_004)
            ]
        );
        assert_eq!(processes_by(dir.path().join("none").as_os_str()), []);
    }

    #[test]
    fn a_host_without_nvml_or_driver_is_a_host_without_gpus() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("libnvidia-ml.so.1");
        let found = discover_by(missing.as_os_str());
        assert_eq!(found.gpus, []);
        let expected = format!(
            "No GPUs were found: this host has no NVML ({})",
            missing.display()
        );
        assert_eq!(found.note, expected);

        let driver_not_loaded = fake_nvml(&dir, "-DINIT=9");
        let found = discover_by(driver_not_loaded.as_os_str());
        assert_eq!(found.gpus, []);
        assert_eq!(
            found.note,
            "No GPUs were found: NVML cannot be used (NVIDIA driver is not loaded)"
        );
    }

    #[test]
    fn more_declared_than_found_is_said() {
        let declared = [
            (GpuType("A10G".into()), 2),
            (GpuType("L4".into()), 1),
            (GpuType::cpu(), 4),
        ];
        let gpu = |n: u32, gpu_type: &str| Gpu {
            id: GpuId(format!("GPU-{n}")),
            gpu_type: GpuType(gpu_type.into()),
            visible_device: format!("GPU-{n}"),
        };
        let said = contradictions(&declared, &[gpu(1, "A10G"), gpu(2, "L4")]);
        assert_eq!(
            said,
            [
                "The config declares 2 GPUs of type A10G, but NVML finds 1: sessions on the others \
                 may see no GPU; correct [gpus] in the config"
            ]
        );
        assert_eq!(contradictions(&declared, &[]), [] as [String; 0]);
    }

    /// The library of `fake_nvml.c`, compiled with `option`.
    fn fake_nvml(dir: &tempfile::TempDir, option: &str) -> PathBuf {
        let library = dir.path().join("fake_nvml.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", option, "-o"])
            .arg(&library)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/gpus/fake_nvml.c"))
            .status();
        assert!(compiled.unwrap().success());
        library
    }
}
