//! How many visitors' connections there may be at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections that a session's visitors may have at once. More wait in the kernel, so
/// that they cannot use up the files that the whole server may open.
const CONNECTIONS_MAX: usize = 1_024;
/// Those of one address, so that nobody alone keeps all others out. Who comes from this
/// host may be another proxy with everybody behind it.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;

/// The places of one session's visitors.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A visitor's place. It is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
    _free: OwnedSemaphorePermit,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            by_address: Mutex::default(),
        }
    }
}

impl Places {
    /// Wait for one. None once there are none any more.
    pub(super) async fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Give it to who comes from `address`. None if too many do already.
    pub(super) fn take(
        self: &Arc<Self>,
        free: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Option<Place> {
        let address = address.to_canonical();
        let mut by_address = self.lock();
        let taken = by_address.entry(address).or_default();
        if *taken >= CONNECTIONS_PER_ADDRESS_MAX && !address.is_loopback() {
            return None;
        }
        *taken += 1;
        drop(by_address);
        Some(Place {
            places: Arc::clone(self),
            address,
            _free: free,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.places.lock();
        if let Some(taken) = by_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken(places: &Arc<Places>, address: &str) -> Option<Place> {
        let free = places.free().await.unwrap();
        places.take(free, address.parse().unwrap())
    }

    #[tokio::test]
    async fn no_address_alone_keeps_all_others_out() {
        let places = Arc::new(Places::default());
        let mut theirs = Vec::new();
        for _ in 0..CONNECTIONS_PER_ADDRESS_MAX {
            theirs.push(taken(&places, "203.0.113.7").await.unwrap());
        }
        assert!(taken(&places, "203.0.113.7").await.is_none());
        // The same address, as a socket of both families tells it.
        assert!(taken(&places, "::ffff:203.0.113.7").await.is_none());
        assert!(taken(&places, "203.0.113.8").await.is_some());
        theirs.pop();
        assert!(taken(&places, "203.0.113.7").await.is_some());
        drop(theirs);
        assert!(places.lock().is_empty());
        assert_eq!(places.free.available_permits(), CONNECTIONS_MAX);
    }

    #[tokio::test]
    async fn another_proxy_on_this_host_may_have_all_places_and_no_more() {
        let places = Arc::new(Places::default());
        let mut theirs = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            theirs.push(taken(&places, "127.0.0.1").await.unwrap());
        }
        assert_eq!(places.free.available_permits(), 0);
        theirs.pop();
        assert!(taken(&places, "127.0.0.1").await.is_some());
    }
}
