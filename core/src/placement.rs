//! Who waits for a GPU, and which are free.
//!
//! First come, first served for each GPU type. Nothing here is stored: it follows
//! from the sessions.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpu::{Gpu, GpuId, GpuType, Inventory};
use crate::id::SessionId;

/// The queues and the free GPUs.
#[derive(Clone, Debug, Default)]
pub struct Floor {
    queues: BTreeMap<GpuType, BTreeMap<u64, SessionId>>,
    busy: BTreeMap<GpuId, SessionId>,
    free: BTreeMap<GpuType, BTreeSet<GpuId>>,
}

impl Floor {
    /// An empty floor: all of `inventory` is free, nobody waits.
    #[must_use]
    pub fn new(inventory: &Inventory) -> Self {
        let mut floor = Self::default();
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

    /// The next session to be served and the GPU that it gets.
    #[must_use]
    pub fn next_match(&self) -> Option<(SessionId, GpuId)> {
        self.queues.iter().find_map(|(gpu_type, queue)| {
            let session = queue.values().next()?;
            let gpu = self.free.get(gpu_type)?.first()?;
            Some((*session, gpu.clone()))
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
