//! A switch that hosts hang on, each a network namespace whose plug can be pulled.

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::Command;

use tokio::net::{TcpListener, UnixStream};

use crate::network::{Namespace, run};

/// A bridge of ours, with a subnet that nobody else has here.
pub struct Switch {
    number: u8,
    _claim: UnixListener,
}

impl Switch {
    pub fn new() -> Self {
        let claimed = (0..=255).find_map(|number| {
            let name = format!("dwell-test-switch-{number}");
            let name = SocketAddr::from_abstract_name(name).unwrap();
            let claim = UnixListener::bind_addr(&name).ok()?;
            Some(Self {
                number,
                _claim: claim,
            })
        });
        let switch = claimed.expect("some are free");
        let bridge = switch.device();
        switch.remove();
        run(&["ip", "link", "add", &bridge, "type", "bridge"]);
        let ours = format!("{}/24", switch.ours());
        run(&["ip", "address", "add", &ours, "dev", &bridge]);
        run(&["ip", "link", "set", &bridge, "up"]);
        switch
    }

    fn device(&self) -> String {
        format!("dwswitch{}", self.number)
    }

    fn remove(&self) {
        let removed = Command::new("ip")
            .args(["link", "delete", &self.device()])
            .output();
        // There may be none.
        drop(removed);
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 214, self.number, last)
    }

    pub fn ours(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// A host that hangs on it, and its address.
    pub fn host(&self, number: u8) -> (Namespace, Ipv4Addr) {
        let (host, address) = (Namespace::new(), self.address(number + 2));
        let cable = format!("dwcable{}-{number}", self.number);
        let pid = host.pid().to_string();
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        run(&[&["ip", "link", "add", &cable][..], &peer].concat());
        run(&["ip", "link", "set", &cable, "master", &self.device(), "up"]);
        let theirs = format!("{address}/24");
        host.has(&["ip", "address", "add", &theirs, "dev", "eth0"]);
        host.has(&["ip", "link", "set", "eth0", "up"]);
        (host, address)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Nothing comes to that host or from it, and nobody is told.
pub fn unplug(host: &Namespace) {
    host.has(&["ip", "link", "set", "eth0", "down"]);
}

pub fn plug_in(host: &Namespace) {
    host.has(&["ip", "link", "set", "eth0", "up"]);
}

/// Leads who comes to `address` to a socket of this host. The port.
pub async fn lead_to(socket: PathBuf, address: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let Ok(mut server) = UnixStream::connect(&socket).await else {
                continue;
            };
            tokio::spawn(async move {
                // How it ends is between the two of them.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}
