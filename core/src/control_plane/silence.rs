//! Agents that are silent: expected, looked for, and in the end given up.

use super::ControlPlane;
use crate::id::SessionId;
use crate::limits::Limits;
use crate::session::{EndReason, Ending, State};
use crate::time::{Millis, Moment, Monotonic};

/// After an agent hung up, or the server came back, how long the agent has to call
/// before another one is sent to look.
pub(super) const CALL_BACK_WITHIN: Millis = Millis(1_000);

/// After its agent died, the last process of a session is gone within this.
pub(super) const ORPHAN_GONE_WITHIN: Millis = Millis(2_000);

/// When an agent was last heard of. Not on record: a server that comes back counts
/// silence from its own start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    pub(super) last_heard: Monotonic,
    /// An agent may have been started: a launch that fails later proves nothing.
    pub(super) may_have_begun: bool,
    pub(super) hung_up: bool,
    /// An agent was started since the last word: it has its time to call.
    pub(super) started_since: bool,
    /// The last time that something came of a launch.
    pub(super) launched_at: Option<Monotonic>,
    /// Launches that were asked for and have had no outcome yet.
    pub(super) launches: u32,
    /// When a launch, since the last sign of life, found no agent. Silence alone loses
    /// nothing: it may be ours.
    pub(super) nobody_there: Option<Monotonic>,
    pub(super) alarm: Monotonic,
}

impl ControlPlane {
    pub(super) fn is_heard_of(&mut self, id: SessionId, now: Moment) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.last_heard = now.monotonic;
            contact.may_have_begun = true;
            contact.started_since = false;
            contact.nobody_there = None;
            contact.hung_up = false;
        }
    }

    /// An agent's connection broke. If it does not call again soon, another agent
    /// is sent to see.
    pub fn hung_up(&mut self, id: SessionId, now: Moment) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.hung_up = true;
            self.set_alarm(id, now.monotonic.plus(CALL_BACK_WITHIN));
        }
    }

    pub(super) fn expect_call(
        &mut self,
        id: SessionId,
        since: Monotonic,
        alarm: Monotonic,
        may_have_begun: bool,
    ) {
        let contact = Contact {
            last_heard: since,
            may_have_begun,
            hung_up: true,
            started_since: false,
            launched_at: None,
            launches: 0,
            nobody_there: None,
            alarm,
        };
        self.contacts.insert(id, contact);
        self.alarms.insert((alarm, id));
    }

    pub(super) fn expect_no_call(&mut self, id: SessionId) -> Option<Contact> {
        let contact = self.contacts.remove(&id)?;
        self.alarms.remove(&(contact.alarm, id));
        Some(contact)
    }

    pub(super) fn set_alarm(&mut self, id: SessionId, at: Monotonic) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            self.alarms.remove(&(contact.alarm, id));
            contact.alarm = at;
            self.alarms.insert((at, id));
        }
    }

    pub(super) fn look_after(&mut self, id: SessionId, now: Moment) {
        if self.is_in_job(id) {
            return self.look_after_job(id, now);
        }
        let Some(contact) = self.contacts.get_mut(&id) else {
            return;
        };
        let Limits {
            relaunch_after,
            lost_after,
            ..
        } = self.settings.limits;
        let silence = now.monotonic.since(contact.last_heard);
        if silence >= lost_after {
            let is_looked_for = contact.launches > 0;
            // Longer ago, the host may have stood still together with this server since.
            let nobody_there = contact
                .nobody_there
                .map(|at| now.monotonic.since(at))
                .filter(|ago| {
                    *ago <= relaunch_after
                        .max(ORPHAN_GONE_WITHIN)
                        .plus(CALL_BACK_WITHIN)
                });
            let pause = match nobody_there {
                Some(ago) if ago < ORPHAN_GONE_WITHIN => ORPHAN_GONE_WITHIN.minus(ago),
                Some(_) | None => CALL_BACK_WITHIN,
            };
            match nobody_there {
                Some(ago) if !is_looked_for && ago >= ORPHAN_GONE_WITHIN => {
                    return self.give_up(id, lost_after, now);
                }
                None if !is_looked_for => self.launch(id),
                Some(_) | None => {}
            }
            self.set_alarm(id, now.monotonic.plus(pause));
        } else if contact.hung_up || silence >= relaunch_after {
            contact.hung_up = false;
            let lost_at = contact.last_heard.plus(lost_after);
            self.set_alarm(id, lost_at.min(now.monotonic.plus(relaunch_after)));
            self.launch(id);
        } else {
            let at = contact.last_heard.plus(relaunch_after);
            self.set_alarm(id, at);
        }
    }

    pub(super) fn give_up(&mut self, id: SessionId, silence: Millis, now: Moment) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let never_held = session.gpu_event.start().is_none();
        let ending = match &session.state {
            State::Stopping { ending, .. } if never_held => ending.clone(),
            State::Starting { .. } if never_held => Ending::failed(format!(
                "Its agent was started but did not call within {silence}"
            )),
            State::Queued { .. }
            | State::Starting { .. }
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Ended { .. } => Ending {
                reason: EndReason::Lost,
                error: Some(format!("Its host was not heard of for {silence}")),
            },
        };
        self.end(id, ending, now);
    }
}
