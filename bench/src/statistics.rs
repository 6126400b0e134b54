//! What many measurements come to.

use std::time::Duration;

/// Measurements of one thing.
#[derive(Default)]
pub struct Sample(Vec<Duration>);

impl Sample {
    /// Where `share` of them are at most: 0.5 is the median. Zero of none.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        quantile(&sorted, share)
    }

    /// `12.3 ms (11.9–13.0)`: the median, and between what half of them lie.
    pub fn summary(&self) -> String {
        format!(
            "{:.1} ms ({:.1}–{:.1})",
            millis(self.quantile(0.5)),
            millis(self.quantile(0.25)),
            millis(self.quantile(0.75))
        )
    }

    /// `1.2 ms, p99 3.4 ms, at most 5.6 ms`: the median, and how far from it the rest is.
    pub fn tail(&self) -> String {
        format!(
            "{:.1} ms, p99 {:.1} ms, at most {:.1} ms",
            millis(self.quantile(0.5)),
            millis(self.quantile(0.99)),
            millis(self.quantile(1.0))
        )
    }

    pub fn push(&mut self, measured: Duration) {
        self.0.push(measured);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Extend<Duration> for Sample {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, measured: I) {
        self.0.extend(measured);
    }
}

impl FromIterator<Duration> for Sample {
    fn from_iter<I: IntoIterator<Item = Duration>>(measured: I) -> Self {
        Self(measured.into_iter().collect())
    }
}

impl FromIterator<Sample> for Sample {
    fn from_iter<I: IntoIterator<Item = Sample>>(samples: I) -> Self {
        Self(samples.into_iter().flat_map(|sample| sample.0).collect())
    }
}

pub fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

/// The same of other things, which are in order.
pub fn quantile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a length"
    )]
    let at = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
