//! What a step changed and is not yet on record, and how it is undone.

use std::collections::BTreeMap;

use super::silence::{CALL_BACK_WITHIN, Contact};
use super::{Change, Command, ControlPlane};
use crate::id::{KeyId, MachineId, SessionId, ShareId};
use crate::key::Key;
use crate::machine::{Machine, MachineVersion};
use crate::owner::Owner;
use crate::placement::Wanted;
use crate::session::{Place, Placement, Session, State};
use crate::share::Share;
use crate::time::{Moment, Timestamp};

/// Rows as they were before the step, and commands that wait for its commit.
#[derive(Debug, Default)]
pub(super) struct Pending {
    sessions: BTreeMap<SessionId, Before<Session>>,
    machines: BTreeMap<MachineId, Before<Machine>>,
    versions: Vec<(MachineId, MachineVersion)>,
    keys: BTreeMap<KeyId, Before<Key>>,
    shares: BTreeMap<(SessionId, ShareId), Before<Share>>,
    /// Of sessions that ended.
    contacts: BTreeMap<SessionId, Contact>,
    pub(super) forget_before: Option<Timestamp>,
    pub(super) commands: Vec<Command>,
}

/// A row before (`None`: there was none) and after.
#[derive(Debug)]
struct Before<T> {
    before: Option<T>,
    after: Option<T>,
}

