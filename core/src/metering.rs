//! GPU events: when a session held a GPU, by proof and not by hope.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuId, GpuType};
use crate::id::GpuEventId;
use crate::pricing::{HourlyRate, MicroDollars};
use crate::time::{Millis, Timestamp};

/// The interval of a GPU event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "span")]
pub enum Span {
    /// No GPU has been held yet, or none ever was.
    NotHeld,
    /// A GPU is held; `held` is how long it is proven to have been.
    Open {
        /// When it began to be held.
        start: Timestamp,
        /// For how long it has been, at the last proof of life.
        held: Millis,
    },
    /// The GPU is free again.
    Closed {
        /// When it began to be held.
        start: Timestamp,
        /// For how long it was.
        held: Millis,
    },
}

/// The accounting interval of one session on one GPU.
///
/// Durations are the agent's, by its monotonic clock, so that no step of a wall
/// clock makes a session cheaper or dearer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuEvent {
    /// Its own id, known from the session's creation on.
    pub id: GpuEventId,
    /// The GPU, once one was held, if it is one of this host's.
    pub gpu: Option<GpuId>,
    /// What an hour of it costs this session; a later change of prices does not.
    pub rate: HourlyRate,
    /// When.
    #[serde(flatten)]
    pub span: Span,
}

impl GpuEvent {
    /// An event that has not begun.
    #[must_use]
    pub fn new(id: GpuEventId, rate: HourlyRate) -> Self {
        Self {
            id,
            gpu: None,
            rate,
            span: Span::NotHeld,
        }
    }

    /// At `now` an agent proves to have held `gpu` (of this host, if any) for `held`. The event never
    /// starts before `not_before`, when the GPU's last event ended.
    pub fn prove(
        &mut self,
        gpu: Option<&GpuId>,
        held: Millis,
        now: Timestamp,
        not_before: Timestamp,
    ) {
        // A message takes time to arrive, which makes the start look late: of
        // several estimates the earliest is the nearest.
        let estimate = now.minus(held).max(not_before);
        match self.span {
            Span::NotHeld => {
                self.gpu = gpu.cloned();
                self.span = Span::Open {
                    start: estimate,
                    held,
                };
            }
            Span::Open {
                start,
                held: before,
            } => {
                self.span = Span::Open {
                    start: start.min(estimate),
                    held: before.max(held),
                };
            }
            Span::Closed { .. } => {}
        }
    }

    /// The GPU is free, or its host is gone: the event ends at its last proof.
    pub fn close(&mut self) {
        if let Span::Open { start, held } = self.span {
            self.span = Span::Closed { start, held };
        }
    }

    /// For how long a GPU is proven to have been held.
    #[must_use]
    pub const fn held(&self) -> Millis {
        match self.span {
            Span::NotHeld => Millis::ZERO,
            Span::Open { held, .. } | Span::Closed { held, .. } => held,
        }
    }

    /// When the GPU began to be held.
    #[must_use]
    pub const fn start(&self) -> Option<Timestamp> {
        match self.span {
            Span::NotHeld => None,
            Span::Open { start, .. } | Span::Closed { start, .. } => Some(start),
        }
    }

    /// When the GPU was free again.
    #[must_use]
    pub fn end(&self) -> Option<Timestamp> {
        match self.span {
            Span::NotHeld | Span::Open { .. } => None,
            Span::Closed { start, held } => Some(start.plus(held)),
        }
    }

    /// What it costs so far.
    #[must_use]
    pub fn cost(&self) -> MicroDollars {
        self.rate.cost_of(self.held())
    }

    /// For how much of `period` a GPU is proven to have been held.
    #[must_use]
    pub fn held_within(&self, period: Period) -> Millis {
        let Some(start) = self.start() else {
            return Millis::ZERO;
        };
        let end = start.plus(self.held());
        let first = period.from.map_or(start, |from| from.max(start));
        let last = period.until.map_or(end, |until| until.min(end));
        last.since(first)
    }
}

/// A stretch of time; without a bound it is open on that side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    /// Its first moment.
    pub from: Option<Timestamp>,
    /// The first moment after it.
    pub until: Option<Timestamp>,
}

/// What was used of one GPU type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// For how long GPUs were held, all together.
    pub held: Millis,
    /// What that cost.
    pub cost: MicroDollars,
}

