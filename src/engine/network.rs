//! The networks of sessions: each container has one to itself.
//!
//! Engines let nothing pass from one to another, as far as they go; the agent sees to
//! the rest ([`crate::agent`]). A network takes long to make, so those that are there
//! are used again; `dwell-0` is the
//! first session's, `dwell-1` that of a second at the same time, and so on.

use std::collections::HashMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::InspectNetworkOptions;

use super::settings::{EngineSettings, Subnets};
use super::{Engine, is_missing};

/// How many subnets may turn out to be somebody else's before we give up.
const FAILURES_MAX: u32 = 32;

/// A network that is ours as long as this is there.
pub struct Network {
    /// What the engine calls it.
    pub name: String,
    /// A lock that cannot be left behind, as those of ports are.
    _claim: UnixListener,
}

impl Engine {
    /// A network that no other session has.
    ///
    /// # Errors
    /// A sentence, when none can be made.
    pub async fn claim_network(&self, settings: &EngineSettings) -> Result<Network, String> {
        let mut failures = 0;
        for number in 0..Subnets::COUNT {
            let name = format!("{}-{number}", settings.network);
            let Some(claim) = claim(&self.host, &name) else {
                continue;
            };
            let is_free = match self.is_free(&name).await? {
                Some(is_free) => is_free,
                None => match self.make_network(&name, settings.subnets.get(number)).await {
                    Ok(()) => true,
                    Err(why) if failures < FAILURES_MAX => {
                        failures += 1;
                        tracing::debug!("network {name}: {why}");
                        false
                    }
                    Err(why) => return Err(format!("No network could be made: {why}")),
                },
            };
            if is_free {
                return Ok(Network {
                    name,
                    _claim: claim,
                });
            }
        }
        Err("Every network of sessions is in use".to_owned())
    }

    /// Whether nobody is in this network; `None` if it is not there.
    async fn is_free(&self, name: &str) -> Result<Option<bool>, String> {
        let options: Option<InspectNetworkOptions> = None;
        match self.docker.inspect_network(name, options).await {
            Ok(network) => Ok(Some(network.containers.is_none_or(|all| all.is_empty()))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.sentence(&error)),
        }
    }

    async fn make_network(&self, name: &str, subnet: String) -> Result<(), String> {
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            // Podman's word for what Docker does by itself.
            options: Some(HashMap::from([("isolate".to_owned(), "true".to_owned())])),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(subnet),
                    ..IpamConfig::default()
                }]),
                ..Ipam::default()
            }),
            ..NetworkCreateRequest::default()
        };
        let made = self.docker.create_network(request).await;
        made.map(|_| ()).map_err(|error| self.sentence(&error))
    }
}

/// The claim to a network of the engine at `host`, unless another session has it.
fn claim(host: &str, name: &str) -> Option<UnixListener> {
    // A longer name is none.
    const LONGEST: usize = 100;
    let claim = format!("dwell-network-{name}-{host}");
    let claim = claim.get(..LONGEST).unwrap_or(&claim);
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(claim).ok()?).ok()
}
