//! `GET /platform/gpus`: what there is of each GPU type, where, and who waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use dwell_core::gpu::GpuType;
use dwell_core::job::{LauncherName, Offer};
use dwell_core::session::State as SessionState;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::{ApiError, Denied};
use super::extract::Caller;
use super::{Api, Shared};
use crate::launcher::cluster::Capacity;

/// How long an engine may take to say what it has.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What the launcher of this server's own host is called.
const HOST: &str = "local";

/// What there is of a GPU type.
#[derive(Serialize, ToSchema)]
#[schema(as = GpuStanding)]
pub(super) struct StandingResponse {
    /// The GPU type.
    #[schema(example = "A10G")]
    gpu: String,
    /// Sessions that wait in this server's own queue.
    queued: usize,
    /// Where sessions of this type are put, in the order of preference.
    launchers: Vec<PlaceResponse>,
}

/// What a launcher has of a GPU type. What it does not tell is null.
#[derive(Serialize, ToSchema)]
#[schema(as = GpuPlace)]
pub(super) struct PlaceResponse {
    /// The launcher, by its name in the server's configuration.
    #[schema(example = "slurm")]
    launcher: String,
    /// GPUs on hosts that are up.
    total: Option<u32>,
    /// Those that nobody uses.
    free: Option<u32>,
    /// Who waits for one in its engine's queue, anybody's.
    waiting: Option<u32>,
    /// Open sessions of this server that it has.
    sessions: usize,
    /// Why the engine says nothing.
    error: Option<String>,
}

/// GPUs
///
/// What there is of each type at each launcher, what is free, and who waits.
#[utoipa::path(
    get, path = "/platform/gpus", tag = "platform",
    responses(
        (status = 200, description = "By GPU type.", body = Vec<StandingResponse>),
        Denied,
    ),
)]
pub(super) async fn list_gpus(
    _: Caller,
    State(api): State<Shared>,
) -> Result<Json<Vec<StandingResponse>>, ApiError> {
    let engines = capacities(&api).await;
    let open = Open::count(&api);
    let standings = api.places.gpu_types().into_iter().map(|gpu_type| {
        let place = |offer| place(&api, offer, &gpu_type, &engines, &open);
        StandingResponse {
            queued: open.queued.get(&gpu_type).copied().unwrap_or(0),
            launchers: api.places.offers.iter().filter_map(place).collect(),
            gpu: gpu_type.0.clone(),
        }
    });
    Ok(Json(standings.collect()))
}

type Said = Result<BTreeMap<GpuType, Capacity>, String>;

/// What each engine says, all asked at once.
async fn capacities(api: &Api) -> BTreeMap<LauncherName, Said> {
    let ask = |launcher: std::sync::Arc<crate::launcher::cluster::ClusterLauncher>| async move {
        let said = timeout(ANSWER_WITHIN, launcher.capacity()).await;
        let late = || Err(format!("it did not answer within {ANSWER_WITHIN:?}"));
        (launcher.name().clone(), said.unwrap_or_else(|_| late()))
    };
    let asked = api.launchers.clusters().cloned().map(ask);
    futures_util::future::join_all(asked)
        .await
        .into_iter()
        .collect()
}

/// Open sessions, by what they have or wait for.
#[derive(Default)]
struct Open {
    queued: BTreeMap<GpuType, usize>,
    placed: BTreeMap<(Option<LauncherName>, GpuType), usize>,
}

impl Open {
    fn count(api: &Api) -> Self {
        let mut open = Self::default();
        for session in api.driver.open_sessions() {
            let gpu_type = session.gpu_type.clone();
            match (&session.state, session.placement()) {
                (SessionState::Queued { .. }, _) => {
                    *open.queued.entry(gpu_type).or_default() += 1;
                }
                (_, Some(placement)) => {
                    let launcher = placement.launcher().cloned();
                    *open.placed.entry((launcher, gpu_type)).or_default() += 1;
                }
                (_, None) => {}
            }
        }
        open
    }

    fn at(&self, launcher: Option<&LauncherName>, gpu_type: &GpuType) -> usize {
        let at = (launcher.cloned(), gpu_type.clone());
        self.placed.get(&at).copied().unwrap_or(0)
    }
}

/// What `offer` has of a type, if it has that at all.
fn place(
    api: &Api,
    offer: &Offer,
    gpu_type: &GpuType,
    engines: &BTreeMap<LauncherName, Said>,
    open: &Open,
) -> Option<PlaceResponse> {
    match offer {
        Offer::Host { .. } => {
            let gpus = api.places.inventory.iter();
            let total = gpus.filter(|gpu| gpu.gpu_type == *gpu_type).count();
            let sessions = open.at(None, gpu_type);
            let number = |count: usize| u32::try_from(count).ok();
            (total > 0).then(|| PlaceResponse {
                launcher: HOST.to_owned(),
                total: number(total),
                free: number(total.saturating_sub(sessions)),
                // They wait in our queue.
                waiting: None,
                sessions,
                error: None,
            })
        }
        Offer::Cluster(cluster) if cluster.gpu_types.contains(gpu_type) => {
            let said = engines.get(&cluster.name);
            let capacity = said.and_then(|said| said.as_ref().ok()?.get(gpu_type));
            let error = said.and_then(|said| said.as_ref().err());
            Some(PlaceResponse {
                launcher: cluster.name.0.clone(),
                total: capacity.and_then(|it| it.total),
                free: capacity.and_then(|it| it.free),
                waiting: capacity.and_then(|it| it.waiting),
                sessions: open.at(Some(&cluster.name), gpu_type),
                error: error.cloned(),
            })
        }
        Offer::Cluster(_) => None,
    }
}
