//! Whether the engines of clusters answer, and have what the config says of them.

use std::collections::BTreeMap;
use std::time::Duration;

use dwell_core::gpu::GpuType;
use tokio::time::timeout;

use super::Finding;
use crate::config::{ClusterConfig, Config, PlaceConfig};
use crate::launcher::cluster::Capacity;

const CHECK: &str = "cluster";
/// How long one may take. Slurm's own commands wait for a controller about as long.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Something about each cluster that the config names.
pub async fn clusters(config: Option<&Config>) -> Vec<Finding> {
    let places = config.into_iter().flat_map(|config| &config.places);
    let looks = places.filter_map(|place| match place {
        PlaceConfig::Host => None,
        PlaceConfig::Cluster(cluster) => Some(look(cluster)),
    });
    futures_util::future::join_all(looks).await
}

async fn look(cluster: &ClusterConfig) -> Finding {
    let settings = &cluster.settings;
    let name = &settings.name;
    // No server is called so: none of its jobs are listed.
    let engine = cluster.engine.connect(settings, "doctor");
    let asked = async {
        engine.jobs().await?;
        // That an engine does not tell is no fault of it.
        Ok::<_, String>(engine.capacity().await.unwrap_or_default())
    };
    let late = || Err(format!("no answer within {ANSWER_WITHIN:?}"));
    match timeout(ANSWER_WITHIN, asked)
        .await
        .unwrap_or_else(|_| late())
    {
        Ok(capacities) => standing(&name.0, &capacities, &settings.gpus),
        Err(why) => Finding::fail(
            CHECK,
            format!("{name} cannot be asked ({why})"),
            "sessions wait until it can. Look at its [[launcher]], and run this as the server's \
             user: its environment and files are what counts",
        ),
    }
}

/// What an engine has of what the config says of it.
fn standing(
    name: &str,
    capacities: &BTreeMap<GpuType, Capacity>,
    words: &BTreeMap<GpuType, String>,
) -> Finding {
    let none = capacities.iter().find_map(|(gpu_type, capacity)| {
        let word = words.get(gpu_type)?;
        (capacity.total == Some(0)).then_some((gpu_type, word))
    });
    if let Some((gpu_type, word)) = none {
        return Finding::warn(
            CHECK,
            format!("{name} has no {word} on any node that is up, which is {gpu_type} here"),
            "sessions of that type may wait for ever. Look at gpus and partition of its \
             [[launcher]], and at its nodes",
        );
    }
    let told = capacities.iter().filter_map(|(gpu_type, it)| {
        let (free, total) = it.free.zip(it.total)?;
        Some(format!("{free} of {total} {gpu_type} free"))
    });
    let told: Vec<_> = std::iter::once(format!("{name} answers"))
        .chain(told)
        .collect();
    Finding::ok(CHECK, told.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_type_that_no_node_has_is_named_by_both_its_names() {
        let (a10g, cpu) = (GpuType("A10G".to_owned()), GpuType::cpu());
        let words = [(a10g.clone(), "gpu:a10q"), (cpu.clone(), "none")];
        let words = words
            .map(|(gpu_type, word)| (gpu_type, word.to_owned()))
            .into();
        let of = |total, free| {
            let capacity = Capacity {
                total: Some(total),
                free: Some(free),
                waiting: Some(0),
            };
            let all = [(a10g.clone(), capacity), (cpu.clone(), Capacity::default())];
            standing("slurm", &all.into(), &words)
        };
        let none = of(0, 0);
        assert_eq!(none.verdict, Verdict::Warn);
        let found = "slurm has no gpu:a10q on any node that is up, which is A10G here";
        assert_eq!(none.found, found);
        let some = of(8, 7);
        assert_eq!(some.verdict, Verdict::Ok);
        assert_eq!(some.found, "slurm answers, 7 of 8 A10G free");
        let untold = standing("kubernetes", &BTreeMap::new(), &words);
        assert_eq!(untold.found, "kubernetes answers");
    }
}
