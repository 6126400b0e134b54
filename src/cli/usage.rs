//! `dwell usage`.

use clap::Args;
use dwell_core::time::Millis;

use super::args::{JsonArg, ServerArgs};
use super::output::{Failure, dollars, note, print, table};
use crate::client::wire::Usage;

/// GPU time and what it cost, by GPU type
#[derive(Args)]
#[command(after_help = "Examples:
  dwell usage
  dwell usage --since 2026-11-01 --until 2026-12-01
  dwell usage --json")]
pub struct UsageArgs {
    /// From this day (in UTC) or moment on
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<String>,
    /// Until this day or moment, itself not included
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    server: ServerArgs,
}

/// A day or a moment, as the API takes it.
fn moment(text: &str) -> Result<String, String> {
    let moment = match text.parse::<jiff::civil::Date>() {
        // A day is its first moment; but of a moment, a day is only a part.
        Ok(_) if !text.contains(['T', 't', ' ']) => format!("{text}T00:00:00Z"),
        Ok(_) | Err(_) => text.to_owned(),
    };
    match moment.parse::<jiff::Timestamp>() {
        Ok(moment) => Ok(format!("{moment:.3}")),
        Err(_) => Err("write it like 2026-11-23 or 2026-11-23T12:00:00Z".to_owned()),
    }
}

/// Print what was used.
pub async fn usage(args: UsageArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let answer = client
        .usage(args.since.as_deref(), args.until.as_deref())
        .await?;
    if args.json.json {
        return print(&answer.json);
    }
    if answer.value.usage.is_empty() {
        note("no GPU was used");
        return Ok(());
    }
    print(&totals(&answer.value))
}

fn totals(usage: &Usage) -> String {
    let held: f64 = usage.usage.iter().map(|row| row.usage_in_sec).sum();
    let rows = usage
        .usage
        .iter()
        .map(|row| [row.gpu.clone(), time(row.usage_in_sec), dollars(row.cost)]);
    let total = ["all".to_owned(), time(held), dollars(usage.total_cost)];
    table(["GPU", "TIME", "COST"], rows.chain([total]))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast stops at the ends of the range"
)]
fn time(seconds: f64) -> String {
    Millis((seconds * 1_000.0) as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wire::UsageRow;

    #[test]
    fn a_day_is_its_first_moment() {
        assert_eq!(
            moment("2026-11-23").as_deref(),
            Ok("2026-11-23T00:00:00.000Z")
        );
        assert_eq!(
            moment("2026-11-23T13:00:00+01:00").as_deref(),
            Ok("2026-11-23T12:00:00.000Z")
        );
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn the_sum_is_below() {
        let row = |gpu: &str, usage_in_sec, cost| UsageRow {
            gpu: gpu.into(),
            usage_in_sec,
            cost,
        };
        let usage = Usage {
            usage: vec![row("A10G", 3_600.0, 1.1), row("CPU", 60.0, 0.0)],
            total_cost: 1.1,
        };
        let expected = "\
GPU   TIME       COST
A10G  1 h        $1.10
CPU   1 min      $0.00
all   1 h 1 min  $1.10";
        assert_eq!(totals(&usage), expected);
    }
}
