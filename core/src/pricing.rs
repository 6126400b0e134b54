//! Money: integer micro-dollars, rounded in one place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::GpuType;
use crate::time::Millis;

/// Millionths of a dollar.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MicroDollars(pub u64);

impl MicroDollars {
    /// The amount in dollars, for people and for the wire. Never computed with.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "exact below 9 billion dollars")]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl std::iter::Sum for MicroDollars {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

/// What an hour of a GPU costs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct HourlyRate(pub MicroDollars);

impl HourlyRate {
    /// The rate that a configuration writes as `dollars` an hour; `None` when it
    /// is negative, no number, or beyond any price.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within range"
    )]
    pub fn from_dollars(dollars: f64) -> Option<Self> {
        (0.0..=1e6)
            .contains(&dollars)
            .then(|| Self(MicroDollars((dollars * 1e6).round() as u64)))
    }

    /// The cost of having held a GPU for `held`: the one place where money is
    /// rounded, half up.
    #[must_use]
    pub fn cost_of(self, held: Millis) -> MicroDollars {
        const HOUR_MS: u128 = 3_600_000;
        let exact = u128::from(self.0.0) * u128::from(held.0);
        MicroDollars(u64::try_from((exact + HOUR_MS / 2) / HOUR_MS).unwrap_or(u64::MAX))
    }
}

/// Prices by GPU type; what has none is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices(pub BTreeMap<GpuType, HourlyRate>);

impl Prices {
    /// What an hour of `gpu_type` costs.
    #[must_use]
    pub fn rate(&self, gpu_type: &GpuType) -> HourlyRate {
        self.0.get(gpu_type).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_hour_costs_the_rate() {
        let rate = HourlyRate::from_dollars(1.10).unwrap();
        assert_eq!(
            rate.cost_of(Millis::from_minutes(60)),
            MicroDollars(1_100_000)
        );
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for dollars in [-1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert_eq!(HourlyRate::from_dollars(dollars), None);
        }
    }

    proptest! {
        #[test]
        fn rounding_is_within_half_a_micro_dollar(rate in 0_u64..100_000_000, held in 0_u64..10_000_000_000) {
            let cost = u128::from(HourlyRate(MicroDollars(rate)).cost_of(Millis(held)).0);
            let exact = u128::from(rate) * u128::from(held);
            prop_assert!((cost * 3_600_000).abs_diff(exact) <= 1_800_000);
        }

        #[test]
        fn longer_never_costs_less(rate in 0_u64..100_000_000, a in 0_u64..10_000_000_000, b in 0_u64..10_000_000_000) {
            let rate = HourlyRate(MicroDollars(rate));
            prop_assert!(rate.cost_of(Millis(a.min(b))) <= rate.cost_of(Millis(a.max(b))));
        }
    }
}
