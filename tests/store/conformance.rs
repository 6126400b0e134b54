//! The promises of [`Store`], one story each. Every kind of store is to keep all of
//! them: see [`conforms`].

use std::cell::Cell;
use std::time::{Duration, Instant};

use dwell::store::{EventQuery, SessionRecord, Store};
use dwell_core::control_plane::Change;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::key::Key;
use dwell_core::machine::Machine;
use dwell_core::owner::{OrgId, Owner, Principal, UserId};
use dwell_core::session::Session;
use dwell_core::time::Timestamp;
use futures_util::future::join_all;

use crate::model;
use crate::rows::*;

/// Where one store is. What is put into it is there when it is opened again.
pub trait Home: Sized {
    /// The kind of store.
    type Store: Store;
    /// A place where no store has been.
    async fn fresh() -> Self;
    /// The store there. One at a time is open.
    async fn open(&self) -> Self::Store;
}

/// One test for each story, told of the stores in homes of this kind.
macro_rules! conforms {
    ($home:ty) => {
        $crate::conformance::conforms! { $home =>
            what_was_committed_is_there_after_reopening,
            a_commit_is_all_or_nothing,
            a_commit_is_seen_whole_or_not_at_all,
            many_commits_at_once_all_hold_and_a_bad_one_fails_alone,
            owners_never_see_each_others_rows,
            a_queue_position_counts_everyone_who_is_served_before,
            an_ended_session_leaves_the_open_ones_and_stays_readable,
            lists_are_newest_first_and_as_long_as_asked,
            an_event_is_in_every_window_that_it_touches,
            a_machine_goes_with_its_versions_but_not_with_its_sessions,
            versions_are_newest_first,
            a_revoked_key_stays_readable,
            what_ended_long_ago_is_forgotten,
            any_number_of_sessions_is_forgotten,
            a_server_that_starts_gets_all_that_matters,
            the_server_secret_is_made_once,
            any_history_reads_as_a_naive_store_would_tell_it,
        }
    };
    ($home:ty => $($story:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $story() {
                $crate::conformance::$story::<$home>().await;
            }
        )+
    };
}
pub(crate) use conforms;

pub async fn what_was_committed_is_there_after_reopening<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let (session, machine, key) = (session(1), machine(2), key(3));
    store
        .commit(vec![
            put(&session),
            put_machine(&machine),
            put_version(machine.id, &machine.current),
            Change::Key(key.clone()),
        ])
        .await
        .unwrap();
    drop(store);

    let store = home.open().await;
    let found = store.session(&ann(), session.id).await.unwrap().unwrap();
    assert_eq!(found.session, session);
    assert_eq!(
        store.machine(&ann(), machine.id).await.unwrap(),
        Some(machine.clone())
    );
    assert_eq!(
        store.machine_versions(&ann(), machine.id).await.unwrap(),
        [machine.current]
    );
    assert_eq!(store.keys(&ann()).await.unwrap(), [key]);
}

pub async fn a_commit_is_all_or_nothing<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    store.commit(vec![put(&session(1))]).await.unwrap();
    let first = starting(session(1));

    let refusal = store
        .commit(vec![put(&first), put(&session(2)), refused()])
        .await;
    assert!(refusal.is_err());
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(sessions(open), [session(1)], "nothing of it happened");

    store
        .commit(vec![put(&first), put(&session(2))])
        .await
        .unwrap();
    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(sessions(open), [session(2), first]);
}

pub async fn a_commit_is_seen_whole_or_not_at_all<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let done = Cell::new(false);
    let pairs_come_and_go = async {
        for end in [false, true] {
            for n in 0..50 {
                let pair = [session(2 * n), session(2 * n + 1)];
                let pair = pair.map(|row| put(&if end { ended(row, 0) } else { row }));
                store.commit(pair.to_vec()).await.unwrap();
            }
        }
        done.set(true);
    };
    let look = async {
        while !done.get() {
            let seen = store.open_sessions(&ann(), None).await.unwrap();
            assert_eq!(seen.len() % 2, 0, "half a pair was seen");
            let positions = seen.iter().map(|record| record.queue_position.unwrap());
            let newest_first = (1..=u32::try_from(seen.len()).unwrap()).rev();
            assert!(
                positions.eq(newest_first),
                "positions are of another moment than their sessions"
            );
        }
    };
    tokio::join!(pairs_come_and_go, look);
}

