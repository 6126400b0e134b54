//! Keeps sessions' networks from one another, whatever their engine does.
//!
//! Docker lets nothing pass between bridges, and Podman nothing between networks that are
//! isolated; but netavark forgets that when some other network is taken down. So the host
//! is given two rules of routing, which are the same for all sessions and stay: from one
//! address of sessions' networks to another there is no way, unless it is the host itself
//! who speaks.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::engine::Subnets;

/// Before the host's own rules, after its table of local addresses.
const FIRST_PRIORITY: u32 = 90;
/// Bits of an address that all of sessions' have in common.
const PREFIX: u8 = 16;

/// Attributes and actions of rules, as `linux/fib_rules.h` numbers them.
mod fra {
    pub const DST: u16 = 1;
    pub const SRC: u16 = 2;
    pub const IIFNAME: u16 = 3;
    pub const PRIORITY: u16 = 6;
    pub const ACT_TO_TABLE: u8 = 1;
    pub const ACT_UNREACHABLE: u8 = 7;
}

/// Let nothing pass between these networks. Harmless to do twice.
///
/// # Errors
/// When we may not.
pub fn keep_apart(subnets: Subnets) -> io::Result<()> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    // What the host itself sends comes "in" by its loopback.
    let from_host = Rule {
        to: subnets.0,
        from: None,
        by: Some("lo"),
        action: fra::ACT_TO_TABLE,
        priority: FIRST_PRIORITY,
    };
    let between = Rule {
        from: Some(subnets.0),
        by: None,
        action: fra::ACT_UNREACHABLE,
        priority: FIRST_PRIORITY + 1,
        ..from_host
    };
    // In this order: else the host would have no way to them for a moment.
    from_host.add(&kernel)?;
    between.add(&kernel)
}

#[derive(Clone, Copy)]
struct Rule {
    to: Ipv4Addr,
    from: Option<Ipv4Addr>,
    by: Option<&'static str>,
    action: u8,
    priority: u32,
}

impl Rule {
    fn add(self, kernel: &OwnedFd) -> io::Result<()> {
        send(kernel.as_raw_fd(), &self.message(), MsgFlags::empty())?;
        let mut answer = [0; 1_024];
        let length = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // After its head of 16 bytes, an acknowledgement begins with an error number or 0.
        let number = answer
            .get(..length)
            .and_then(|answer| answer.get(16..20))
            .and_then(|number| number.try_into().ok())
            .map(i32::from_ne_bytes);
        match number {
            Some(0) => Ok(()),
            Some(number) if number == -libc::EEXIST => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(-number)),
            None => Err(io::Error::other("the kernel did not answer")),
        }
    }

    /// A request for it, as netlink has it.
    fn message(self) -> Vec<u8> {
        const MAIN: u8 = libc::RT_TABLE_MAIN;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let flags = u16::try_from(flags).unwrap_or_default();
        let table = if self.action == fra::ACT_TO_TABLE {
            MAIN
        } else {
            0
        };
        let family = u8::try_from(libc::AF_INET).unwrap_or_default();
        let source_bits = self.from.map_or(0, |_| PREFIX);
        let mut body = vec![family, PREFIX, source_bits, 0, table, 0, 0, self.action];
        body.extend(0_u32.to_ne_bytes());
        attribute(&mut body, fra::DST, &self.to.octets());
        if let Some(from) = self.from {
            attribute(&mut body, fra::SRC, &from.octets());
        }
        if let Some(by) = self.by {
            attribute(&mut body, fra::IIFNAME, &[by.as_bytes(), b"\0"].concat());
        }
        attribute(&mut body, fra::PRIORITY, &self.priority.to_ne_bytes());
        let length = u32::try_from(16 + body.len()).unwrap_or_default();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(libc::RTM_NEWRULE.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // A number for the request and one for us, which nobody asks for.
        message.extend([0; 8]);
        message.extend(body);
        message
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
