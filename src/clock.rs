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
