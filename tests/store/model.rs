//! Random histories, told to a store and to one so naive that it is plainly right.

use std::collections::BTreeMap;

use dwell::store::{EventQuery, SessionRecord, Store};
use dwell_core::control_plane::Change;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::{KeyId, MachineId, SessionId, ShareId};
use dwell_core::key::Key;
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::{OrgId, Owner, Principal, UserId};
use dwell_core::session::{Ending, Session, State};
use dwell_core::share::Share;
use dwell_core::time::Timestamp;

use crate::rows::*;

/// So few of everything that histories cross.
const SESSIONS: u32 = 12;
const MACHINES: u32 = 4;
const KEYS: u32 = 4;
const SHARES: u32 = 20;
const TIME: i64 = 20;

fn owners() -> [Owner; 3] {
    [user("ann"), org("ann"), user("bob")]
}

/// A store that does everything the slow way.
#[derive(Clone, Default)]
struct Naive {
    sessions: BTreeMap<SessionId, Session>,
    machines: BTreeMap<MachineId, Machine>,
    versions: Vec<(MachineId, MachineVersion)>,
    keys: BTreeMap<KeyId, Key>,
    shares: BTreeMap<ShareId, Share>,
    gpu_free_since: BTreeMap<GpuId, Timestamp>,
}

impl Naive {
    /// Is it accepted? Then it is done.
    fn commit(&mut self, changes: &[Change]) -> bool {
        let mut after = self.clone();
        let accepted = changes.iter().all(|change| after.apply(change));
        if accepted {
            *self = after;
        }
        accepted
    }

    fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Session(session) => {
                let event = &session.gpu_event;
                if let (Some(gpu), Some(end)) = (&event.gpu, event.end()) {
                    let since = self.gpu_free_since.entry(gpu.clone()).or_insert(end);
                    *since = end.max(*since);
                }
                self.sessions.insert(session.id, (**session).clone());
            }
            Change::Machine(machine) => {
                self.machines.insert(machine.id, (**machine).clone());
            }
            Change::MachineVersion(machine, version) => {
                if !self.machines.contains_key(machine) {
                    return false;
                }
                self.versions.push((*machine, (**version).clone()));
            }
            Change::MachineDeleted(id) => {
                self.machines.remove(id);
                self.versions.retain(|(machine, _)| machine != id);
            }
            Change::Key(key) => {
                self.keys.insert(key.id, key.clone());
            }
            Change::Share(share) => {
                if !self.sessions.contains_key(&share.session) {
                    return false;
                }
                self.shares.insert(share.id, (**share).clone());
            }
            Change::ForgetEndedBefore(before) => {
                self.sessions
                    .retain(|_, session| ended_at(session).is_none_or(|at| at >= *before));
                let sessions = &self.sessions;
                self.shares
                    .retain(|_, share| sessions.contains_key(&share.session));
            }
        }
        true
    }

    fn sessions(&self, owner: &Owner, machine: Option<MachineId>) -> Vec<SessionRecord> {
        let fits = |session: &&Session| {
            session.owner == *owner && (machine.is_none() || session.machine_id == machine)
        };
        let records = self.sessions.values().filter(fits).cloned();
        newest_first(
            records.map(|session| self.record(session)).collect(),
            |record| (record.session.created_at, record.session.id),
        )
    }

    fn record(&self, session: Session) -> SessionRecord {
        let served_before = |other: &&Session| {
            other.gpu_type == session.gpu_type
                && ticket(other).is_some_and(|other| Some(other) <= ticket(&session))
        };
        let before = self.sessions.values().filter(served_before).count();
        SessionRecord {
            queue_position: ticket(&session).map(|_| u32::try_from(before).unwrap()),
            session,
        }
    }

    fn events(&self, owner: &Owner, query: &EventQuery) -> Vec<Session> {
        let sessions = self.sessions(owner, query.machine).into_iter();
        sessions
            .map(|record| record.session)
            .filter(|session| {
                let event = &session.gpu_event;
                event.start().is_some_and(|start| {
                    query.until.is_none_or(|until| start < until)
                        && query
                            .from
                            .is_none_or(|from| event.end().is_none_or(|end| end >= from))
                })
            })
            .collect()
    }

    fn versions(&self, owner: &Owner, id: MachineId) -> Vec<MachineVersion> {
        if self
            .machines
            .get(&id)
            .is_none_or(|machine| machine.owner != *owner)
        {
            return Vec::new();
        }
        let of_machine = self.versions.iter().filter(|(machine, _)| *machine == id);
        let mut versions: Vec<_> = of_machine.map(|(_, version)| version.clone()).collect();
        versions.sort_by_key(|version| std::cmp::Reverse(version.version));
        versions
    }
}

