//! How a server's containers are run: what `[[launcher]] kind = "docker"` says.

use std::net::Ipv4Addr;

use dwell_core::time::Millis;
use serde::{Deserialize, Serialize};

/// Which engine, and what its containers get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSettings {
    /// Its socket, `unix:///…`.
    pub host: String,
    /// What the networks of sessions are called, before their number.
    pub network: String,
    /// Where their addresses are from.
    pub subnets: Subnets,
    /// How a GPU gets into a container.
    pub gpus: GpuPassing,
    /// How long an image may take to be pulled.
    pub pull_limit: Millis,
    /// Thousandths of a core that a container may use.
    pub cpu_millis: Option<u64>,
    /// What a container may write to its own files, in MiB.
    pub disk_mib: Option<u64>,
}

/// How a GPU gets into a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuPassing {
    /// By its name in the Container Device Interface, `nvidia.com/gpu=UUID`.
    Cdi,
    /// By a device request to NVIDIA's runtime, as `docker run --gpus` makes one.
    #[default]
    DeviceRequests,
}

/// A `/16` that is cut into networks of eight addresses, one for a session each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets(pub Ipv4Addr);

impl Subnets {
    /// How many there are.
    pub const COUNT: u32 = 1 << 13;

    /// The `number`th, as engines write it.
    #[must_use]
    pub fn get(self, number: u32) -> String {
        let first = u32::from(self.0) + (number % Self::COUNT) * 8;
        format!("{}/29", Ipv4Addr::from(first))
    }

    /// Of `10.213.0.0/16`.
    ///
    /// # Errors
    /// A sentence that says what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let address = text.strip_suffix("/16").and_then(|it| it.parse().ok());
        address
            .filter(|address: &Ipv4Addr| address.octets().ends_with(&[0, 0]))
            .map(Self)
            .ok_or_else(|| {
                format!("\"{text}\" is no /16 of addresses; write it like 10.213.0.0/16")
            })
    }
}

impl Default for Subnets {
    fn default() -> Self {
        Self(Ipv4Addr::new(10, 213, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_16_is_cut_into_networks_that_do_not_overlap() {
        let subnets = Subnets::parse("10.7.0.0/16").unwrap();
        assert_eq!(subnets.get(0), "10.7.0.0/29");
        assert_eq!(subnets.get(33), "10.7.1.8/29");
        assert_eq!(subnets.get(Subnets::COUNT - 1), "10.7.255.248/29");
        for wrong in ["10.7.0.0", "10.7.1.0/16", "10.7.0.0/24", "::/16"] {
            assert!(Subnets::parse(wrong).is_err(), "{wrong}");
        }
    }
}
