//! The loop's promises, with a store and a launcher that the tests hold in hand.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use dwell_core::control_plane::{Change, Launch, NewSession, Settings, Snapshot, Source};
use dwell_core::gpu::{GpuType, Inventory};
use dwell_core::id::{GpuEventId, MachineId, MachineVersionId};
use dwell_core::job::Offer;
use dwell_core::key::Key;
use dwell_core::limits::Limits;
use dwell_core::machine::{Access, AppCommand, Machine, MachineVersion, Recipe};
use dwell_core::owner::{Owner, Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use dwell_core::pricing::Prices;
use dwell_core::share::Share;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::*;
use crate::admission::Admission;
use crate::gateway::Gateway;
use crate::launcher::{Launcher, Launchers};
use crate::store::{EventQuery, SessionRecord, StoreError};
use crate::tunnel::Switchboard;

/// Commits when it is let, and remembers what. What is to be forgotten it forgets at once:
/// the loop says so when it likes.
struct HeldStore {
    forgot: Semaphore,
    entered: Semaphore,
    may_commit: Semaphore,
    refuses: AtomicBool,
    commits: Mutex<Vec<Vec<Change>>>,
}

impl HeldStore {
    fn new(may_commit: usize) -> Arc<Self> {
        Arc::new(Self {
            forgot: Semaphore::new(0),
            entered: Semaphore::new(0),
            may_commit: Semaphore::new(may_commit),
            refuses: AtomicBool::new(false),
            commits: Mutex::default(),
        })
    }

    /// How many sessions each commit carried.
    fn commits(&self) -> Vec<usize> {
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = |changes: &Vec<Change>| {
            changes
                .iter()
                .filter(|change| matches!(change, Change::Session(_)))
                .count()
        };
        commits
            .iter()
            .map(sessions)
            .filter(|count| *count > 0)
            .collect()
    }
}

#[async_trait]
impl Store for HeldStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        Ok(Snapshot::default())
    }
    async fn all_keys(&self) -> Result<Vec<Key>, StoreError> {
        Ok(Vec::new())
    }
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if let [Change::ForgetEndedBefore(_)] = changes.as_slice() {
            self.forgot.add_permits(1);
            return Ok(());
        }
        self.entered.add_permits(1);
        self.may_commit.acquire().await.unwrap().forget();
        if self.refuses.load(Ordering::SeqCst) {
            return Err(StoreError("The disk is full".to_owned()));
        }
        self.commits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(changes);
        Ok(())
    }
    async fn server_secret(&self) -> Result<[u8; 32], StoreError> {
        Ok([0; 32])
    }
    async fn session(&self, _: &Owner, _: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        Ok(None)
    }
    async fn open_sessions(
        &self,
        _: &Owner,
        _: Option<MachineId>,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        Ok(Vec::new())
    }
    async fn recent_sessions(
        &self,
        _: &Owner,
        _: Option<MachineId>,
        _: u32,
    ) -> Result<Vec<SessionRecord>, StoreError> {
        Ok(Vec::new())
    }
    async fn gpu_events(&self, _: &Owner, _: EventQuery) -> Result<Vec<Session>, StoreError> {
        Ok(Vec::new())
    }
    async fn machines(&self, _: &Owner) -> Result<Vec<Machine>, StoreError> {
        Ok(Vec::new())
    }
    async fn machine(&self, _: &Owner, _: MachineId) -> Result<Option<Machine>, StoreError> {
        Ok(None)
    }
    async fn machine_versions(
        &self,
        _: &Owner,
        _: MachineId,
    ) -> Result<Vec<MachineVersion>, StoreError> {
        Ok(Vec::new())
    }
    async fn machine_version(
        &self,
        _: &Owner,
        _: MachineId,
        _: MachineVersionId,
    ) -> Result<Option<MachineVersion>, StoreError> {
        Ok(None)
    }
    async fn keys(&self, _: &Owner) -> Result<Vec<Key>, StoreError> {
        Ok(Vec::new())
    }
    async fn shares(&self, _: &Owner, _: SessionId) -> Result<Vec<Share>, StoreError> {
        Ok(Vec::new())
    }
}

/// Says which sessions it was asked to launch.
struct Told(mpsc::UnboundedSender<SessionId>);

#[async_trait]
impl Launcher for Told {
    async fn launch(&self, launch: Launch) -> LaunchOutcome {
        let _ = self.0.send(launch.session);
        LaunchOutcome::Started
    }
}

fn plane() -> ControlPlane {
    let cpu = GpuType::cpu();
    let settings = Settings {
        limits: Limits::default(),
        prices: Prices::default(),
        places: Places {
            inventory: Inventory::declared([(&cpu, 100)]),
            offers: vec![Offer::Host { runs_images: false }],
        },
        // Port 0 is any free one, so that nothing here can be in the way.
        ports: PortPool::new(0..=0, 0),
    };
    ControlPlane::recover(settings, Snapshot::default(), clock::now())
}

fn effects() -> (Effects, mpsc::UnboundedReceiver<SessionId>) {
    let (told, launches) = mpsc::unbounded_channel();
    let (admission, _) = Admission::new([7; 32]).unwrap();
    let effects = Effects::new(
        Launchers::new(Arc::new(Told(told)), []),
        Gateway::new(IpAddr::V4(Ipv4Addr::LOCALHOST), admission.clone()),
        Switchboard::default(),
        admission,
        Access::Link,
    );
    (effects, launches)
}

fn start(store: &Arc<HeldStore>) -> (Driver, Running, mpsc::UnboundedReceiver<SessionId>) {
    let (effects, launches) = effects();
    let store: Arc<dyn Store> = store.clone();
    let (driver, running) = Driver::start(std::future::ready(Ok(plane())), store, effects);
    (driver, running, launches)
}

