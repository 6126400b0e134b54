//! A store copied into another loses nothing on the way.

use std::path::Path;

use dwell::data_dir::DataDir;
use dwell::store::copy::{Place, copy};
use dwell::store::postgres::Postgres;
use dwell::store::sqlite::Sqlite;
use dwell::store::{EventQuery, Store};
use dwell_core::control_plane::Change;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::key::Key;
use dwell_core::machine::{AppCommand, Machine};
use dwell_core::owner::{Owner, Principal, UserId};
use dwell_core::session::Session;
use proptest::prelude::*;

use crate::cluster::Cluster;
use crate::model::History;
use crate::rows::*;

/// Both ways: what is in the file in the end, and its secret.
async fn there_and_back(dir: &Path, database: &str) -> Sqlite {
    let file = Place::File(dir.join("store.db"));
    let postgres = Place::Postgres(Cluster::shared().url(database).parse().unwrap());
    let back = dir.join("back.db");
    copy(&file, &postgres, &mut |_, _| {}).await.unwrap();
    copy(&postgres, &Place::File(back.clone()), &mut |_, _| {})
        .await
        .unwrap();
    Sqlite::open(&back).unwrap()
}

#[tokio::test]
async fn any_history_is_the_same_in_postgres_and_back() {
    for seed in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let database = Cluster::shared().database();
        let mut history = History::new(seed);
        let store = Sqlite::open(&dir.path().join("store.db")).unwrap();
        for _ in 0..40 {
            history.step(&store).await;
        }
        let secret = store.server_secret().await.unwrap();
        drop(store);
        let back = there_and_back(dir.path(), &database).await;
        history.compare_everything(&back).await;
        assert_eq!(back.server_secret().await.unwrap(), secret);
        let address = Cluster::shared().url(&database).parse().unwrap();
        let postgres = Postgres::open(&address).await.unwrap();
        history.compare_everything(&postgres).await;
        assert_eq!(postgres.server_secret().await.unwrap(), secret);
        // And it goes on there.
        for _ in 0..10 {
            history.step(&postgres).await;
        }
    }
}

fn any_text() -> impl Strategy<Value = String> {
    // Zero characters and backslashes are what one of the stores might not like.
    prop_oneof!["\\PC{0,20}", "[a\\\\0\0'\"\u{1F600}\n]{0,20}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_records_are_the_same_in_postgres_and_back(
        texts in prop::array::uniform5(any_text()),
        ids in prop::array::uniform4(any::<u32>()),
        number in any::<i64>(),
        micros in 0..i64::MAX as u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let [user, name, gpu_type, gpu, argument] = texts;
            let owner = Owner::User(UserId(user.clone()));
            let machine = Machine { owner: owner.clone(), name, ..machine(ids[1]) };
            let principal = Principal { user: UserId(user), org: None, admin: true };
            let at = number / 4;
            let mut session = held(ended(session(ids[0]), at), &gpu, at, Some(at + 5));
            session.owner = owner.clone();
            session.gpu_type = GpuType(gpu_type);
            session.recipe.command = AppCommand::Argv(vec![argument]);
            session.gpu_event.rate = dwell_core::pricing::HourlyRate(
                dwell_core::pricing::MicroDollars(micros));
            let waiting = Session {
                state: dwell_core::session::State::Queued { ticket: micros },
                id: session_id(ids[0].wrapping_add(1)),
                ..session.clone()
            };
            let key = Key { principal, ..key(ids[2]) };
            let mut share = share(ids[3], session.id);
            share.owner = owner.clone();

            let dir = tempfile::tempdir().unwrap();
            let store = Sqlite::open(&dir.path().join("store.db")).unwrap();
            store.commit(vec![
                put(&session), put(&waiting), put_machine(&machine),
                put_version(machine.id, &machine.current),
                Change::Key(key.clone()), put_share(&share),
            ]).await.unwrap();
            let all = async |store: &dyn Store| (
                store.recent_sessions(&owner, None, 9).await.unwrap(),
                store.gpu_events(&owner, EventQuery::default()).await.unwrap(),
                store.machines(&owner).await.unwrap(),
                store.machine_versions(&owner, machine.id).await.unwrap(),
                store.keys(&owner).await.unwrap(),
                store.shares(&owner, session.id).await.unwrap(),
                store.load().await.unwrap().gpu_free_since,
            );
            let before = all(&store).await;
            assert_eq!(before.0.len(), 2);
            assert!(before.6.contains_key(&GpuId(gpu)));
            drop(store);
            let database = Cluster::shared().database();
            let back = there_and_back(dir.path(), &database).await;
            assert_eq!(all(&back).await, before);
            let address = Cluster::shared().url(&database).parse().unwrap();
            assert_eq!(all(&Postgres::open(&address).await.unwrap()).await, before);
        });
    }
}

#[tokio::test]
async fn a_store_that_a_server_uses_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = DataDir(dir.path().join("data"));
    data_dir.create().unwrap();
    drop(Sqlite::open(&data_dir.store()).unwrap());
    let ours = Place::File(data_dir.store());
    let database = Cluster::shared().database();
    let address = Cluster::shared().url(&database).parse().unwrap();
    let postgres = Place::Postgres(Cluster::shared().url(&database).parse().unwrap());

    let held = data_dir.hold().unwrap();
    let refused = copy(&ours, &postgres, &mut |_, _| {}).await.unwrap_err();
    assert!(
        refused.0.contains("is in use by another server"),
        "{refused}"
    );
    drop(held);

    let server = Postgres::open(&address).await.unwrap();
    let refused = copy(&postgres, &ours, &mut |_, _| {}).await.unwrap_err();
    let expected = format!("{address} is in use by a server; stop that first");
    assert_eq!(refused.0, expected);
    server.commit(vec![put(&session(1))]).await.unwrap();
    drop(server);

    let fresh = Place::File(dir.path().join("fresh.db"));
    let copied = copy(&postgres, &fresh, &mut |_, _| {}).await;
    assert_eq!(copied.unwrap(), 2, "a session and the secret");
}

#[tokio::test]
async fn nothing_is_copied_over_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["from.db", "to.db"].map(|name| dir.path().join(name));
    for (n, file) in (1..).zip(&places) {
        let store = Sqlite::open(file).unwrap();
        store.commit(vec![put(&session(n))]).await.unwrap();
    }
    let [from, to] = places.map(Place::File);
    let refused = copy(&from, &to, &mut |_, _| {}).await.unwrap_err();
    let expected = format!("{to} has something on record (meta); name an empty store");
    assert_eq!(refused.0, expected);
    let nowhere = Place::File(dir.path().join("nowhere.db"));
    let refused = copy(&nowhere, &to, &mut |_, _| {}).await.unwrap_err();
    assert!(
        refused.0.ends_with("is not there; name a store"),
        "{refused}"
    );
}
