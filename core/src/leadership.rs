//! Which of several servers decides: the rules of the lease.
//!
//! One server leads, by a lease in the database that all of them share. When it runs out
//! is said by the database's clock alone, as time that is left; the servers' own clocks
//! are never compared. The holder counts from before it asked, so that it stops leading
//! before the database lets another begin. What was decided by one who does not know yet
//! that it leads no more is stopped by the fence: see the store.

use crate::time::{Millis, Monotonic};

/// For how long a lease is good that is not renewed.
pub const LEASE: Millis = Millis(3_000);

/// How often it is renewed.
pub const RENEW_EVERY: Millis = Millis(1_000);

/// How soon a lease is looked at again at the latest: it may have been given up.
const LOOK_EVERY: Millis = Millis(1_000);

/// A lease has run out a little before it is looked at.
const LOOK_LATER: Millis = Millis(20);

/// A server among several. It stays the same when the server is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerId(pub String);

/// The newest lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Who has it, or had it last.
    pub holder: ServerId,
    /// Where other servers reach that one.
    pub url: String,
    /// For how long it is still good; zero when it has run out.
    pub left: Millis,
}

/// May a server lead?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayLead {
    /// It may take the lease.
    Now,
    /// Not yet; it may look again after this.
    LookAfter(Millis),
}

/// May `me` take the lease, the newest being `held`? Who holds it may take it again at
/// once: it was restarted, and what it was before is gone.
#[must_use]
pub fn may_lead(me: &ServerId, held: Option<&Held>) -> MayLead {
    match held {
        Some(held) if held.holder != *me && held.left > Millis::ZERO => {
            MayLead::LookAfter(held.left.plus(LOOK_LATER).min(LOOK_EVERY))
        }
        Some(_) | None => MayLead::Now,
    }
}

/// Until when a holder may count on a lease that it asked for at `asked_at`.
#[must_use]
pub const fn good_until(asked_at: Monotonic) -> Monotonic {
    asked_at.plus(LEASE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, left: u64) -> Held {
        Held {
            holder: ServerId(holder.to_owned()),
            url: String::new(),
            left: Millis(left),
        }
    }

    #[test]
    fn a_lease_is_taken_when_nobody_has_it_or_it_has_run_out_or_it_is_ones_own() {
        let me = ServerId("me".to_owned());
        assert_eq!(may_lead(&me, None), MayLead::Now);
        assert_eq!(may_lead(&me, Some(&held("other", 0))), MayLead::Now);
        assert_eq!(may_lead(&me, Some(&held("me", 3_000))), MayLead::Now);
        assert_ne!(may_lead(&me, Some(&held("other", 1))), MayLead::Now);
    }

    #[test]
    fn it_is_looked_at_again_when_it_runs_out_and_every_second_at_the_latest() {
        let me = ServerId("me".to_owned());
        let after = |left| match may_lead(&me, Some(&held("other", left))) {
            MayLead::LookAfter(span) => span,
            MayLead::Now => Millis::ZERO,
        };
        assert_eq!(after(3_000), LOOK_EVERY);
        assert!(after(500) > Millis(500) && after(500) < Millis(600));
    }

    #[test]
    fn a_holder_that_dies_leaves_time_to_find_another_within_five_seconds() {
        let worst = LEASE.plus(LOOK_LATER);
        assert!(worst < Millis(4_000));
        // Two renewals may be lost.
        const { assert!(RENEW_EVERY.0 * 3 <= LEASE.0) };
    }
}
