//! Share links: a session's door opened for a while to who has no key.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{SessionId, ShareId};
use crate::key::KeyHash;
use crate::owner::{Owner, UserId};
use crate::time::{Millis, Timestamp};

/// Who comes from the same address within this of the last time is on the same visit.
const SAME_VISIT_WITHIN: Millis = Millis(60_000);
/// So many visits are remembered one by one.
const RECENT_MAX: usize = 20;
/// Addresses that are told apart; beyond that all are forgotten and begin anew.
const ADDRESSES_MAX: usize = 10_000;

/// What who comes by a share link may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look: ask for what an app shows, by methods that change nothing.
    View,
    /// Use the app as its owner does.
    Use,
}

/// A share link. Its secret is never kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The row.
    pub id: ShareId,
    /// The session that it opens, and no other.
    pub session: SessionId,
    /// Whose session that is.
    pub owner: Owner,
    /// What its maker called it.
    pub name: String,
    /// What a presented secret is looked up by.
    pub hash: KeyHash,
    /// What it allows.
    pub scope: Scope,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// When it stops being good; none, and it is as good as the session is long.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, and by whom, if it was.
    pub revoked: Option<Revocation>,
    /// How often somebody came by it.
    pub visits: u32,
    /// The last of them, newest first.
    pub recent_visits: Vec<Visit>,
}

/// The end of a share link before its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// By whom.
    pub by: UserId,
    /// When.
    pub at: Timestamp,
}

/// Somebody came by a share link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// From which address.
    pub from: IpAddr,
    /// When.
    pub at: Timestamp,
}

impl Share {
    /// Does it open its session at `now`?
    #[must_use]
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    /// Somebody came.
    pub(crate) fn visited(&mut self, visit: Visit) {
        self.visits = self.visits.saturating_add(1);
        self.recent_visits.insert(0, visit);
        self.recent_visits.truncate(RECENT_MAX);
    }
}

/// Who has come by one link, to tell a visit from the many requests that it is made of.
#[derive(Clone, Debug, Default)]
pub struct Visitors(BTreeMap<IpAddr, Timestamp>);

impl Visitors {
    /// Is this the beginning of a visit?
    pub fn is_new(&mut self, visit: Visit) -> bool {
        let last = self.0.get(&visit.from);
        // A clock that was set back makes a new one, and no silence.
        let is_same =
            last.is_some_and(|last| (*last..last.plus(SAME_VISIT_WITHIN)).contains(&visit.at));
        if !is_same {
            if self.0.len() >= ADDRESSES_MAX {
                self.0.clear();
            }
            self.0.insert(visit.from, visit.at);
        }
        !is_same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_again_within_a_minute_is_on_the_same_visit() {
        let mut visitors = Visitors::default();
        let visit = |seconds: i64, last: u8| Visit {
            from: [10, 0, 0, last].into(),
            at: Timestamp(seconds * 1_000),
        };
        for (visit, is_new) in [
            (visit(0, 1), true),
            (visit(59, 1), false),
            (visit(59, 2), true),
            (visit(60, 1), true),
            (visit(30, 1), true),
        ] {
            assert_eq!(visitors.is_new(visit), is_new, "{visit:?}");
        }
    }
}