pub async fn many_commits_at_once_all_hold_and_a_bad_one_fails_alone<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let commits = (0..200).map(|n| {
        let mut changes = vec![put(&session(n))];
        if n % 50 == 7 {
            changes.push(refused());
        }
        store.commit(changes)
    });
    let results = join_all(commits).await;
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), n % 50 == 7, "{n}: {result:?}");
    }
    drop(store);

    let open = home.open().await.open_sessions(&ann(), None).await.unwrap();
    let expected: Vec<_> = (0..200)
        .rev()
        .filter(|n| n % 50 != 7)
        .map(session)
        .collect();
    assert_eq!(sessions(open), expected);
}

pub async fn owners_never_see_each_others_rows<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    // An organisation with a user's name; Ann for herself, and Ann in the organisation.
    let owners = [org("ann"), user("ann"), org("lab"), user("bob"), org("")];
    let mine = |n: u32, owner: &Owner| {
        let session = held(
            ended(session(n), 90 + i64::from(n)),
            "A10G/0000",
            80,
            Some(90),
        );
        let machine = Machine {
            owner: owner.clone(),
            ..machine(n)
        };
        let (user, org) = match owner {
            Owner::Org(org) => (UserId("ann".into()), Some(org.clone())),
            Owner::User(user) => (user.clone(), None),
        };
        let key = Key {
            principal: Principal {
                user,
                org,
                admin: false,
            },
            ..key(n)
        };
        let session = Session {
            owner: owner.clone(),
            machine_id: Some(machine.id),
            ..session
        };
        (session, machine, key)
    };
    for (n, owner) in (1..).zip(&owners) {
        let (session, machine, key) = mine(n, owner);
        let open = Session {
            id: session_id(100 + n),
            ..starting(session.clone())
        };
        store
            .commit(vec![
                put(&session),
                put(&open),
                put_machine(&machine),
                put_version(machine.id, &machine.current),
                Change::Key(key),
            ])
            .await
            .unwrap();
    }
    for (n, owner) in (1..).zip(&owners) {
        for (other, whose) in (1..).zip(&owners) {
            let own = n == other;
            let (_, machine, key) = mine(other, whose);
            for id in [session_id(other), session_id(100 + other)] {
                let found = store.session(owner, id).await.unwrap();
                assert_eq!(found.is_some(), own);
            }
            let of = Some(machine.id);
            let count = usize::from(own);
            assert_eq!(store.open_sessions(owner, of).await.unwrap().len(), count);
            assert_eq!(
                store.recent_sessions(owner, of, 9).await.unwrap().len(),
                2 * count
            );
            let events = EventQuery {
                machine: of,
                ..EventQuery::default()
            };
            assert_eq!(
                store.gpu_events(owner, events).await.unwrap().len(),
                2 * count
            );
            let found = store.machine(owner, machine.id).await.unwrap();
            assert_eq!(found, own.then(|| machine.clone()));
            assert_eq!(
                store
                    .machine_versions(owner, machine.id)
                    .await
                    .unwrap()
                    .len(),
                count
            );
            let found = store
                .machine_version(owner, machine.id, machine.current.id)
                .await
                .unwrap();
            assert_eq!(found, own.then(|| machine.current.clone()));
            assert_eq!(store.keys(owner).await.unwrap().contains(&key), own);
        }
        assert_eq!(store.open_sessions(owner, None).await.unwrap().len(), 1);
        assert_eq!(
            store.recent_sessions(owner, None, 99).await.unwrap().len(),
            2
        );
        let events = store.gpu_events(owner, EventQuery::default()).await;
        assert_eq!(events.unwrap().len(), 2);
        assert_eq!(store.machines(owner).await.unwrap().len(), 1);
        assert_eq!(store.keys(owner).await.unwrap().len(), 1);
    }
}

