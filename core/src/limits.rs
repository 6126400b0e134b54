//! The limit on everything, in one place.

use crate::time::Millis;

/// What a server allows and how long it waits. Configured under `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open sessions of one machine for one owner.
    pub sessions_per_machine: u32,
    /// Open sessions of one owner.
    pub sessions_per_owner: u32,
    /// Machines of one owner.
    pub machines_per_owner: u32,
    /// Keys of one owner that are not revoked.
    pub keys_per_owner: u32,
    /// Share links of one session that are still good.
    pub shares_per_session: u32,
    /// The longest total time one session may be granted, extensions included.
    pub timeout_max_minutes: u32,
    /// The timeout of a request and a machine that name none.
    pub timeout_default_minutes: u32,
    /// How long an app may take to answer its ready probe.
    pub start_limit: Millis,
    /// Between TERM and KILL of a session that is cancelled.
    pub grace: Millis,
    /// Between TERM and KILL of a session whose time is up: short, since that
    /// time is no longer the user's.
    pub timeout_grace: Millis,
    /// How often an agent says that it lives.
    pub heartbeat: Millis,
    /// Silence of an agent after which another is asked for.
    pub relaunch_after: Millis,
    /// Silence of an agent after which its session is lost.
    pub lost_after: Millis,
    /// How long an ended session stays readable.
    pub retention: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_per_machine: 5,
            sessions_per_owner: 1_000,
            machines_per_owner: 1_000,
            keys_per_owner: 1_000,
            shares_per_session: 100,
            timeout_max_minutes: 1_440,
            timeout_default_minutes: 15,
            start_limit: Millis::from_minutes(10),
            grace: Millis::from_seconds(10),
            timeout_grace: Millis(800),
            heartbeat: Millis::from_seconds(10),
            relaunch_after: Millis::from_seconds(25),
            lost_after: Millis::from_seconds(60),
            retention: Millis::from_minutes(30 * 24 * 60),
        }
    }
}
