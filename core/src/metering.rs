//! GPU events: when a session held a GPU, by proof and not by hope.

use serde::{Deserialize, Serialize};

use crate::gpu::GpuId;
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
    /// The GPU, once one was held.
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

    /// At `now` an agent proves to have held `gpu` for `held`. The event never
    /// starts before `not_before`, when the GPU's last event ended.
    pub fn prove(&mut self, gpu: &GpuId, held: Millis, now: Timestamp, not_before: Timestamp) {
        // A message takes time to arrive, which makes the start look late: of
        // several estimates the earliest is the nearest.
        let estimate = now.minus(held).max(not_before);
        match self.span {
            Span::NotHeld => {
                self.gpu = Some(gpu.clone());
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
                event.prove(&GpuId("A".into()), Millis(held), Timestamp(seen), Timestamp(0));
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
        event.prove(&GpuId("A".into()), Millis(0), Timestamp(10_000), freed);
        event.prove(
            &GpuId("A".into()),
            Millis(1_000),
            Timestamp(11_000 - 86_400_000),
            freed,
        );
        event.prove(
            &GpuId("A".into()),
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
        closed.prove(&GpuId("A".into()), Millis(10), Timestamp(10), Timestamp(0));
        closed.close();
        closed.prove(&GpuId("A".into()), Millis(99), Timestamp(99), Timestamp(0));
        assert_eq!(closed.held(), Millis(10));
    }
}
