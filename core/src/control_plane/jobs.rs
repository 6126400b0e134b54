//! Sessions in jobs: what follows from what a cluster's engine says, and from its silence.
//!
//! An engine is asked for all jobs of ours at once. A job that waits or runs is left alone:
//! the agent in it keeps its lease by itself. One that is over has no agent any more, unless
//! that still speaks (Slurm gives up a node that it does not hear of, and what runs there
//! runs on): then its lease ends it. A job that is no open session's is cancelled.

use std::collections::{BTreeMap, BTreeSet};

use super::{Command, ControlPlane};
use crate::id::SessionId;
use crate::job::{Job, JobState, JobStatus, Jobs, LauncherName, PREPARED_WITHIN};
use crate::limits::Limits;
use crate::session::{EndReason, Ending, Placement, Session, State};
use crate::time::{Millis, Moment, Monotonic};

/// An agent whose line broke, and whose job is over, has called again within this or never.
const CALLS_AGAIN_WITHIN: Millis = Millis(5_000);

/// How long an engine may try on to have what a job needs.
const STUCK_FOR: Millis = Millis::from_minutes(1);

/// What a job's time limit leaves its agent beyond all that the session is granted.
const SPARE: Millis = Millis::from_minutes(1);

impl ControlPlane {
    /// These are all jobs that an engine has of ours. It was asked at `asked_at`; of what
    /// was launched since it need not know yet.
    pub fn jobs_are(
        &mut self,
        launcher: &LauncherName,
        jobs: &Jobs,
        asked_at: Monotonic,
        now: Moment,
    ) {
        // An answer to who decided here before another server did.
        if asked_at < self.since {
            return;
        }
        let mut found: BTreeMap<SessionId, Vec<&JobStatus>> = BTreeMap::new();
        for (session, status) in &jobs.0 {
            found.entry(*session).or_default().push(status);
        }
        let ours: Vec<_> = self
            .sessions
            .values()
            .filter(|session| launcher_of(session) == Some(launcher))
            .map(|session| session.id)
            .collect();
        for id in ours {
            let statuses = found.get_mut(&id);
            let its_own = statuses.and_then(|statuses| self.take_its_own(id, statuses));
            self.job_is(id, its_own, asked_at, now);
        }
        self.hear_last_words(launcher, &found, now);
        self.cancel_strays(launcher, &found);
    }

