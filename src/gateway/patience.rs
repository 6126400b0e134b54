//! How long a connection waits, and for what not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// How long the gateway waits for whom.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// For a request's head, from its first byte on; and for the first byte on a new
    /// connection.
    pub head: Duration,
    /// For the next request.
    pub keep_alive: Duration,
    /// For the next byte of an exchange, from either side.
    pub idle: Duration,
    /// For the end of an exchange whose session is over.
    pub finish: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            keep_alive: Duration::from_secs(30),
            idle: Duration::from_secs(600),
            finish: Duration::from_secs(30),
        }
    }
}

/// Why something is not waited for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It took too long.
    TimedOut,
    /// The session is over.
    Over,
}

/// What the end of the session does to something that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOver {
    /// It is not waited for any more.
    Cut,
    /// It may still come for so long.
    Finish(Duration),
    /// It comes to an end by itself.
    Ignore,
}

/// For how long something is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    /// In all.
    Total(Duration),
    /// Since it last moved.
    Idle(Duration),
    /// As long as it takes.
    None,
}

/// The one timer of a connection, and the end of its session. The timer is set anew
/// only when it fires, or would fire too late: most waits end long before.
pub(super) struct Patience<O> {
    over: Pin<Box<O>>,
    /// When the session was seen to be over.
    over_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<O: Future<Output = ()>> Patience<O> {
    pub(super) fn new(over: O) -> Self {
        Self {
            over: Box::pin(over),
            over_since: None,
            timer: Box::pin(sleep_until(Instant::now())),
        }
    }

    /// Wait for what `poll` waits for.
    pub(super) async fn wait<T>(
        &mut self,
        limit: Limit,
        at_over: AtOver,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Cut> {
        let mut deadline = None;
        std::future::poll_fn(|cx| {
            // Most of what is waited for is there already.
            if let Poll::Ready(came) = poll(cx) {
                return Poll::Ready(Ok(came));
            }
            if let Poll::Ready(()) = self.poll_over(cx, at_over) {
                return Poll::Ready(Err(Cut::Over));
            }
            self.poll_limit(cx, limit, at_over, &mut deadline)
                .map(|()| Err(Cut::TimedOut))
        })
        .await
    }

    fn poll_over(&mut self, cx: &mut Context<'_>, at_over: AtOver) -> Poll<()> {
        if at_over == AtOver::Ignore {
            return Poll::Pending;
        }
        if self.over_since.is_none() && self.over.as_mut().poll(cx).is_ready() {
            self.over_since = Some(Instant::now());
        }
        if self.over_since.is_some() && at_over == AtOver::Cut {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn poll_limit(
        &mut self,
        cx: &mut Context<'_>,
        limit: Limit,
        at_over: AtOver,
        deadline: &mut Option<Instant>,
    ) -> Poll<()> {
        let own = match limit {
            Limit::Total(span) => Some(*deadline.get_or_insert_with(|| Instant::now() + span)),
            // Whoever polls was woken, so something has moved; or the timer has fired.
            Limit::Idle(span) if !self.timer.is_elapsed() => {
                Some(*deadline.insert(Instant::now() + span))
            }
            Limit::Idle(span) => Some(*deadline.get_or_insert_with(|| Instant::now() + span)),
            Limit::None => None,
        };
        let last = match (at_over, self.over_since) {
            (AtOver::Finish(span), Some(since)) => Some(since + span),
            _ => None,
        };
        let Some(until) = own.into_iter().chain(last).min() else {
            return Poll::Pending;
        };
        loop {
            if self.timer.is_elapsed() || self.timer.deadline() > until {
                if until <= Instant::now() {
                    return Poll::Ready(());
                }
                self.timer.as_mut().reset(until);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Pending, pending};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience<Pending<()>> {
        Patience::new(pending())
    }

    async fn for_nothing<O: Future<Output = ()>>(
        patience: &mut Patience<O>,
        limit: Limit,
        at_over: AtOver,
    ) -> (Cut, Duration) {
        let began = Instant::now();
        let waited = patience.wait(limit, at_over, |_| Poll::<()>::Pending).await;
        (waited.unwrap_err(), began.elapsed())
    }

    /// Whether `of` lies within the timer's milliseconds of `expected`.
    fn is_about(of: Duration, expected: Duration) -> bool {
        of.abs_diff(expected) <= Duration::from_millis(2)
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_a_limit_of_its_own_whatever_the_one_before_had() {
        let mut patience = patience();
        for seconds in [30, 600, 1, 60] {
            for limit in [
                Limit::Total(SECOND * seconds),
                Limit::Idle(SECOND * seconds),
            ] {
                let (cut, after) = for_nothing(&mut patience, limit, AtOver::Cut).await;
                assert_eq!(cut, Cut::TimedOut);
                assert!(is_about(after, SECOND * seconds), "{after:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_waited_for_and_what_stops_is_not() {
        let mut patience = patience();
        let began = Instant::now();
        let pause = Duration::from_millis(900);
        let (mut steps, mut step) = (0, Box::pin(tokio::time::sleep(pause)));
        let moves_five_times = |cx: &mut Context<'_>| {
            while steps < 5 && step.as_mut().poll(cx).is_ready() {
                steps += 1;
                step.set(tokio::time::sleep(pause));
            }
            Poll::<()>::Pending
        };
        let limit = Limit::Idle(SECOND * 3);
        let waited = patience.wait(limit, AtOver::Cut, moves_five_times).await;
        assert_eq!(waited, Err(Cut::TimedOut));
        let expected = pause * 5 + SECOND * 3;
        assert!(is_about(began.elapsed(), expected), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_session_cuts_off_lets_finish_or_changes_nothing() {
        let over_in_five = || Patience::new(tokio::time::sleep(SECOND * 5));
        let minute = Limit::Total(SECOND * 60);
        for (at_over, limit, cut, seconds) in [
            (AtOver::Cut, minute, Cut::Over, 5),
            (AtOver::Cut, Limit::None, Cut::Over, 5),
            (AtOver::Ignore, minute, Cut::TimedOut, 60),
            (AtOver::Finish(SECOND * 30), minute, Cut::TimedOut, 35),
            (AtOver::Finish(SECOND * 30), Limit::None, Cut::TimedOut, 35),
            (AtOver::Finish(SECOND * 90), minute, Cut::TimedOut, 60),
        ] {
            let (was_cut, after) = for_nothing(&mut over_in_five(), limit, at_over).await;
            assert_eq!(was_cut, cut);
            assert!(is_about(after, SECOND * seconds), "{at_over:?}: {after:?}");
        }
    }
}
