//! The one place where clocks are read.

use dwell_core::time::{Moment, Monotonic, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Both clocks, now.
#[must_use]
pub fn now() -> Moment {
    Moment {
        wall: wall(),
        monotonic: monotonic(),
    }
}

/// The wall clock.
#[must_use]
pub fn wall() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

/// Milliseconds since the host booted, time asleep included: a lease runs on while
/// a laptop is shut. The same for every process of one boot.
#[must_use]
pub fn monotonic() -> Monotonic {
    #[expect(
        clippy::expect_used,
        reason = "every Linux that can run this has the clock"
    )]
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME can be read");
    let millis = now.tv_sec() * 1_000 + now.tv_nsec() / 1_000_000;
    Monotonic(u64::try_from(millis).unwrap_or(0))
}

/// A wall-clock moment as the wire has it: RFC 3339, UTC, milliseconds, `Z`.
#[must_use]
pub fn rfc3339(moment: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(moment.0)
        .map_or_else(|_| String::new(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_milliseconds_and_a_z() {
        assert_eq!(
            rfc3339(Timestamp(1_795_435_200_000)),
            "2026-11-23T12:00:00.000Z"
        );
        assert_eq!(
            rfc3339(Timestamp(1_795_435_200_007)),
            "2026-11-23T12:00:00.007Z"
        );
    }
}
