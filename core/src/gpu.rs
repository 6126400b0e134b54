//! GPU types and the GPUs of a host.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A kind of GPU by the name that requests use: `A10G`, `H100`, `RTX 4090`.
/// `CPU` is the kind of a session that needs none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuType(pub String);

impl GpuType {
    /// The type of sessions without a GPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self("CPU".to_owned())
    }

    /// The type of a device that calls itself `product` (NVML's
    /// `nvmlDeviceGetName`), with `memory_mib` of memory.
    #[must_use]
    pub fn from_product(product: &str, memory_mib: u64) -> Self {
        let bare = product
            .trim()
            .trim_start_matches("NVIDIA ")
            .trim_start_matches("Tesla ")
            .trim_start_matches("GeForce ");
        let model = bare.split([' ', '-']).next().unwrap_or(bare);
        let name = match model {
            "A100" if memory_mib > 60_000 => "A100-80GB",
            "T4" | "L4" | "A10G" | "L40S" | "A100" | "H100" | "H200" | "B200" => model,
            // Not one of the names that clients know: its own name is the best one.
            _ => bare,
        };
        Self(name.to_owned())
    }
}

impl std::fmt::Display for GpuType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One GPU (or one slot of type `CPU`) of a host, by a name that is unique there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GpuId(pub String);

impl std::fmt::Display for GpuId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One GPU that sessions can be given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name on this host.
    pub id: GpuId,
    /// Its kind.
    pub gpu_type: GpuType,
    /// What `CUDA_VISIBLE_DEVICES` must say for a session to see it and no other;
    /// empty for a slot without a GPU.
    pub visible_device: String,
}

/// What a host has, in the order in which it is given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    gpus: BTreeMap<GpuId, Gpu>,
}

impl Inventory {
    /// An inventory of these GPUs. A repeated id counts once.
    #[must_use]
    pub fn new(gpus: impl IntoIterator<Item = Gpu>) -> Self {
        Self {
            gpus: gpus.into_iter().map(|gpu| (gpu.id.clone(), gpu)).collect(),
        }
    }

    /// The inventory that a configuration declares: so many of each type. Devices
    /// are numbered through all types in the order given, as CUDA numbers them;
    /// `CPU` slots have none.
    #[must_use]
    pub fn declared<'a>(counts: impl IntoIterator<Item = (&'a GpuType, u32)>) -> Self {
        let mut next_device = 0;
        let slots = counts
            .into_iter()
            .flat_map(|(gpu_type, count)| slots(gpu_type, count, &mut next_device));
        Self::new(slots)
    }

    /// The inventory of a host that has so many `devices`, of which these GPUs were
    /// `found` fit to be given out.
    ///
    /// A type that is declared counts as declared: of the GPUs found so many, and
    /// when those are too few, made-up ones. Those are numbered on from all devices,
    /// so that none is ever had twice, by its number and by its name. Other types are
    /// as found. A host without any GPU has `cpu_slots` of type `CPU`, if no number
    /// is declared.
    #[must_use]
    pub fn of_host(
        declared: &[(GpuType, u32)],
        found: &[Gpu],
        devices: u32,
        cpu_slots: u32,
    ) -> Self {
        let is_declared = |sought: &GpuType| declared.iter().any(|(known, _)| known == sought);
        let mut next_device = if found.is_empty() { 0 } else { devices };
        let mut gpus: Vec<Gpu> = found
            .iter()
            .filter(|gpu| !is_declared(&gpu.gpu_type))
            .cloned()
            .collect();
        for (gpu_type, count) in declared {
            let of_type = found.iter().filter(|gpu| gpu.gpu_type == *gpu_type);
            let mut missing = *count;
            for gpu in of_type {
                if missing > 0 {
                    gpus.push(gpu.clone());
                    missing -= 1;
                }
            }
            gpus.extend(slots(gpu_type, missing, &mut next_device));
        }
        let cpu = GpuType::cpu();
        if !is_declared(&cpu) && gpus.is_empty() {
            gpus.extend(slots(&cpu, cpu_slots, &mut next_device));
        }
        Self::new(gpus)
    }

    /// Every GPU, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.values()
    }

    /// One GPU by its id.
    #[must_use]
    pub fn get(&self, id: &GpuId) -> Option<&Gpu> {
        self.gpus.get(id)
    }

    /// The types that could ever be had here.
    #[must_use]
    pub fn types(&self) -> BTreeSet<GpuType> {
        self.iter().map(|gpu| gpu.gpu_type.clone()).collect()
    }
}

