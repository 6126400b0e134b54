//! How many visitors' connections there may be at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    /// In all. More wait in the kernel, so that they cannot use up the files that the
    /// whole server may open.
    all_max: usize,
    /// Of one address, so that nobody alone keeps all others out. Who comes from this
    /// host may be another proxy with everybody behind it.
    per_address_max: usize,
}

/// For the visitors of one session.
pub(super) const PER_SESSION: Count = Count {
    all_max: 1_024,
    per_address_max: 256,
};

/// For all who come to the server's own listener: every session's visitors, and agents
/// of whole clusters behind one address.
pub(super) const FOR_ALL: Count = Count {
    all_max: 65_536,
    per_address_max: 8_192,
};

/// The places of a listener's, or of one session's, visitors.
#[derive(Debug)]
pub(super) struct Places {
    count: Count,
    free: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A visitor's place. It is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
    _free: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(count: Count) -> Self {
        Self {
            count,
            free: Arc::new(Semaphore::new(count.all_max)),
            by_address: Mutex::default(),
        }
    }

    /// One for who comes from `address`. None if there is none, or too many come from
    /// there.
    pub(super) fn take_now(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let free = Arc::clone(&self.free).try_acquire_owned().ok()?;
        self.take(free, address)
    }

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
        if *taken >= self.count.per_address_max && !address.is_loopback() {
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
        let places = Arc::new(Places::new(PER_SESSION));
        let mut theirs = Vec::new();
        for _ in 0..PER_SESSION.per_address_max {
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
        assert_eq!(places.free.available_permits(), PER_SESSION.all_max);
    }

    #[tokio::test]
    async fn another_proxy_on_this_host_may_have_all_places_and_no_more() {
        let places = Arc::new(Places::new(PER_SESSION));
        let mut theirs = Vec::new();
        for _ in 0..PER_SESSION.all_max {
            theirs.push(taken(&places, "127.0.0.1").await.unwrap());
        }
        assert_eq!(places.free.available_permits(), 0);
        theirs.pop();
        assert!(taken(&places, "127.0.0.1").await.is_some());
    }
}
