//! Who waits for a GPU, which are free, and where else a session can be put.
//!
//! First come, first served for each GPU type; of the places that there are for it the
//! first in the order of preference. Nothing here is stored: it follows from the sessions.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpu::{Gpu, GpuId, GpuType, Inventory};
use crate::id::SessionId;
use crate::job::{Cluster, LauncherName, Offer};
use crate::session::Place;

/// The queues, the free GPUs and the clusters.
#[derive(Clone, Debug, Default)]
pub struct Floor {
    offers: Vec<Offer>,
    jobs: BTreeMap<LauncherName, u32>,
    queues: BTreeMap<GpuType, BTreeMap<u64, SessionId>>,
    busy: BTreeMap<GpuId, SessionId>,
    free: BTreeMap<GpuType, BTreeSet<GpuId>>,
}

impl Floor {
    /// An empty floor: all of `inventory` is free, nobody waits. `offers` is the order of
    /// preference.
    #[must_use]
    pub fn new(inventory: &Inventory, offers: &[Offer]) -> Self {
        let mut floor = Self {
            offers: offers.to_vec(),
            ..Self::default()
        };
        for gpu in inventory.iter() {
            floor.release(gpu);
        }
        floor
    }

    /// `session` waits for a GPU of this type.
    pub fn join(&mut self, gpu_type: &GpuType, ticket: u64, session: SessionId) {
        self.queues
            .entry(gpu_type.clone())
            .or_default()
            .insert(ticket, session);
    }

    /// The holder of `ticket` waits no longer.
    pub fn leave(&mut self, gpu_type: &GpuType, ticket: u64) {
        if let Some(queue) = self.queues.get_mut(gpu_type) {
            queue.remove(&ticket);
        }
    }

    /// `session` has this GPU. A GPU is never had by two.
    pub fn occupy(&mut self, gpu: &GpuId, gpu_type: &GpuType, session: SessionId) {
        if let Some(free) = self.free.get_mut(gpu_type) {
            free.remove(gpu);
        }
        let before = self.busy.insert(gpu.clone(), session);
        debug_assert!(
            before.is_none_or(|other| other == session),
            "{gpu} given twice"
        );
    }

    /// The session that had a GPU is proven gone. One that left the inventory
    /// (`None`: the host was restarted with fewer) is not given out again.
    pub fn vacate(&mut self, id: &GpuId, gpu: Option<&Gpu>) {
        self.busy.remove(id);
        if let Some(gpu) = gpu {
            self.release(gpu);
        }
    }

    fn release(&mut self, gpu: &Gpu) {
        self.free
            .entry(gpu.gpu_type.clone())
            .or_default()
            .insert(gpu.id.clone());
    }

    /// A session is in a job of this launcher.
    pub fn occupy_job(&mut self, launcher: &LauncherName) {
        *self.jobs.entry(launcher.clone()).or_default() += 1;
    }

    /// A session is no longer in a job of this launcher.
    pub fn vacate_job(&mut self, launcher: &LauncherName) {
        if let Some(jobs) = self.jobs.get_mut(launcher) {
            *jobs = jobs.saturating_sub(1);
        }
    }

    /// The next session to be served and where it is put.
    #[must_use]
    pub fn next_match(&self, inventory: &Inventory) -> Option<(SessionId, Place)> {
        self.queues.iter().find_map(|(gpu_type, queue)| {
            let session = queue.values().next()?;
            let place = self.offers.iter().find_map(|offer| match offer {
                Offer::Host => self.free_gpu(gpu_type, inventory),
                Offer::Cluster(cluster) => self.job_at(cluster, gpu_type),
            })?;
            Some((*session, place))
        })
    }

    fn free_gpu(&self, gpu_type: &GpuType, inventory: &Inventory) -> Option<Place> {
        let gpu = inventory.get(self.free.get(gpu_type)?.first()?)?;
        Some(Place::Host {
            gpu: gpu.id.clone(),
            visible_device: gpu.visible_device.clone(),
        })
    }

    fn job_at(&self, cluster: &Cluster, gpu_type: &GpuType) -> Option<Place> {
        let jobs = self.jobs.get(&cluster.name).copied().unwrap_or(0);
        let has_room = cluster.jobs_max.is_none_or(|most| jobs < most);
        (has_room && cluster.gpu_types.contains(gpu_type)).then(|| Place::Job {
            launcher: cluster.name.clone(),
        })
    }

    /// How many of a type are free and how many sessions wait for it.
    #[must_use]
    pub fn free_and_waiting(&self, gpu_type: &GpuType) -> (usize, usize) {
        (
            self.free.get(gpu_type).map_or(0, BTreeSet::len),
            self.queues.get(gpu_type).map_or(0, BTreeMap::len),
        )
    }
}