/// A random history so far.
pub struct History {
    random: fastrand::Rng,
    seed: u64,
    told: Vec<String>,
    /// Tickets and versions are never used twice.
    next: u32,
    naive: Naive,
}

impl History {
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            seed,
            told: Vec::new(),
            next: 0,
            naive: Naive::default(),
        }
    }

    /// One random commit, then random questions.
    pub async fn step(&mut self, store: &impl Store) {
        let count = self.random.usize(1..5);
        let changes: Vec<_> = (0..count).map(|_| self.change()).collect();
        self.told.push(format!("{changes:?}"));
        let accepted = self.naive.commit(&changes);
        let result = store.commit(changes).await;
        assert_eq!(result.is_ok(), accepted, "{}{result:?}", self.story());
        let owner = self.random.choice(owners()).unwrap();
        self.compare(store, &owner).await;
    }

    pub async fn compare_everything(&mut self, store: &impl Store) {
        for owner in owners() {
            self.compare(store, &owner).await;
        }
        let mut found = store.load().await.unwrap();
        found.sessions.sort_by_key(|session| session.id);
        found.machines.sort_by_key(|machine| machine.id);
        found.keys.sort_by_key(|key| key.id);
        found.shares.sort_by_key(|share| share.id);
        let story = self.story();
        let open = self
            .naive
            .sessions
            .values()
            .filter(|session| session.is_open());
        assert!(found.sessions.iter().eq(open), "{story}");
        assert!(
            found.machines.iter().eq(self.naive.machines.values()),
            "{story}"
        );
        assert!(found.keys.iter().eq(self.naive.keys.values()), "{story}");
        let is_open = |share: &&Share| self.naive.sessions[&share.session].is_open();
        let shares = self.naive.shares.values().filter(is_open);
        assert!(found.shares.iter().eq(shares), "{story}");
        assert_eq!(found.gpu_free_since, self.naive.gpu_free_since, "{story}");
    }

    async fn compare(&mut self, store: &impl Store, owner: &Owner) {
        let story = self.story();
        let machines = (0..MACHINES).map(|n| Some(machine_id(n)));
        for machine in machines.chain([None]) {
            let all = self.naive.sessions(owner, machine);
            let open: Vec<_> = all
                .iter()
                .filter(|record| record.session.is_open())
                .cloned()
                .collect();
            let found = store.open_sessions(owner, machine).await.unwrap();
            assert_eq!(found, open, "{story}");
            let limit = self.random.u32(0..SESSIONS);
            let newest: Vec<_> = all.into_iter().take(limit as usize).collect();
            let found = store.recent_sessions(owner, machine, limit).await.unwrap();
            assert_eq!(found, newest, "{story}");
            let query = EventQuery {
                machine,
                from: self.maybe_a_moment(),
                until: self.maybe_a_moment(),
            };
            let events = self.naive.events(owner, &query);
            let found = store.gpu_events(owner, query).await.unwrap();
            assert_eq!(found, events, "{story}");
        }
        for n in 0..SESSIONS {
            let session = self.naive.sessions.get(&session_id(n)).cloned();
            let session = session.filter(|session| session.owner == *owner);
            let expected = session.map(|session| self.naive.record(session));
            let found = store.session(owner, session_id(n)).await.unwrap();
            assert_eq!(found, expected, "{story}");
            let of_session =
                |share: &&Share| share.session == session_id(n) && share.owner == *owner;
            let shares = self.naive.shares.values().filter(of_session);
            let shares = newest_first(shares.cloned().collect(), |share: &Share| {
                (share.created_at, share.id)
            });
            let found = store.shares(owner, session_id(n)).await.unwrap();
            assert_eq!(found, shares, "{story}");
        }
        for n in 0..MACHINES {
            let id = machine_id(n);
            let versions = self.naive.versions(owner, id);
            for version in &versions {
                let found = store.machine_version(owner, id, version.id).await.unwrap();
                assert_eq!(found.as_ref(), Some(version), "{story}");
            }
            let found = store.machine_versions(owner, id).await.unwrap();
            assert_eq!(found, versions, "{story}");
            let machine = self.naive.machines.get(&id);
            let expected = machine.filter(|machine| machine.owner == *owner).cloned();
            assert_eq!(store.machine(owner, id).await.unwrap(), expected, "{story}");
        }
        let of_owner = self.naive.machines.values();
        let of_owner = of_owner.filter(|machine| machine.owner == *owner).cloned();
        let machines = newest_first(of_owner.collect(), |machine: &Machine| {
            (machine.created_at, machine.id)
        });
        assert_eq!(store.machines(owner).await.unwrap(), machines, "{story}");
        let of_owner = self.naive.keys.values();
        let of_owner = of_owner.filter(|key| key.principal.owner() == *owner);
        let keys = newest_first(of_owner.cloned().collect(), |key: &Key| {
            (key.created_at, key.id)
        });
        assert_eq!(store.keys(owner).await.unwrap(), keys, "{story}");
    }

    fn change(&mut self) -> Change {
        match self.random.u32(0..21) {
            0..13 => put(&self.session()),
            13..15 => put_machine(&self.machine()),
            // Now and then of a machine that there is not: that is refused.
            15..17 => {
                self.next += 1;
                let version = version(1_000 + self.next, self.next);
                put_version(machine_id(self.random.u32(0..MACHINES)), &version)
            }
            17 => Change::MachineDeleted(machine_id(self.random.u32(0..MACHINES))),
            18 => Change::Key(self.key()),
            19 => put_share(&self.share()),
            _ => Change::ForgetEndedBefore(self.moment()),
        }
    }

    /// Some session in some state. Whose it is, and all else that never changes,
    /// follows from its id.
    fn session(&mut self) -> Session {
        let n = self.random.u32(0..SESSIONS);
        let base = Session {
            owner: owners()[n as usize % 3].clone(),
            machine_id: (n % 5 < MACHINES).then(|| machine_id(n % 5)),
            gpu_type: GpuType(if n.is_multiple_of(2) { "A10G" } else { "L4" }.into()),
            created_at: Timestamp((n / 2).into()),
            ..session(n)
        };
        let (start, length) = (self.random.i64(0..TIME), self.random.i64(0..TIME));
        let gpu = format!("A10G/{}", self.random.u32(0..3));
        self.next += 1;
        let queued = Session {
            state: State::Queued {
                ticket: self.next.into(),
            },
            ..base.clone()
        };
        let stopping = Session {
            state: State::Stopping {
                placement: placement(),
                started_at: Some(Timestamp(start)),
                ending: Ending::failed("It broke".into()),
            },
            ..base.clone()
        };
        match self.random.u32(0..6) {
            0 => queued,
            1 => starting(base),
            2 => held(starting(base), &gpu, start, None),
            3 => held(stopping, &gpu, start, Some(start + length)),
            4 => ended(base, start),
            _ => held(
                ended(base, start + length),
                &gpu,
                start,
                Some(start + length),
            ),
        }
    }

    fn machine(&mut self) -> Machine {
        let n = self.random.u32(0..MACHINES);
        Machine {
            owner: owners()[n as usize % 3].clone(),
            created_at: Timestamp((n / 2).into()),
            name: format!("machine {}", self.random.u8(..)),
            ..machine(n)
        }
    }

    fn key(&mut self) -> Key {
        let n = self.random.u32(0..KEYS);
        let (user, org) = match owners()[n as usize % 3].clone() {
            Owner::Org(OrgId(org)) => (UserId("ann".into()), Some(OrgId(org))),
            Owner::User(user) => (user, None),
        };
        Key {
            principal: Principal {
                user,
                org,
                admin: self.random.bool(),
            },
            revoked_at: self.maybe_a_moment(),
            ..key(n)
        }
    }

    /// A link to some session, which may not be there: then it is refused.
    fn share(&mut self) -> Share {
        let n = self.random.u32(0..SHARES);
        let of = n % SESSIONS;
        Share {
            owner: owners()[of as usize % 3].clone(),
            created_at: Timestamp((n / 2).into()),
            visits: self.random.u32(0..9),
            ..share(n, session_id(of))
        }
    }

    fn moment(&mut self) -> Timestamp {
        Timestamp(self.random.i64(0..TIME))
    }

    fn maybe_a_moment(&mut self) -> Option<Timestamp> {
        self.random.bool().then(|| self.moment())
    }

    fn story(&self) -> String {
        format!("seed {}:\n{}\n", self.seed, self.told.join("\n"))
    }
}

fn ticket(session: &Session) -> Option<u64> {
    match &session.state {
        State::Queued { ticket } => Some(*ticket),
        State::Starting { .. }
        | State::Running { .. }
        | State::Stopping { .. }
        | State::Ended { .. } => None,
    }
}

fn ended_at(session: &Session) -> Option<Timestamp> {
    match &session.state {
        State::Ended { ended_at, .. } => Some(*ended_at),
        State::Queued { .. }
        | State::Starting { .. }
        | State::Running { .. }
        | State::Stopping { .. } => None,
    }
}

fn newest_first<T, Id: Ord>(mut rows: Vec<T>, by: impl Fn(&T) -> (Timestamp, Id)) -> Vec<T> {
    rows.sort_by_key(|row| {
        let (created_at, id) = by(row);
        (std::cmp::Reverse(created_at), id)
    });
    rows
}
