//! Why a request is not granted. One exhaustive map turns these into HTTP.

use crate::gpu::GpuType;

/// A request that the core refuses. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No open session of that id for that owner.
    #[error("GPU event not found")]
    NoSuchSession,
    /// No machine of that id for that owner.
    #[error("Machine not found")]
    NoSuchMachine,
    /// No such key for that owner.
    #[error("API key not found")]
    NoSuchKey,
    /// No such share link of that session, or none that is still good.
    #[error("Share link not found")]
    NoSuchShare,
    /// Who has the address needs no share link.
    #[error(
        "Whoever has this session's address can use it already; make its access private to share it by links"
    )]
    NotPrivate,
    /// The session has no deadline yet that could be moved.
    #[error("Session has not started yet")]
    NotStarted,
    /// Too many open sessions of one machine.
    #[error(
        "You have reached the maximum number of concurrent sessions. Please close some sessions and try again."
    )]
    TooManySessions,
    /// A limit of the owner's.
    #[error(
        "You have reached the maximum number of {what} ({limit}). Please remove some and try again."
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u32,
    },
    /// A GPU type that this server could never give.
    #[error("GPU type {asked} is not available here; this server has: {}", list(.known))]
    UnknownGpuType {
        /// What was asked for.
        asked: GpuType,
        /// What there is.
        known: Vec<GpuType>,
    },
    /// An image where nothing runs images.
    #[error("Nothing here runs images on {asked}; {}", images_run_on(.known))]
    NoImages {
        /// The GPU type that was asked for.
        asked: GpuType,
        /// Those that images can have.
        known: Vec<GpuType>,
    },
    /// A timeout that is out of range.
    #[error("minutes must be from 1 to {max} in all; {asked} is not")]
    TimeoutOutOfRange {
        /// The total asked for.
        asked: u64,
        /// The longest allowed.
        max: u32,
    },
    /// The server ends its sessions and goes.
    #[error("The server is shutting down; ask again when it is back")]
    ShuttingDown,
    /// Something that only an admin's key may do.
    #[error("Only an admin's key can make keys for another user or organisation")]
    AdminOnly,
}

fn images_run_on(types: &[GpuType]) -> String {
    if types.is_empty() {
        return "that takes a [[launcher]] that does in the server's config".to_owned();
    }
    format!("they run on: {}", list(types))
}

fn list(types: &[GpuType]) -> String {
    let names: Vec<_> = types.iter().map(|gpu_type| gpu_type.0.as_str()).collect();
    names.join(", ")
}
