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
        let mut next_device = 0_u32;
        let mut gpus = Vec::new();
        for (gpu_type, count) in counts {
            for slot in 0..count {
                let visible_device = if *gpu_type == GpuType::cpu() {
                    String::new()
                } else {
                    next_device += 1;
                    (next_device - 1).to_string()
                };
                gpus.push(Gpu {
                    id: GpuId(format!("{gpu_type}/{slot:04}")),
                    gpu_type: gpu_type.clone(),
                    visible_device,
                });
            }
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

    /// The type of a request that names none: the first real GPU's, else `CPU`.
    #[must_use]
    pub fn default_type(&self) -> GpuType {
        self.types()
            .into_iter()
            .find(|gpu_type| *gpu_type != GpuType::cpu())
            .unwrap_or_else(GpuType::cpu)
    }
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
}