pub async fn a_queue_position_counts_everyone_who_is_served_before<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let bobs = Session {
        owner: user("bob"),
        ..session(1)
    };
    let other_type = Session {
        gpu_type: GpuType("L4".into()),
        ..session(3)
    };
    let changes = [bobs.clone(), session(2), other_type, session(4), session(5)];
    store
        .commit(changes.iter().map(put).collect())
        .await
        .unwrap();
    let positions = async || {
        let open = store.open_sessions(&ann(), None).await.unwrap();
        let recent = store.recent_sessions(&ann(), None, 9).await.unwrap();
        assert_eq!(open, recent);
        for record in &open {
            let alone = store.session(&ann(), record.session.id).await.unwrap();
            assert_eq!(alone.as_ref(), Some(record));
        }
        let positions = open.into_iter().map(|record| record.queue_position);
        positions.collect::<Vec<_>>()
    };
    assert_eq!(positions().await, [Some(4), Some(3), Some(1), Some(2)]);

    let served = [put(&starting(bobs)), put(&starting(session(4)))];
    store.commit(served.to_vec()).await.unwrap();
    assert_eq!(positions().await, [Some(2), None, Some(1), Some(1)]);
}

pub async fn an_ended_session_leaves_the_open_ones_and_stays_readable<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    store
        .commit(vec![put(&session(1)), put(&session(2))])
        .await
        .unwrap();
    let over = ended(session(1), 50);
    store.commit(vec![put(&over)]).await.unwrap();

    let open = store.open_sessions(&ann(), None).await.unwrap();
    assert_eq!(sessions(open), [session(2)]);
    let recent = store.recent_sessions(&ann(), None, 9).await.unwrap();
    assert_eq!(sessions(recent), [session(2), over.clone()]);
    let found = store.session(&ann(), over.id).await.unwrap().unwrap();
    assert_eq!((found.session, found.queue_position), (over, None));
}

pub async fn lists_are_newest_first_and_as_long_as_asked<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let of_machine = |n| Session {
        machine_id: Some(machine_id(1)),
        ..session(n)
    };
    // Two of one moment come by id.
    let twin = Session {
        created_at: Timestamp(4),
        ..of_machine(9)
    };
    let all = [session(2), of_machine(4), twin, session(1), of_machine(3)];
    let machines = [machine(1), machine(3), machine(2)];
    let keys = [key(2), key(3), key(1)];
    let changes = all
        .iter()
        .map(put)
        .chain(machines.iter().map(put_machine))
        .chain(keys.into_iter().map(Change::Key));
    store.commit(changes.collect()).await.unwrap();

    let ids = |records: Vec<SessionRecord>| {
        let ids = records.into_iter().map(|record| record.session.id);
        ids.collect::<Vec<_>>()
    };
    let expect = |ids: &[u32]| ids.iter().map(|n| session_id(*n)).collect::<Vec<_>>();
    let (any, one) = (None, Some(machine_id(1)));
    let open = store.open_sessions(&ann(), any).await.unwrap();
    assert_eq!(ids(open), expect(&[4, 9, 3, 2, 1]));
    let open = store.open_sessions(&ann(), one).await.unwrap();
    assert_eq!(ids(open), expect(&[4, 9, 3]));
    let recent = store.recent_sessions(&ann(), any, 3).await.unwrap();
    assert_eq!(ids(recent), expect(&[4, 9, 3]));
    let recent = store.recent_sessions(&ann(), one, 2).await.unwrap();
    assert_eq!(ids(recent), expect(&[4, 9]));
    let recent = store.recent_sessions(&ann(), any, 0).await.unwrap();
    assert_eq!(ids(recent), []);
    let machines = store.machines(&ann()).await.unwrap();
    assert_eq!(machines, [machine(3), machine(2), machine(1)]);
    let keys = store.keys(&ann()).await.unwrap();
    assert_eq!(keys, [key(3), key(2), key(1)]);
}