/// What these events used within `period`, by GPU type. An event that reaches
/// beyond the period counts with the part that lies within, so that no time is
/// counted in two months.
#[must_use]
pub fn usage_by_type<'a>(
    events: impl IntoIterator<Item = (&'a GpuType, &'a GpuEvent)>,
    period: Period,
) -> BTreeMap<GpuType, Usage> {
    let mut totals = BTreeMap::<GpuType, Usage>::new();
    for (gpu_type, event) in events {
        let held = event.held_within(period);
        if held > Millis::ZERO {
            let total = totals.entry(gpu_type.clone()).or_default();
            total.held = total.held.plus(held);
            total.cost = [total.cost, event.rate.cost_of(held)].into_iter().sum();
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn event() -> GpuEvent {
        GpuEvent::new(GpuEventId(Uuid::nil()), HourlyRate(MicroDollars(3_600_000)))
    }

    proptest! {
        /// Whatever delays the messages had, the event ends no later than the
        /// server knew the GPU to be free, and is as long as the agent says.
        #[test]
        fn an_event_lies_within_what_was_proven(
            acquired in 0_i64..1_000_000,
            proofs in proptest::collection::vec((0_u64..10_000, 0_u64..500), 1..20),
        ) {
            let mut event = event();
            let mut held = 0;
            let mut last_seen = i64::MIN;
            for (step, delay) in proofs {
                held += step;
                let seen = (acquired + i64::try_from(held + delay).unwrap()).max(last_seen);
                last_seen = seen;
                event.prove(Some(&GpuId("A".into())), Millis(held), Timestamp(seen), Timestamp(0));
            }
            event.close();
            prop_assert_eq!(event.held(), Millis(held));
            prop_assert!(event.start().unwrap() >= Timestamp(acquired));
            prop_assert!(event.end().unwrap() <= Timestamp(last_seen));
        }
    }

    #[test]
    fn a_stepped_clock_changes_no_duration_and_makes_no_overlap() {
        let mut event = event();
        let freed = Timestamp(5_000);
        event.prove(
            Some(&GpuId("A".into())),
            Millis(0),
            Timestamp(10_000),
            freed,
        );
        event.prove(
            Some(&GpuId("A".into())),
            Millis(1_000),
            Timestamp(11_000 - 86_400_000),
            freed,
        );
        event.prove(
            Some(&GpuId("A".into())),
            Millis(2_000),
            Timestamp(12_000 + 86_400_000),
            freed,
        );
        event.close();
        assert_eq!(event.start(), Some(freed));
        assert_eq!(event.held(), Millis(2_000));
        assert_eq!(event.cost(), MicroDollars(2_000));
    }

    #[test]
    fn what_was_never_held_costs_nothing_and_what_is_closed_stays_closed() {
        let mut never = event();
        never.close();
        assert_eq!(
            (never.start(), never.end(), never.cost()),
            (None, None, MicroDollars(0))
        );

        let mut closed = event();
        closed.prove(
            Some(&GpuId("A".into())),
            Millis(10),
            Timestamp(10),
            Timestamp(0),
        );
        closed.close();
        closed.prove(
            Some(&GpuId("A".into())),
            Millis(99),
            Timestamp(99),
            Timestamp(0),
        );
        assert_eq!(closed.held(), Millis(10));
    }

    #[test]
    fn an_event_across_midnight_is_counted_once_over_both_days() {
        let mut held = event();
        let gpu = GpuId("A".into());
        held.prove(Some(&gpu), Millis(0), Timestamp(1_000), Timestamp(0));
        held.prove(Some(&gpu), Millis(3_000), Timestamp(4_000), Timestamp(0));
        let midnight = Some(Timestamp(2_500));
        let totals = |period| usage_by_type([(&GpuType::cpu(), &held)], period);
        let before = totals(Period {
            from: None,
            until: midnight,
        });
        let after = totals(Period {
            from: midnight,
            until: None,
        });
        assert_eq!(before[&GpuType::cpu()].held, Millis(1_500));
        assert_eq!(after[&GpuType::cpu()].held, Millis(1_500));
        assert_eq!(
            totals(Period::default())[&GpuType::cpu()],
            Usage {
                held: Millis(3_000),
                cost: MicroDollars(3_000)
            }
        );
    }

    #[test]
    fn what_lies_outside_the_period_is_not_counted() {
        let mut held = event();
        held.prove(
            Some(&GpuId("A".into())),
            Millis(1_000),
            Timestamp(2_000),
            Timestamp(0),
        );
        let later = Period {
            from: Some(Timestamp(9_000)),
            until: None,
        };
        assert!(usage_by_type([(&GpuType::cpu(), &held)], later).is_empty());
        assert!(usage_by_type([(&GpuType::cpu(), &event())], Period::default()).is_empty());
    }
}
