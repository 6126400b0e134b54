//! The table: a row for each figure, a column for each peer.

use super::Reading;
use crate::Figure;
use crate::statistics::quantile;

pub struct Table {
    peers: Vec<&'static str>,
    /// Whose medians are divided by whose, in columns of their own.
    ratios: &'static [(&'static str, &'static str)],
    rows: Vec<Row>,
}

struct Row {
    figure: String,
    /// What each round came to, of each peer.
    values: Vec<Vec<f64>>,
}

impl Table {
    pub fn new(peers: Vec<&'static str>, ratios: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            peers,
            ratios,
            rows: Vec::new(),
        }
    }

    /// What one round came to, of each peer.
    pub fn add(&mut self, round: Vec<Vec<Reading>>) {
        for (peer, readings) in round.into_iter().enumerate() {
            for Reading { figure, value } in readings {
                let values = &mut self.row(figure).values;
                values[peer].extend(value);
            }
        }
    }

    fn row(&mut self, figure: String) -> &mut Row {
        let at = self.rows.iter().position(|row| row.figure == figure);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                figure,
                values: vec![Vec::new(); self.peers.len()],
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// In Markdown, the ratios last.
    pub fn figures(mut self) -> Vec<Figure> {
        let cells = |figure: &str, cells: Vec<String>| Figure {
            what: format!("| {figure}"),
            measured: format!("| {} |", cells.join(" | ")),
        };
        let mut head: Vec<_> = self.peers.iter().map(|peer| (*peer).to_owned()).collect();
        let ratios = self.ratios.iter();
        head.extend(ratios.map(|(one, other)| format!("{one} / {other}")));
        let line = head.iter().map(|_| "---".to_owned()).collect();
        let mut figures = vec![cells("figure", head), cells("---", line)];
        for row in &mut self.rows {
            row.values
                .iter_mut()
                .for_each(|values| values.sort_by(f64::total_cmp));
            let median = |name: &str| {
                let peer = self.peers.iter().position(|peer| *peer == name)?;
                let values = row.values.get(peer)?;
                (!values.is_empty()).then(|| quantile(values, 0.5))
            };
            let mut all: Vec<_> = row.values.iter().map(|values| cell(values)).collect();
            all.extend(self.ratios.iter().map(|(one, other)| {
                let ratio = median(one).zip(median(other));
                ratio.map_or_else(nothing, |(one, other)| format!("{:.2}", one / other))
            }));
            figures.push(cells(&row.figure, all));
        }
        figures
    }
}

fn nothing() -> String {
    "–".to_owned()
}

/// The median, and between what half of the rounds lie.
fn cell(sorted: &[f64]) -> String {
    match sorted {
        [] => nothing(),
        [only] => number(*only),
        sorted => {
            let [low, median, high] =
                [0.25, 0.5, 0.75].map(|share| number(quantile(sorted, share)));
            format!("{median} ({low}–{high})")
        }
    }
}

/// With three digits that count, or more.
fn number(value: f64) -> String {
    match value {
        100.0.. => in_thousands(&format!("{value:.0}")),
        10.0.. => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn in_thousands(digits: &str) -> String {
    match digits.split_at_checked(digits.len().saturating_sub(3)) {
        Some((more, three)) if !more.is_empty() => format!("{},{three}", in_thousands(more)),
        _ => digits.to_owned(),
    }
}
