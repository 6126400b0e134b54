//! Who waits for a GPU, which are free, and where else a session can be put.
//!
//! First come, first served for each GPU type; of the places that there are for it the
//! first in the order of preference. Nothing here is stored: it follows from the sessions.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpu::{Gpu, GpuId, GpuType, Inventory};
use crate::id::SessionId;
use crate::job::{Cluster, LauncherName, Offer};
use crate::session::Place;

/// Where sessions can be put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// What this host has.
    pub inventory: Inventory,
    /// In the order of preference.
    pub offers: Vec<Offer>,
}

impl Places {
    /// The GPU types that could ever be had.
    #[must_use]
    pub fn gpu_types(&self) -> BTreeSet<GpuType> {
        self.offers
            .iter()
            .flat_map(|it| self.types_of(it))
            .collect()
    }

    /// The GPU types that could ever be had by sessions that run in images.
    #[must_use]
    pub fn types_with_images(&self) -> BTreeSet<GpuType> {
        let offers = self.offers.iter().filter(|offer| offer.runs_images());
        offers.flat_map(|it| self.types_of(it)).collect()
    }

    /// The type of a request that names none: the first real GPU's, else `CPU`.
    #[must_use]
    pub fn default_gpu_type(&self) -> GpuType {
        self.gpu_types()
            .into_iter()
            .find(|gpu_type| *gpu_type != GpuType::cpu())
            .unwrap_or_else(GpuType::cpu)
    }

    /// The cluster with this launcher.
    #[must_use]
    pub fn cluster(&self, name: &LauncherName) -> Option<&Cluster> {
        self.offers.iter().find_map(|offer| match offer {
            Offer::Cluster(cluster) if cluster.name == *name => Some(cluster),
            Offer::Cluster(_) | Offer::Host { .. } => None,
        })
    }

    fn types_of(&self, offer: &Offer) -> BTreeSet<GpuType> {
        match offer {
            Offer::Host { .. } => self.inventory.types(),
            Offer::Cluster(cluster) => cluster.gpu_types.clone(),
        }
    }
}

/// What a session must have of its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// A GPU of this type.
    pub gpu_type: GpuType,
    /// Something that runs images.
    pub runs_images: bool,
}

/// The queues, the free GPUs and the jobs.
#[derive(Clone, Debug, Default)]
pub struct Floor {
    jobs: BTreeMap<LauncherName, u32>,
    queues: BTreeMap<Wanted, BTreeMap<u64, SessionId>>,
    busy: BTreeMap<GpuId, SessionId>,
    free: BTreeMap<GpuType, BTreeSet<GpuId>>,
}

impl Floor {
    /// An empty floor: all GPUs of this host are free, nobody waits.
    #[must_use]
    pub fn new(places: &Places) -> Self {
        let mut floor = Self::default();
        for gpu in places.inventory.iter() {
            floor.release(gpu);
        }
        floor
    }

    /// `session` waits for such a place.
    pub fn join(&mut self, wanted: &Wanted, ticket: u64, session: SessionId) {
        self.queues
            .entry(wanted.clone())
            .or_default()
            .insert(ticket, session);
    }

    /// The holder of `ticket` waits no longer.
    pub fn leave(&mut self, wanted: &Wanted, ticket: u64) {
        if let Some(queue) = self.queues.get_mut(wanted) {
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

    /// The next session to be served and where it is put: of those for whom there is a
    /// place the one that came first.
    #[must_use]
    pub fn next_match(&self, places: &Places) -> Option<(SessionId, Place)> {
        let first = |(wanted, queue): (&Wanted, &BTreeMap<u64, SessionId>)| {
            let (ticket, session) = queue.first_key_value()?;
            let place = self.place_for(wanted, places)?;
            Some((*ticket, *session, place))
        };
        let firsts = self.queues.iter().filter_map(first);
        let (_, session, place) = firsts.min_by_key(|(ticket, ..)| *ticket)?;
        Some((session, place))
    }

    fn place_for(&self, wanted: &Wanted, places: &Places) -> Option<Place> {
        let fit = |offer: &&Offer| offer.runs_images() || !wanted.runs_images;
        places
            .offers
            .iter()
            .filter(fit)
            .find_map(|offer| match offer {
                Offer::Host { .. } => self.free_gpu(&wanted.gpu_type, &places.inventory),
                Offer::Cluster(cluster) => self.job_at(cluster, &wanted.gpu_type),
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
}