    /// Of several jobs with a session's name the one that is its: the others are strays.
    /// An agent that was heard of is in none that waits.
    fn take_its_own<'a>(
        &self,
        id: SessionId,
        statuses: &mut Vec<&'a JobStatus>,
    ) -> Option<&'a JobStatus> {
        let session = self.sessions.get(&id)?;
        let known = session.job.as_ref().map(|job| &job.id);
        let rank = |status: &JobStatus| {
            let waits = status.state == JobState::Pending;
            (
                waits && !has_no_agent(session),
                status.state == JobState::Ended,
                Some(&status.id) != known,
                waits,
            )
        };
        let best = (0..statuses.len()).min_by_key(|at| statuses.get(*at).map(|it| rank(it)))?;
        Some(statuses.remove(best))
    }

    /// A session has ended, and its engine says only later how its job did: that it was
    /// preempted, say.
    pub(super) fn part(&mut self, ended: Option<Session>) {
        let Some(session) = ended else {
            return;
        };
        let is_to_be_told = |job: &Job| job.state != JobState::Ended;
        if session.job.as_ref().is_some_and(is_to_be_told) {
            self.parted.insert(session.id, session);
        } else {
            self.parted.remove(&session.id);
        }
    }

    fn hear_last_words(
        &mut self,
        launcher: &LauncherName,
        found: &BTreeMap<SessionId, Vec<&JobStatus>>,
        now: Moment,
    ) {
        let mut news = Vec::new();
        self.parted.retain(|id, session| {
            let Some(before) = session.job.as_ref().filter(|job| job.launcher == *launcher) else {
                return true;
            };
            let mut its_own = found.get(id).into_iter().flatten();
            let Some(status) = its_own.find(|status| status.id == before.id) else {
                // It is forgotten.
                return false;
            };
            let job = Some(Job::after(Some(before), launcher, status, now.wall));
            if job != session.job {
                news.push(Session {
                    job,
                    ..session.clone()
                });
            }
            true
        });
        for session in news {
            self.put(session);
        }
    }

    /// At the second look: the end of its session may be on its way to a job.
    fn cancel_strays(
        &mut self,
        launcher: &LauncherName,
        found: &BTreeMap<SessionId, Vec<&JobStatus>>,
    ) {
        let strays: BTreeSet<_> = found
            .iter()
            .flat_map(|(session, statuses)| statuses.iter().map(|status| (*session, *status)))
            .filter(|(_, status)| status.state != JobState::Ended)
            .map(|(session, status)| (launcher.clone(), session, status.id.clone()))
            .collect();
        for (launcher, session, job) in strays.intersection(&self.strays) {
            self.pending.commands.push(Command::CancelJob {
                launcher: launcher.clone(),
                session: *session,
                job: job.clone(),
            });
        }
        self.strays.retain(|(of, ..)| of != launcher);
        self.strays.extend(strays);
    }

    fn job_is(
        &mut self,
        id: SessionId,
        status: Option<&JobStatus>,
        asked_at: Monotonic,
        now: Moment,
    ) {
        let (Some(session), Some(contact)) = (self.sessions.get(&id), self.contacts.get(&id))
        else {
            return;
        };
        let may_be_news = contact.launches > 0
            || contact
                .launched_at
                .is_some_and(|launched_at| asked_at <= launched_at);
        // One that ended may have been there before what was launched since.
        let known = session.job.as_ref().map(|job| &job.id);
        let status = status.filter(|status| {
            !may_be_news || status.state != JobState::Ended || Some(&status.id) == known
        });
        let (launcher, is_stopping) = (
            launcher_of(session).cloned(),
            matches!(session.state, State::Stopping { .. }),
        );
        let name = launcher.map_or_else(String::new, |launcher| launcher.0);
        match (status, &session.job) {
            (Some(status), _) if status.state == JobState::Ended => {
                let sentence = format!("{name} ended its job: {}", status.words);
                self.note(id, status, now);
                self.job_is_over(id, sentence, now);
            }
            (Some(status), _) => self.job_lives(id, status, now),
            (None, _) if may_be_news => {}
            (None, Some(job)) if job.state == JobState::Ended => {
                let sentence = format!("{name} ended its job: {}", job.words());
                self.job_is_over(id, sentence, now);
            }
            (None, Some(job)) => {
                let sentence = format!("{name} does not know its job {} any more", job.id);
                self.job_is_over(id, sentence, now);
            }
            // What came of the last launch is not known; now it is.
            (None, None) if !is_stopping && has_no_agent(session) => self.launch(id),
            (None, None) => self.job_is_over(id, format!("{name} has no job of it"), now),
        }
    }

    /// A job was asked for, and its engine has it.
    pub(super) fn submitted(&mut self, id: SessionId, status: &JobStatus, now: Moment) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.may_have_begun = true;
            contact.last_heard = now.monotonic;
        }
        self.note(id, status, now);
        self.cancel_job_that_has_no_agent(id);
    }

    /// No job could be had, and there is none.
    pub(super) fn job_refused(&mut self, id: SessionId, why: String, now: Moment) {
        let is_new = self
            .sessions
            .get(&id)
            .is_some_and(|session| session.job.is_none() && has_no_agent(session));
        if is_new {
            self.job_is_over(id, why, now);
        }
    }

    fn job_lives(&mut self, id: SessionId, status: &JobStatus, now: Moment) {
        let before = self.sessions.get(&id).and_then(|it| it.job.as_ref());
        let has_changed = before.is_none_or(|job| job.state != status.state);
        self.note(id, status, now);
        let (Some(session), Some(contact)) = (self.sessions.get(&id), self.contacts.get_mut(&id))
        else {
            return;
        };
        let is_awaited = has_no_agent(session);
        let lost_after = self.settings.limits.lost_after;
        // Only a job that has a place owes an agent, and has its time to.
        let agent_within = match status.state {
            JobState::Pending | JobState::Unknown | JobState::Ended => None,
            JobState::Preparing => Some(PREPARED_WITHIN),
            JobState::Stuck => Some(STUCK_FOR),
            JobState::Running => Some(lost_after),
        };
        if is_awaited && (agent_within.is_none() || has_changed) {
            contact.last_heard = now.monotonic;
        }
        let patience = agent_within.filter(|_| is_awaited).unwrap_or(lost_after);
        let is_silent = now.monotonic.since(contact.last_heard) >= patience;
        let is_stopping = matches!(session.state, State::Stopping { .. });
        if is_stopping && (is_awaited || is_silent) {
            self.cancel_job(id);
        } else if is_awaited && is_silent {
            let sentence = match status.state {
                JobState::Running => format!(
                    "Its job runs, but its agent did not call within {patience}; can the nodes \
                     reach the server?"
                ),
                JobState::Pending
                | JobState::Preparing
                | JobState::Stuck
                | JobState::Unknown
                | JobState::Ended => {
                    format!("Its job did not start within {patience}: {}", status.words)
                }
            };
            let session = session.clone();
            self.stop(session, Ending::failed(sentence), now);
        } else if !is_stopping {
            self.move_time_limit(id, status);
        }
    }

    /// An engine ends what nobody else has ended: not before its agent would have.
    fn move_time_limit(&mut self, id: SessionId, status: &JobStatus) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let time_limit = self.job_time_limit(session);
        let Some(cluster) =
            launcher_of(session).and_then(|name| self.settings.places.cluster(name))
        else {
            return;
        };
        if cluster.moves_time_limits && status.time_limit.is_some_and(|it| it < time_limit) {
            self.pending.commands.push(Command::LimitJob {
                launcher: cluster.name.clone(),
                session: id,
                job: status.id.clone(),
                time_limit,
            });
        }
    }

    /// How long a session's job may run at most, from its start.
    pub(super) fn job_time_limit(&self, session: &Session) -> Millis {
        let moves = launcher_of(session)
            .and_then(|name| self.settings.places.cluster(name))
            .is_none_or(|cluster| cluster.moves_time_limits);
        let granted = if moves {
            session.granted_ms
        } else {
            let longest = Millis::from_minutes(self.settings.limits.timeout_max_minutes);
            longest.max(session.granted_ms)
        };
        self.longest_lease(granted).plus(SPARE)
    }

    /// No agent of it can be left, but on a node that its engine has given up.
    fn job_is_over(&mut self, id: SessionId, why: String, now: Moment) {
        let (Some(session), Some(contact)) = (self.sessions.get(&id), self.contacts.get(&id))
        else {
            return;
        };
        let silence = now.monotonic.since(contact.last_heard);
        let is_gone = has_no_agent(session)
            || silence >= self.settings.limits.relaunch_after
            || (contact.hung_up && silence >= CALLS_AGAIN_WITHIN);
        if !is_gone {
            return;
        }
        let ending = match &session.state {
            State::Stopping { ending, .. } => ending.clone(),
            State::Queued { .. }
            | State::Starting { .. }
            | State::Running { .. }
            | State::Ended { .. } => Ending {
                reason: if has_no_agent(session) {
                    EndReason::Failed
                } else {
                    EndReason::Lost
                },
                error: Some(why),
            },
        };
        self.end(id, ending, now);
    }

    /// Put down what an engine says of a session's job.
    fn note(&mut self, id: SessionId, status: &JobStatus, now: Moment) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let Some(launcher) = launcher_of(session) else {
            return;
        };
        let job = Job::after(session.job.as_ref(), launcher, status, now.wall);
        if session.job.as_ref() != Some(&job) {
            let mut session = session.clone();
            session.job = Some(job);
            self.put(session);
        }
    }

    /// A session that is to end, and whose agent was never heard of, ends with its job.
    pub(super) fn cancel_job_that_has_no_agent(&mut self, id: SessionId) {
        let is_owed = self.sessions.get(&id).is_some_and(|session| {
            matches!(session.state, State::Stopping { .. }) && has_no_agent(session)
        });
        if is_owed {
            self.cancel_job(id);
        }
    }

    fn cancel_job(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        if let (Some(launcher), Some(job)) = (launcher_of(session), &session.job)
            && job.state != JobState::Ended
        {
            self.pending.commands.push(Command::CancelJob {
                launcher: launcher.clone(),
                session: id,
                job: job.id.clone(),
            });
        }
    }

    /// What its engine's silence cannot keep from being decided.
    pub(super) fn look_after_job(&mut self, id: SessionId, now: Moment) {
        let (Some(session), Some(contact)) = (self.sessions.get(&id), self.contacts.get(&id))
        else {
            return;
        };
        let Limits {
            relaunch_after,
            lost_after,
            ..
        } = self.settings.limits;
        let silence = now.monotonic.since(contact.last_heard);
        let is_lost = silence >= lost_after;
        let is_launched = session.job.is_some() || contact.launches > 0;
        let is_to_begin = matches!(session.state, State::Starting { .. }) && has_no_agent(session);
        if let Some(name) = launcher_of(session)
            && self.settings.places.cluster(name).is_none()
            && has_no_agent(session)
            && is_lost
        {
            let sentence = format!(
                "Nobody can be asked for its job: the configuration names no launcher {name} any \
                 more"
            );
            return self.job_is_over(id, sentence, now);
        }
        if is_to_begin && !is_launched {
            self.launch(id);
        } else if is_lost && self.lease_is_over(session, silence) {
            return self.give_up(id, silence, now);
        }
        self.set_alarm(id, now.monotonic.plus(relaunch_after));
    }

    /// Whether an agent that was silent for so long must have ended its session by now,
    /// whatever it did meanwhile. No wall clock says so: it may have been stepped.
    fn lease_is_over(&self, session: &Session, silence: Millis) -> bool {
        let longest = self.longest_lease(session.granted_ms).plus(SPARE);
        !has_no_agent(session) && silence >= longest.minus(session.gpu_event.held())
    }
}

/// Has no agent of it begun, or been given leave to?
fn has_no_agent(session: &Session) -> bool {
    session.gpu_event.start().is_none() && session.begun_by.is_none()
}

fn launcher_of(session: &Session) -> Option<&LauncherName> {
    session.placement().and_then(Placement::launcher)
}