/// `count` made-up GPUs of a type, whose devices are numbered from `next_device` on.
fn slots(gpu_type: &GpuType, count: u32, next_device: &mut u32) -> Vec<Gpu> {
    (0..count)
        .map(|slot| {
            let visible_device = if *gpu_type == GpuType::cpu() {
                String::new()
            } else {
                let device = *next_device;
                *next_device += 1;
                device.to_string()
            };
            Gpu {
                id: GpuId(format!("{gpu_type}/{slot:04}")),
                gpu_type: gpu_type.clone(),
                visible_device,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_names_become_the_names_that_clients_know() {
        for (product, memory_mib, name) in [
            ("Tesla T4", 15_360, "T4"),
            ("NVIDIA A10G", 23_028, "A10G"),
            ("NVIDIA L40S", 46_068, "L40S"),
            ("NVIDIA A100-SXM4-40GB", 40_960, "A100"),
            ("NVIDIA A100-SXM4-80GB", 81_920, "A100-80GB"),
            ("NVIDIA H100 80GB HBM3", 81_559, "H100"),
            ("NVIDIA H200", 143_771, "H200"),
            ("NVIDIA GeForce RTX 4090", 24_564, "RTX 4090"),
        ] {
            assert_eq!(GpuType::from_product(product, memory_mib).0, name);
        }
    }

    #[test]
    fn declared_gpus_are_numbered_through_all_types_and_cpu_slots_see_none() {
        let (a, cpu, b) = (GpuType("A10G".into()), GpuType::cpu(), GpuType("L4".into()));
        let inventory = Inventory::declared([(&a, 2), (&cpu, 1), (&b, 1)]);
        let devices: Vec<_> = inventory
            .iter()
            .map(|gpu| (gpu.id.0.as_str(), gpu.visible_device.as_str()))
            .collect();
        assert_eq!(
            devices,
            [
                ("A10G/0000", "0"),
                ("A10G/0001", "1"),
                ("CPU/0000", ""),
                ("L4/0000", "2")
            ]
        );
    }

    fn found(gpu_type: &str, uuid: &str) -> Gpu {
        Gpu {
            id: GpuId(uuid.into()),
            gpu_type: GpuType(gpu_type.into()),
            visible_device: uuid.into(),
        }
    }

    fn devices(declared: &[(&str, u32)], found: &[Gpu]) -> Vec<(String, String)> {
        let declared: Vec<_> = declared
            .iter()
            .map(|(name, count)| (GpuType((*name).into()), *count))
            .collect();
        let devices = u32::try_from(found.len()).unwrap() + 1; // one is unfit
        Inventory::of_host(&declared, found, devices, 2)
            .iter()
            .map(|gpu| (gpu.gpu_type.0.clone(), gpu.visible_device.clone()))
            .collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(gpu_type, device)| ((*gpu_type).into(), (*device).into()))
            .collect()
    }

    #[test]
    fn a_host_without_a_gpu_has_its_cores_and_nothing_else_unless_declared() {
        assert_eq!(devices(&[], &[]), pairs(&[("CPU", ""), ("CPU", "")]));
        assert_eq!(devices(&[("CPU", 1)], &[]), pairs(&[("CPU", "")]));
        assert_eq!(devices(&[("CPU", 0)], &[]), pairs(&[]));
        assert_eq!(devices(&[("L4", 1)], &[]), pairs(&[("L4", "0")]));
        let one = [found("L4", "GPU-a")];
        assert_eq!(devices(&[], &one), pairs(&[("L4", "GPU-a")]));
        assert_eq!(
            devices(&[("CPU", 1)], &one),
            pairs(&[("CPU", ""), ("L4", "GPU-a")])
        );
        assert_eq!(
            devices(&[("L4", 0)], &one),
            pairs(&[("CPU", ""), ("CPU", "")])
        );
    }

    #[test]
    fn what_is_declared_of_a_type_replaces_what_was_found_of_it_and_no_device_is_had_twice() {
        let host = [
            found("A10G", "GPU-a"),
            found("A10G", "GPU-b"),
            found("L4", "GPU-c"),
        ];
        // Fewer than there are.
        assert_eq!(
            devices(&[("A10G", 1)], &host),
            pairs(&[("A10G", "GPU-a"), ("L4", "GPU-c")])
        );
        // More than there are, and one that NVML calls by another name.
        assert_eq!(
            devices(&[("A10G", 3), ("L4-24GB", 1)], &host),
            pairs(&[
                ("A10G", "4"),
                ("A10G", "GPU-a"),
                ("A10G", "GPU-b"),
                ("L4", "GPU-c"),
                ("L4-24GB", "5"),
            ])
        );
    }
}