pub async fn an_event_is_in_every_window_that_it_touches<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let gpu = "A10G/0000";
    let rows = [
        held(ended(session(1), 20), gpu, 10, Some(20)),
        held(starting(session(2)), gpu, 20, None),
        session(3),            // no GPU yet
        ended(session(4), 15), // and never one
        held(starting(session(5)), gpu, 12, Some(18)),
    ];
    store.commit(rows.iter().map(put).collect()).await.unwrap();
    for (from, until, expected) in [
        (None, None, &[5, 2, 1][..]),
        (Some(20), None, &[2, 1]), // ended at that moment: not before it
        (Some(21), None, &[2]),
        (None, Some(20), &[5, 1]), // began at that moment: not before it
        (None, Some(21), &[5, 2, 1]),
        (None, Some(10), &[]),
        (Some(19), Some(20), &[1]),
        (Some(13), Some(14), &[5, 1]),
        (Some(1_000), Some(2_000), &[2]), // held still
    ] {
        let query = EventQuery {
            machine: None,
            from: from.map(Timestamp),
            until: until.map(Timestamp),
        };
        let found = store.gpu_events(&ann(), query).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|session| session.id).collect();
        let expected: Vec<_> = expected.iter().map(|n| session_id(*n)).collect();
        assert_eq!(found, expected, "from {from:?} until {until:?}");
    }
}

pub async fn a_machine_goes_with_its_versions_but_not_with_its_sessions<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let machine = machine(1);
    let session = Session {
        machine_id: Some(machine.id),
        machine_version_id: Some(machine.current.id),
        ..session(1)
    };
    store
        .commit(vec![
            put_machine(&machine),
            put_version(machine.id, &machine.current),
            put(&session),
        ])
        .await
        .unwrap();
    let gone = vec![Change::MachineDeleted(machine.id)];
    store.commit(gone.clone()).await.unwrap();
    store.commit(gone).await.unwrap(); // again: no harm

    assert_eq!(store.machine(&ann(), machine.id).await.unwrap(), None);
    assert_eq!(
        store.machine_versions(&ann(), machine.id).await.unwrap(),
        []
    );
    let version = machine.current.id;
    let found = store.machine_version(&ann(), machine.id, version).await;
    assert_eq!(found.unwrap(), None);
    let open = store.open_sessions(&ann(), Some(machine.id)).await.unwrap();
    assert_eq!(sessions(open), [session]);
}

pub async fn versions_are_newest_first<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let versions = [version(30, 1), version(10, 2), version(20, 3)];
    for version in &versions {
        let machine = Machine {
            current: version.clone(),
            ..machine(1)
        };
        store
            .commit(vec![
                put_machine(&machine),
                put_version(machine.id, version),
            ])
            .await
            .unwrap();
    }
    let [first, second, third] = versions;
    let found = store.machine_versions(&ann(), machine_id(1)).await.unwrap();
    assert_eq!(found, [third, second.clone(), first]);
    let found = store
        .machine_version(&ann(), machine_id(1), second.id)
        .await;
    assert_eq!(found.unwrap(), Some(second));
}

pub async fn a_revoked_key_stays_readable<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    store.commit(vec![Change::Key(key(1))]).await.unwrap();
    let revoked = Key {
        revoked_at: Some(Timestamp(9)),
        ..key(1)
    };
    let revoke = vec![Change::Key(revoked.clone())];
    store.commit(revoke).await.unwrap();
    let revoked = [revoked];
    assert_eq!(store.keys(&ann()).await.unwrap(), revoked);
    assert_eq!(store.load().await.unwrap().keys, revoked);
}

