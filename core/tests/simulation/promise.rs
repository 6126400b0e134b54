//! What a session's processes were promised: reckoned here once more, from nothing
//! but what its agent was told and saw, to compare with what the lease makes of it.

use dwell_core::lease::Terms;
use dwell_core::protocol::ServerMessage;
use dwell_core::time::Millis;

use crate::agents::ORPHAN_MS;

/// What an end takes that was due: a last grace, a timer that fires late, a KILL.
const SLACK_MS: u64 = 1_000;

#[derive(Debug)]
pub struct Promise {
    began: u64,
    terms: Terms,
    answered: Option<u64>,
    /// The end has begun for another reason than that the time is up.
    gone_by: Option<u64>,
    /// When its host last went on after it had stood still: nothing could be done
    /// before.
    pub host_went_on: u64,
}

impl Promise {
    pub fn new(terms: Terms, now: u64) -> Self {
        Self {
            began: now,
            terms,
            answered: None,
            gone_by: None,
            host_went_on: 0,
        }
    }

    pub fn app_answered(&mut self, now: u64) {
        if self.goes_on(now) {
            self.answered.get_or_insert(now);
        }
    }

    pub fn told(&mut self, message: &ServerMessage, now: u64) {
        if !self.goes_on(now) {
            return;
        }
        match message {
            ServerMessage::Lease { granted_ms } => {
                self.terms.granted_ms = self.terms.granted_ms.max(*granted_ms);
            }
            ServerMessage::Stop { .. } => {
                self.gone_by = Some(now + self.terms.grace_ms.0 + SLACK_MS);
            }
            ServerMessage::Begin | ServerMessage::Forget | ServerMessage::Servers { .. } => {}
        }
    }

    pub fn app_exited(&mut self, now: u64) {
        self.gone_by = Some(self.gone_by().min(now + SLACK_MS));
    }

    pub fn agent_killed(&mut self, now: u64) {
        self.gone_by = Some(now + ORPHAN_MS);
    }

    pub fn host_went_on(&mut self, now: u64) {
        self.host_went_on = now;
    }

    /// May it still run, and be granted more?
    pub fn goes_on(&self, now: u64) -> bool {
        self.gone_by.is_none() && now < self.deadline()
    }

    /// What its agent was told in time that it may have in all.
    pub fn granted_ms(&self) -> Millis {
        self.terms.granted_ms
    }

    /// When the last process must be gone.
    pub fn gone_by(&self) -> u64 {
        self.gone_by
            .unwrap_or_else(|| self.deadline() + SLACK_MS)
            .max(self.host_went_on + SLACK_MS)
    }

    fn deadline(&self) -> u64 {
        match self.answered {
            Some(answered) => answered + self.terms.granted_ms.0,
            None => self.began + self.terms.start_limit_ms.0,
        }
    }
}
