//! What is started without Dwell.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::Result;

/// An app as a person would start it.
pub struct ByHand {
    child: Child,
    /// `host:port`.
    pub address: String,
}

impl ByHand {
    /// Start it; `{port}` stands for its port.
    pub fn start(command: &[String]) -> Result<Self> {
        let address = free_address().ok_or("no port is free")?;
        let port = address.port().to_string();
        let mut words = command.iter().map(|word| word.replace("{port}", &port));
        let child = Command::new(words.next().ok_or("no command")?)
            .args(words)
            .env("PORT", &port)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            address: address.to_string(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// An address that nobody has: of each only once, and of none that the system
/// gives to clients.
pub fn free_address() -> Option<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| *port < 20_000)
        .find_map(|port| {
            TcpListener::bind(("127.0.0.1", port))
                .ok()?
                .local_addr()
                .ok()
        })
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
