//! Keys that are made at the machine itself: the first, and those made while no server runs.

use dwell_core::control_plane::{ControlPlane, Settings};
use dwell_core::id::KeyId;
use dwell_core::key::Key;
use dwell_core::owner::{Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use uuid::Uuid;

use super::StartError;
use crate::clock;
use crate::data_dir::DataDir;
use crate::driver::Driver;
use crate::failpoint::{self, Point};
use crate::keys;
use crate::store::StoreAt;

/// The key in `admin.key`, which is made if it is not there. Its file stands before
/// it is on record: after a crash in between, the next start finds and records it.
pub(super) fn first_key(data_dir: &DataDir) -> Result<String, StartError> {
    if let Some(secret) = data_dir.read_admin_key() {
        return Ok(secret);
    }
    let secret = new_secret()?;
    data_dir.write_admin_key(&secret)?;
    tracing::info!("the first key is in {}", data_dir.admin_key().display());
    failpoint::cross(Point::ServerAfterKeyFile);
    Ok(secret)
}

pub(super) async fn put_first_key_on_record(
    driver: &Driver,
    secret: &str,
) -> Result<(), StartError> {
    let principal = Principal {
        user: UserId("admin".to_owned()),
        org: None,
        admin: true,
    };
    let key = key_of(secret, principal, "admin.key");
    driver
        .ask(move |plane, _now| plane.create_key(key, None))
        .await
        .map_err(|error| StartError(error.to_string()))
}

/// A key made at the machine itself while no server runs. Returns its secret.
///
/// # Errors
/// When a server has the data directory, or it cannot be written.
pub async fn create_key_offline(
    data_dir: &DataDir,
    store: &StoreAt,
    principal: Principal,
    name: &str,
) -> Result<String, StartError> {
    data_dir.create()?;
    let _lock = data_dir.hold()?;
    let store = store.open(&data_dir.store()).await?;
    let snapshot = store.load().await?;
    let settings = Settings {
        limits: dwell_core::limits::Limits::default(),
        prices: dwell_core::pricing::Prices::default(),
        places: Places::default(),
        ports: PortPool::new(0..=0, 0),
    };
    let mut plane = ControlPlane::recover(settings, snapshot, clock::now());
    let secret = new_secret()?;
    let key = key_of(&secret, principal, name);
    plane
        .create_key(key, None)
        .map_err(|refusal| StartError(refusal.to_string()))?;
    store.commit(plane.changes()).await?;
    Ok(secret)
}

fn new_secret() -> Result<String, StartError> {
    keys::new_secret()
        .map_err(|error| StartError(format!("the system has no randomness to give: {error}")))
}

fn key_of(secret: &str, principal: Principal, name: &str) -> Key {
    Key {
        id: KeyId(Uuid::new_v4()),
        name: name.to_owned(),
        hash: keys::hash(secret),
        principal,
        created_at: clock::wall(),
        revoked_at: None,
    }
}