pub async fn what_ended_long_ago_is_forgotten<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let rows = [
        held(ended(session(1), 99), "A10G/0000", 50, Some(99)),
        held(ended(session(2), 100), "A10G/0001", 50, Some(98)),
        held(starting(session(3)), "A10G/0002", 50, None), // as old, but open
    ];
    store.commit(rows.iter().map(put).collect()).await.unwrap();
    let forget = vec![Change::ForgetEndedBefore(Timestamp(100))];
    store.commit(forget).await.unwrap();

    assert_eq!(store.session(&ann(), session_id(1)).await.unwrap(), None);
    let kept = store.recent_sessions(&ann(), None, 9).await.unwrap();
    assert_eq!(sessions(kept), [rows[2].clone(), rows[1].clone()]);
    let free_since = store.load().await.unwrap().gpu_free_since;
    assert_eq!(free_since[&GpuId("A10G/0000".into())], Timestamp(99));
}

pub async fn any_number_of_sessions_is_forgotten<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    let many = (0..1_500).map(|n| put(&ended(session(n), n.into())));
    store.commit(many.collect()).await.unwrap();
    let forget = vec![Change::ForgetEndedBefore(Timestamp(1_499))];
    store.commit(forget).await.unwrap();
    // So many may take a while; and what comes meanwhile is not held up.
    store.commit(vec![put(&session(2_000))]).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left = store.recent_sessions(&ann(), None, 9_999).await.unwrap();
        if left.len() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{} sessions stay", left.len());
    }
    let last = store.session(&ann(), session_id(1_499)).await.unwrap();
    assert!(last.is_some());
}

pub async fn a_server_that_starts_gets_all_that_matters<H: Home>() {
    let home = H::fresh().await;
    let store = home.open().await;
    assert!(store.load().await.unwrap().sessions.is_empty());
    let in_org = Session {
        owner: Owner::Org(OrgId("lab".into())),
        ..session(1)
    };
    let open = [in_org, held(starting(session(2)), "A10G/0001", 5, None)];
    let over = [
        held(ended(session(3), 40), "A10G/0000", 10, Some(40)),
        held(ended(session(4), 30), "A10G/0000", 20, Some(30)),
        ended(session(5), 60),
    ];
    let machines = [
        machine(1),
        Machine {
            owner: user("bob"),
            ..machine(2)
        },
    ];
    let keys = [
        key(1),
        Key {
            revoked_at: Some(Timestamp(1)),
            ..key(2)
        },
    ];
    let changes = (open.iter().chain(&over).map(put))
        .chain(machines.iter().map(put_machine))
        .chain(keys.iter().cloned().map(Change::Key));
    store.commit(changes.collect()).await.unwrap();

    let mut snapshot = store.load().await.unwrap();
    snapshot.sessions.sort_by_key(|session| session.id);
    snapshot.machines.sort_by_key(|machine| machine.id);
    snapshot.keys.sort_by_key(|key| key.id);
    assert_eq!(snapshot.sessions, open);
    assert_eq!(snapshot.machines, machines);
    assert_eq!(snapshot.keys, keys);
    let free_since: Vec<_> = snapshot.gpu_free_since.into_iter().collect();
    assert_eq!(free_since, [(GpuId("A10G/0000".into()), Timestamp(40))]);
}

pub async fn the_server_secret_is_made_once<H: Home>() {
    let home = H::fresh().await;
    let secret = home.open().await.server_secret().await.unwrap();
    let again = home.open().await.server_secret().await.unwrap();
    assert_eq!(again, secret);
    let elsewhere = H::fresh().await;
    let other = elsewhere.open().await.server_secret().await.unwrap();
    assert_ne!(other, secret);
}

pub async fn any_history_reads_as_a_naive_store_would_tell_it<H: Home>() {
    for seed in 0..10 {
        let home = H::fresh().await;
        let mut store = home.open().await;
        let mut history = model::History::new(seed);
        for _ in 0..40 {
            history.step(&store).await;
        }
        drop(store);
        store = home.open().await;
        history.compare_everything(&store).await;
    }
}

fn sessions(records: Vec<SessionRecord>) -> Vec<Session> {
    records.into_iter().map(|record| record.session).collect()
}
