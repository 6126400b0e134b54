//! JupyterHub's proxy, on Node.js.

use std::path::Path;

use super::{Peer, start_upstream};
use crate::Result;
use crate::by_hand::free_address;
use crate::gateway::install::from_npm;
use crate::gateway::program::Program;
use crate::server::beside;

const NAME: &str = "configurable-http-proxy";
const VERSION: &str = "5.3.0";

pub fn start(_: &Path) -> Result<Option<Peer>> {
    let Some(script) = from_npm(&beside("peers")?, NAME, VERSION)? else {
        return Ok(None);
    };
    let upstream = start_upstream()?;
    let address = free_address().ok_or("no port is free")?;
    let api = free_address().ok_or("no port is free")?;
    let [port, api_port] = [address, api].map(|address| address.port().to_string());
    let target = format!("http://{}", upstream.address);
    let arguments = [
        "--ip=127.0.0.1",
        "--port",
        &port,
        "--api-ip=127.0.0.1",
        "--api-port",
        &api_port,
        "--default-target",
        &target,
        "--log-level=error",
    ];
    let address = address.to_string();
    let proxy = Program::start(&script, &arguments, "", &address)?;
    Peer::before(upstream, NAME, address, proxy)
}
