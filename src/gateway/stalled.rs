//! Streams of HTTP/2 whose visitor takes no more of what it is sent. Such a stream waits
//! for a window to open, sees nothing else meanwhile, and would wait for ever: here it is
//! reset when it has waited for too long, and the rest of its connection goes on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    /// What the stream that is served here waits for.
    static OFFER: Offer;
}

/// Whether something has been offered to a visitor that it has not taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Offer(Arc<AtomicBool>);

impl Offer {
    /// Of the stream that is served here.
    pub(super) fn of_stream() -> Self {
        OFFER.try_with(Clone::clone).unwrap_or_default()
    }

    /// Something is offered; or all was taken, and more is to come.
    pub(super) fn set(&self, is_open: bool) {
        self.0.store(is_open, Ordering::Relaxed);
    }
}

/// Serves each stream of a connection, and waits for its visitor for so long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    pub(super) idle: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let offer = Offer::default();
        let served = Served {
            stream: Box::pin(stream),
            offer: offer.clone(),
            idle: self.idle,
            timer: None,
        };
        tokio::spawn(OFFER.scope(offer, served));
    }
}

/// A stream. Dropped before its end, it is reset.
struct Served<F> {
    stream: Pin<Box<F>>,
    offer: Offer,
    idle: Duration,
    /// Most streams are over before they need one.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Served<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Whoever polls was woken, so something has moved; or the timer has fired.
        let has_fired = this.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        if this.stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !this.offer.0.load(Ordering::Relaxed) {
            this.timer = None;
            return Poll::Pending;
        }
        if has_fired {
            return Poll::Ready(());
        }
        let until = Instant::now() + this.idle;
        match &mut this.timer {
            Some(timer) => timer.as_mut().reset(until),
            None => this.timer = Some(Box::pin(sleep_until(until))),
        }
        let timer = this.timer.as_mut();
        timer.map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}