fn new_session() -> NewSession {
    NewSession {
        id: SessionId(Uuid::new_v4()),
        gpu_event_id: GpuEventId(Uuid::new_v4()),
        principal: Principal {
            user: UserId("ada".into()),
            org: None,
            admin: false,
        },
        source: Source::Recipe(Box::new(Recipe {
            command: AppCommand::Shell("true".into()),
            port: None,
            workdir: None,
            environment: std::collections::BTreeMap::new(),
            gpu: GpuType::cpu(),
            timeout_minutes: 1,
            ready_path: "/".into(),
            access: None,
            container: None,
        })),
        gpu: None,
        timeout_minutes: None,
    }
}

async fn create(driver: Driver) -> Result<SessionId, AskError> {
    let new = new_session();
    let id = new.id;
    driver
        .ask(move |plane, now| plane.create_session(new, now))
        .await
        .map(|()| id)
}

#[tokio::test]
async fn nothing_is_done_or_answered_before_it_is_on_record() {
    let store = HeldStore::new(0);
    let (driver, running, mut launches) = start(&store);
    let asked = tokio::spawn(create(driver.clone()));
    store.entered.acquire().await.unwrap().forget();
    assert!(launches.try_recv().is_err());
    assert!(!asked.is_finished());
    store.may_commit.add_permits(1);
    let id = asked.await.unwrap().unwrap();
    assert_eq!(launches.recv().await, Some(id));
    assert!(driver.watch(id).await.is_some());
    running.stop().await;
}

#[tokio::test]
async fn what_the_store_refuses_is_answered_so_and_leaves_no_trace() {
    let store = HeldStore::new(100);
    let (driver, running, mut launches) = start(&store);
    store.refuses.store(true, Ordering::SeqCst);
    let refused = create(driver.clone()).await.unwrap_err();
    assert_eq!(refused.to_string(), "The disk is full");
    let open = driver
        .ask(|plane, _| Ok(plane.open_sessions().count()))
        .await
        .unwrap();
    assert_eq!(open, 0);
    assert!(launches.try_recv().is_err());
    // And when it takes writes again, all is well.
    store.refuses.store(false, Ordering::SeqCst);
    let id = create(driver.clone()).await.unwrap();
    assert_eq!(launches.recv().await, Some(id));
    running.stop().await;
}

#[tokio::test]
async fn requests_that_wait_share_one_commit() {
    let store = HeldStore::new(0);
    let (driver, running, _launches) = start(&store);
    let asked: Vec<_> = (0..50)
        .map(|_| tokio::spawn(create(driver.clone())))
        .collect();
    // One commit is held up; all that came meanwhile wait for the next.
    store.entered.acquire().await.unwrap().forget();
    store.may_commit.add_permits(10);
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    let commits = store.commits();
    assert!(commits.len() <= 3, "50 sessions took {commits:?}");
    assert_eq!(commits.iter().sum::<usize>(), 50);
    running.stop().await;
}

#[tokio::test]
async fn a_driver_that_is_told_to_stop_answers_what_waits_first() {
    let store = HeldStore::new(0);
    let (driver, running, _launches) = start(&store);
    let asked = tokio::spawn(create(driver.clone()));
    store.entered.acquire().await.unwrap().forget();
    let stopping = tokio::spawn(running.stop());
    store.may_commit.add_permits(10);
    stopping.await.unwrap();
    asked.await.unwrap().unwrap();
    assert_eq!(store.commits(), [1]);
    let late = create(driver).await.unwrap_err();
    assert_eq!(late.to_string(), "The server is shutting down");
}

#[tokio::test]
async fn one_that_follows_is_loaded_when_it_shows_what_it_was_told() {
    let (effects, _launches) = effects();
    let (driver, helm, running) =
        Driver::under_helm(Role::Follows(None), HeldStore::new(0), effects);
    let (mut plane, new) = (plane(), new_session());
    let id = new.id;
    plane.create_session(new, clock::now()).unwrap();
    helm.show(plane.changes()).await;
    helm.follows().await;
    driver.loaded().await.unwrap();
    assert!(driver.live.watch(id).is_some());
    running.stop().await;
}

#[tokio::test]
async fn one_whose_tenure_is_over_decides_nothing_and_answers_no_question() {
    let (effects, mut launches) = effects();
    let store = HeldStore::new(100);
    let shared: Arc<dyn Store> = store.clone();
    let (driver, helm, running) = Driver::under_helm(Role::Leads, shared, effects);
    let tenure = Tenure::for_ever();
    helm.lead(plane(), tenure.clone()).await;
    let id = create(driver.clone()).await.unwrap();
    assert_eq!(launches.recv().await, Some(id));
    tenure.end();
    let refused = create(driver.clone()).await.unwrap_err();
    assert_eq!(refused.to_string(), DECIDES_NOT);
    // Another may have put more on record.
    let asked = driver.ask(|plane, _| Ok(plane.open_sessions().count()));
    assert_eq!(asked.await.unwrap_err().to_string(), DECIDES_NOT);
    assert_eq!(store.commits(), [1]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_to_lead_forgets_what_is_old_at_once() {
    let (effects, _launches) = effects();
    let store = HeldStore::new(0);
    let shared: Arc<dyn Store> = store.clone();
    let (_driver, helm, running) = Driver::under_helm(Role::Follows(None), shared, effects);
    helm.show(Vec::new()).await;
    let a_while = Duration::from_secs(60);
    assert!(timeout(a_while, store.forgot.acquire()).await.is_err());
    helm.lead(plane(), Tenure::for_ever()).await;
    assert!(timeout(a_while, store.forgot.acquire()).await.is_ok());
    running.stop().await;
}
