//! `dwell gpus`.

use clap::Args;

use super::args::{JsonArg, ServerArgs};
use super::output::{Failure, note, print, table};
use crate::client::wire::GpuStanding;

/// GPUs by type and place: what there is, what is free, who waits
#[derive(Args)]
#[command(after_help = "Examples:
  dwell gpus
  dwell gpus --json")]
pub struct GpusArgs {
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// Print what there is.
pub async fn gpus(args: GpusArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let answer = client.gpus().await?;
    if args.json.json {
        return print(&answer.json);
    }
    print(&standings(&answer.value))?;
    for standing in &answer.value {
        for place in &standing.launchers {
            if let Some(why) = &place.error {
                note(&format!(
                    "{} says nothing of its {}: {why}",
                    place.launcher, standing.gpu
                ));
            }
        }
    }
    Ok(())
}

fn standings(standings: &[GpuStanding]) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |it| it.to_string());
    let rows = standings.iter().flat_map(|standing| {
        standing
            .launchers
            .iter()
            .enumerate()
            .map(move |(at, place)| {
                // A type and its queue are named once.
                let (gpu, queued) = if at == 0 {
                    (standing.gpu.clone(), standing.queued.to_string())
                } else {
                    (String::new(), String::new())
                };
                [
                    gpu,
                    queued,
                    place.launcher.clone(),
                    number(place.total),
                    number(place.free),
                    number(place.waiting),
                    place.sessions.to_string(),
                ]
            })
    });
    table(
        [
            "GPU", "QUEUED", "WHERE", "TOTAL", "FREE", "WAITING", "SESSIONS",
        ],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wire::GpuPlace;

    #[test]
    fn each_place_has_a_line_and_what_it_does_not_tell_is_not_made_up() {
        let place = |launcher: &str, total| GpuPlace {
            launcher: launcher.into(),
            total,
            free: total,
            sessions: 1,
            ..GpuPlace::default()
        };
        let shown = standings(&[GpuStanding {
            gpu: "A10G".into(),
            queued: 2,
            launchers: vec![place("local", Some(4)), place("slurm", None)],
        }]);
        let expected = "\
GPU   QUEUED  WHERE  TOTAL  FREE  WAITING  SESSIONS
A10G  2       local  4      4     -        1
              slurm  -      -     -        1";
        assert_eq!(shown, expected);
    }
}
