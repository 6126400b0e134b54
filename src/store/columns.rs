//! The columns that rows are found by: what both kinds of store have of them.

use dwell_core::owner::Owner;
use dwell_core::session::{Session, State};

/// The `owner` column.
pub(super) fn owner_column(owner: &Owner) -> String {
    match owner {
        Owner::Org(org) => format!("org:{}", org.0),
        Owner::User(user) => format!("user:{}", user.0),
    }
}

/// What a session is found by and that changes while it goes on.
pub(super) struct Standing {
    pub(super) ticket: Option<u64>,
    pub(super) ended_at: Option<i64>,
    pub(super) held_from: Option<i64>,
    pub(super) held_until: Option<i64>,
}

impl Standing {
    pub(super) fn of(session: &Session) -> Self {
        let (ticket, ended_at) = match &session.state {
            State::Queued { ticket } => (Some(*ticket), None),
            State::Starting { .. } | State::Running { .. } | State::Stopping { .. } => (None, None),
            State::Ended { ended_at, .. } => (None, Some(ended_at.0)),
        };
        let event = &session.gpu_event;
        Self {
            ticket,
            ended_at,
            held_from: event.start().map(|start| start.0),
            held_until: event.end().map(|end| end.0),
        }
    }
}
