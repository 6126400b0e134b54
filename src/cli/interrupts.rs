//! Ctrl-C and TERM: the first asks, the second insists.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::output::Failure;

/// How often somebody has asked this process to end.
#[derive(Clone)]
pub struct Interrupts {
    count: watch::Receiver<u32>,
}

impl Interrupts {
    /// Count from now on, in the place of dying.
    pub fn listen() -> Result<Self, Failure> {
        let fault = |why| Failure::new(format!("signals cannot be listened to: {why}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let (counter, count) = watch::channel(0);
        tokio::spawn(async move {
            while !counter.is_closed() {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                counter.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { count })
    }

    /// How often so far.
    pub fn so_far(&self) -> u32 {
        *self.count.borrow()
    }

    /// Until it was at least so often.
    pub async fn at_least(&self, times: u32) {
        let mut count = self.count.clone();
        if count.wait_for(|count| *count >= times).await.is_err() {
            // Nobody counts any more: nobody will ask.
            std::future::pending::<()>().await;
        }
    }
}