impl ControlPlane {
    /// The rows to write, each once, as they are now.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let sessions = self
            .pending
            .sessions
            .values()
            .filter(|row| row.before != row.after)
            .filter_map(|row| row.after.clone())
            .map(|session| Change::Session(Box::new(session)));
        let machines = self
            .pending
            .machines
            .iter()
            .map(|(id, row)| match &row.after {
                Some(machine) => Change::Machine(Box::new(machine.clone())),
                None => Change::MachineDeleted(*id),
            });
        let versions = self
            .pending
            .versions
            .iter()
            .filter(|(machine, _)| self.machines.contains_key(machine))
            .map(|(machine, version)| Change::MachineVersion(*machine, Box::new(version.clone())));
        let keys = self
            .pending
            .keys
            .values()
            .filter_map(|row| row.after.clone())
            .map(Change::Key);
        let shares = self
            .pending
            .shares
            .values()
            .filter_map(|row| row.after.clone())
            .map(|share| Change::Share(Box::new(share)));
        let forget = self.pending.forget_before.map(Change::ForgetEndedBefore);
        sessions
            .chain(machines)
            .chain(versions)
            .chain(keys)
            .chain(shares)
            .chain(forget)
            .collect()
    }

    /// The changes are on record: here is what is to be done.
    #[must_use]
    pub fn commit(&mut self) -> Vec<Command> {
        let pending = std::mem::take(&mut self.pending);
        // Links to what has ended lead nowhere. Only now: it could have been undone.
        for (id, row) in pending.sessions {
            if !self.sessions.contains_key(&id) {
                self.forget_shares_of(id);
                self.part(row.after);
            }
        }
        pending.commands
    }

    /// The store refused: everything is as it was before the step.
    pub fn roll_back(&mut self, now: Moment) {
        let pending = std::mem::take(&mut self.pending);
        // What one session gave up another may have taken: lift all, then set down.
        for id in pending.sessions.keys() {
            self.replace(*id, None);
        }
        for (id, row) in pending.sessions {
            let placed = row
                .before
                .as_ref()
                .is_some_and(|session| session.placement().is_some());
            self.replace(id, row.before);
            if !placed {
                self.expect_no_call(id);
            } else if !self.contacts.contains_key(&id) {
                let alarm = now.monotonic.plus(CALL_BACK_WITHIN);
                self.expect_call(id, now.monotonic, alarm, true);
                // A launch that is under way stays so.
                if let Some(before) = pending.contacts.get(&id)
                    && let Some(contact) = self.contacts.get_mut(&id)
                {
                    contact.launches = before.launches;
                    contact.launched_at = before.launched_at;
                }
            }
        }
        for command in pending.commands {
            if let Command::Launch(launch) = command {
                self.launch_is_over(launch.session, now);
            }
        }
        for (id, row) in pending.machines {
            replace_row(&mut self.machines, id, row.before);
        }
        for (id, row) in pending.keys {
            replace_row(&mut self.keys, id, row.before);
        }
        for (id, row) in pending.shares {
            replace_row(&mut self.shares, id, row.before);
        }
    }

    pub(super) fn put(&mut self, session: Session) {
        let id = session.id;
        if !session.is_open() {
            let contact = self.expect_no_call(id);
            self.pending.contacts.extend(contact.map(|it| (id, it)));
        }
        let before = self.replace(id, Some(session.clone()));
        let row = self.pending.sessions.entry(id).or_insert(Before {
            before,
            after: None,
        });
        row.after = Some(session);
    }

    pub(super) fn put_machine(&mut self, id: MachineId, machine: Option<Machine>) {
        let before = replace_row(&mut self.machines, id, machine.clone());
        if let Some(machine) = &machine
            && before
                .as_ref()
                .is_none_or(|before| before.current.id != machine.current.id)
        {
            self.pending.versions.push((id, machine.current.clone()));
        }
        self.pending
            .machines
            .entry(id)
            .or_insert(Before {
                before,
                after: None,
            })
            .after = machine;
    }

    pub(super) fn put_key(&mut self, key: Key) {
        let id = key.id;
        let before = replace_row(&mut self.keys, id, Some(key.clone()));
        self.pending
            .keys
            .entry(id)
            .or_insert(Before {
                before,
                after: None,
            })
            .after = Some(key);
    }

    pub(super) fn put_share(&mut self, share: Share) {
        let id = (share.session, share.id);
        let before = replace_row(&mut self.shares, id, Some(share.clone()));
        self.pending
            .shares
            .entry(id)
            .or_insert(Before {
                before,
                after: None,
            })
            .after = Some(share);
    }

    /// The one place where sessions come, change and go, and where all that follows
    /// from them is kept. Ended sessions are not held.
    pub(super) fn replace(&mut self, id: SessionId, session: Option<Session>) -> Option<Session> {
        if let Some(end) = session.as_ref().and_then(|session| session.gpu_event.end())
            && let Some(gpu) = session
                .as_ref()
                .and_then(|session| session.gpu_event.gpu.clone())
        {
            let free_since = self.gpu_free_since.entry(gpu).or_insert(end);
            *free_since = end.max(*free_since);
        }
        let after = session.filter(Session::is_open);
        let before = self.sessions.remove(&id);
        let (was, is) = (
            before.as_ref().and_then(Footprint::of),
            after.as_ref().and_then(Footprint::of),
        );
        if was != is {
            if let Some(footprint) = was {
                self.lift(id, footprint);
            }
            if let Some(footprint) = is {
                self.set_down(id, footprint);
            }
        }
        if let Some(session) = after {
            self.sessions.insert(id, session);
        }
        before
    }

    fn lift(&mut self, id: SessionId, footprint: Footprint) {
        match footprint.standing {
            Standing::Waits { ticket } => self.floor.leave(&footprint.wanted, ticket),
            Standing::Has(Placement { place, port }) => {
                match place {
                    Place::Host { gpu, .. } => {
                        self.floor
                            .vacate(&gpu, self.settings.places.inventory.get(&gpu));
                    }
                    Place::Job { launcher } => self.floor.vacate_job(&launcher),
                }
                self.settings.ports.give_back(port);
            }
        }
        if let Some(open) = self.open_by_owner.get_mut(&footprint.owner) {
            open.remove(&id);
            if open.is_empty() {
                self.open_by_owner.remove(&footprint.owner);
            }
        }
    }

    fn set_down(&mut self, id: SessionId, footprint: Footprint) {
        match footprint.standing {
            Standing::Waits { ticket } => {
                self.floor.join(&footprint.wanted, ticket, id);
                self.next_ticket = self.next_ticket.max(ticket + 1);
            }
            Standing::Has(Placement { place, port }) => {
                match place {
                    Place::Host { gpu, .. } => {
                        self.floor.occupy(&gpu, &footprint.wanted.gpu_type, id)
                    }
                    Place::Job { launcher } => self.floor.occupy_job(&launcher),
                }
                self.settings.ports.take(port);
            }
        }
        self.open_by_owner
            .entry(footprint.owner)
            .or_default()
            .insert(id, footprint.machine_id);
    }
}

/// What an open session takes up: all that the indexes know of it.
#[derive(PartialEq, Eq)]
struct Footprint {
    owner: Owner,
    machine_id: Option<MachineId>,
    wanted: Wanted,
    standing: Standing,
}

#[derive(PartialEq, Eq)]
enum Standing {
    Waits { ticket: u64 },
    Has(Placement),
}

impl Footprint {
    fn of(session: &Session) -> Option<Self> {
        let standing = match &session.state {
            State::Queued { ticket } => Standing::Waits { ticket: *ticket },
            State::Starting { placement }
            | State::Running { placement, .. }
            | State::Stopping { placement, .. } => Standing::Has(placement.clone()),
            State::Ended { .. } => return None,
        };
        Some(Self {
            owner: session.owner.clone(),
            machine_id: session.machine_id,
            wanted: Wanted {
                gpu_type: session.gpu_type.clone(),
                runs_images: session.recipe.container.is_some(),
            },
            standing,
        })
    }
}

fn replace_row<K: Ord, V>(rows: &mut BTreeMap<K, V>, id: K, row: Option<V>) -> Option<V> {
    match row {
        Some(row) => rows.insert(id, row),
        None => rows.remove(&id),
    }
}
