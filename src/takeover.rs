//! One server taking over from another on the same data directory: the words between
//! the two, and the listeners that go from hand to hand.
//!
//! ```text
//!  successor                 predecessor
//!     │ ── take over ──────────▶ │   takes no more connections,
//!     │ ◀────────── listeners ── │   has decided what waits,
//!     │ ◀────────────── yours ── │   lets go of the store
//!     │ ── serving ────────────▶ │   finishes what is open, and exits
//! ```
//!
//! If the successor is gone before it serves, the predecessor takes back what it gave.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::data_dir::DataDir;
use crate::failpoint::{self, Point};

/// The number changes when either side could misread the other.
const PROTOCOL: u32 = 1;
/// Listeners in one message; the kernel takes 253 at most.
const LISTENERS_MAX: usize = 64;
/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// How long the other side may take for its next word.
const WORD_WITHIN: Duration = Duration::from_secs(60);

/// What a server listens with.
#[derive(Debug)]
pub struct Listeners {
    /// The API, the agents.
    pub api: TcpListener,
    /// Sessions, by port.
    pub sessions: HashMap<u16, TcpListener>,
}

/// Why one server could not take over from another.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The server there knows of no such thing.
    #[error(
        "the server that has the data directory cannot be taken over (its takeover.sock: {0}); stop it and start this one without --takeover"
    )]
    Unreachable(io::Error),
    /// It would not.
    #[error("the server that has the data directory does not give it up: {0}")]
    Refused(String),
    /// It fell silent, or was not understood.
    #[error("the takeover broke off: {0}")]
    BrokenOff(#[from] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    TakeOver {
        protocol: u32,
    },
    Refused {
        why: String,
    },
    /// These listeners come with it, in this order: sessions' by port, the API's none.
    Listeners {
        ports: Vec<Option<u16>>,
    },
    Yours,
    Serving,
}

/// The other server, at the other end of a socket. A socket with a time limit gives up
/// waiting at any signal, and one comes whenever a child ends.
#[derive(Debug)]
struct Peer(OwnedFd);

impl Peer {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let limit = TimeVal::new(i64::try_from(WORD_WITHIN.as_secs()).unwrap_or(60), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&socket, sockopt::SendTimeout, &limit)?;
        Ok(Self(socket))
    }

    fn say(&self, message: &Message, descriptors: &[RawFd]) -> io::Result<()> {
        let words = serde_json::to_vec(message)?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let words = [IoSlice::new(&words)];
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &words, control, flags, None) {
                Err(Errno::EINTR) => {}
                said => return Ok(said.map(drop)?),
            }
        }
    }

    fn hear(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        let mut words = vec![0; MESSAGE_BYTES_MAX];
        let mut control = nix::cmsg_space!([RawFd; LISTENERS_MAX]);
        let mut into = [IoSliceMut::new(&mut words)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let heard = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut into, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                heard => break heard?,
            }
        };
        let length = heard.bytes;
        let mut descriptors = Vec::new();
        for message in heard.cmsgs()? {
            if let ControlMessageOwned::ScmRights(given) = message {
                // SAFETY: the kernel has just made these for us, and nobody else has them.
                descriptors.extend(given.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message = serde_json::from_slice(words.get(..length).unwrap_or_default())?;
        Ok((message, descriptors))
    }
}

// --- The successor's end ----------------------------------------------------------

/// What a successor was given. Until it says that it serves, its predecessor would
/// take all back.
#[derive(Debug)]
pub struct Inheritance {
    /// What to listen with.
    pub listeners: Listeners,
    peer: Peer,
}

impl Inheritance {
    /// Ask the server that has `data_dir` to give way. When this returns, it decides
    /// nothing any more. Blocks.
    ///
    /// # Errors
    /// When it cannot be asked, or does not.
    pub fn ask(data_dir: &DataDir) -> Result<Self, TakeoverError> {
        let socket = seqpacket(SockFlag::SOCK_CLOEXEC).map_err(TakeoverError::Unreachable)?;
        at(&data_dir.takeover_socket(), |address| {
            connect(socket.as_raw_fd(), address)
        })
        .map_err(TakeoverError::Unreachable)?;
        let peer = Peer::new(socket)?;
        peer.say(&Message::TakeOver { protocol: PROTOCOL }, &[])?;
        let (mut api, mut sessions) = (None, HashMap::new());
        loop {
            match peer.hear()? {
                (Message::Listeners { ports }, descriptors) => {
                    for (port, descriptor) in ports.into_iter().zip(descriptors) {
                        let listener = TcpListener::from(descriptor);
                        match port {
                            Some(port) => drop(sessions.insert(port, listener)),
                            None => api = Some(listener),
                        }
                    }
                }
                (Message::Yours, _) => break,
                (Message::Refused { why }, _) => return Err(TakeoverError::Refused(why)),
                (Message::TakeOver { .. } | Message::Serving, _) => {
                    return Err(io::Error::from(io::ErrorKind::InvalidData).into());
                }
            }
        }
        let api = api.ok_or_else(|| io::Error::other("it gave no listener"))?;
        let listeners = Listeners { api, sessions };
        Ok(Self { listeners, peer })
    }

    /// Split into what to listen with, and whom to tell that it is.
    #[must_use]
    pub fn accept(self) -> (Listeners, Serving) {
        (self.listeners, Serving(self.peer))
    }
}

/// To be said once the successor serves.
#[derive(Debug)]
pub struct Serving(Peer);

impl Serving {
    /// The predecessor need take nothing back.
    pub fn say(self) {
        failpoint::cross(Point::SuccessorBeforeServing);
        if let Err(error) = self.0.say(&Message::Serving, &[]) {
            tracing::warn!("the server that was taken over is gone already: {error}");
        }
    }
}

// --- The predecessor's end --------------------------------------------------------

/// Where a server can be asked to give way.
#[derive(Debug)]
pub struct Doorbell {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // If it stays, nobody answers there.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A successor that asks.
#[derive(Debug)]
pub struct Successor(Peer);

impl Doorbell {
    /// Hang it up in `data_dir`.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn hang(data_dir: &DataDir) -> io::Result<Self> {
        let path = data_dir.takeover_socket();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = seqpacket(flags)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        at(&path, |address| bind(socket.as_raw_fd(), address))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listen(&socket, Backlog::new(1)?)?;
        // SAFETY: the socket is the registration's own, and closed with it.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, path })
    }

    /// The next successor that asks.
    pub async fn rung(&self) -> Successor {
        loop {
            let Ok(mut ready) = self.socket.readable().await else {
                // The runtime is going down.
                return std::future::pending().await;
            };
            let accepted = ready.try_io(|socket| {
                let accepted = accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
                // SAFETY: the kernel has just made it for us, and nobody else has it.
                Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
            });
            let Ok(Ok(socket)) = accepted else { continue };
            let asked = tokio::task::spawn_blocking(move || Successor::admit(socket)).await;
            match asked {
                Ok(Ok(successor)) => return successor,
                Ok(Err(error)) => tracing::warn!("a takeover was refused: {error}"),
                Err(_) => {}
            }
        }
    }
}

impl Successor {
    fn admit(socket: OwnedFd) -> io::Result<Self> {
        let who = getsockopt(&socket, sockopt::PeerCredentials)?;
        let peer = Peer::new(socket)?;
        let refuse = |why: &str| {
            let refused = Message::Refused {
                why: why.to_owned(),
            };
            let _ = peer.say(&refused, &[]);
            Err(io::Error::other(why.to_owned()))
        };
        if who.uid() != 0 && who.uid() != geteuid().as_raw() {
            return refuse("it belongs to another user");
        }
        match peer.hear()? {
            (Message::TakeOver { protocol: PROTOCOL }, _) => Ok(Self(peer)),
            _ => refuse("it is of a version that hands over in another way; stop it first"),
        }
    }

    /// Give it what we listen with. Blocks.
    ///
    /// # Errors
    /// When it is gone.
    pub fn give(&self, listeners: &Listeners) -> io::Result<()> {
        let mut all = vec![(None, listeners.api.as_fd())];
        let sessions = listeners.sessions.iter();
        all.extend(sessions.map(|(port, listener)| (Some(*port), listener.as_fd())));
        for some in all.chunks(LISTENERS_MAX) {
            let ports = some.iter().map(|(port, _)| *port).collect();
            let descriptors: Vec<RawFd> = some.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
            self.0.say(&Message::Listeners { ports }, &descriptors)?;
        }
        Ok(())
    }

    /// Everything is its own now; wait until it says that it serves. Blocks.
    ///
    /// # Errors
    /// When it is gone, or takes too long: all is to be taken back.
    pub fn give_way(self) -> io::Result<()> {
        failpoint::cross(Point::ServerBeforeYours);
        self.0.say(&Message::Yours, &[])?;
        failpoint::cross(Point::ServerAfterYours);
        match self.0.hear()? {
            (Message::Serving, _) => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Keeps each message whole.
fn seqpacket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// Do something with the address of `path`, however long that is: the address itself
/// has room for 108 bytes.
fn at(path: &Path, act: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default();
    let parent = std::fs::File::open(parent)?;
    let short = Path::new("/proc/self/fd")
        .join(parent.as_raw_fd().to_string())
        .join(name);
    act(&UnixAddr::new(&short)?).map_err(Errno::into)
}
