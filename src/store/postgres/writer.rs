//! The one writer: a task that owns the connection that writes.
//!
//! Whatever waits when it is free goes into one transaction. If that is refused, each
//! commit is tried alone, so that none fails for another's reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwell_core::control_plane::Change;
use dwell_core::time::Timestamp;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::Address;
use super::error::{Kind, Trouble};
use super::line::{Line, Outcome};
use crate::store::StoreError;

/// More commits than this are not put into one transaction.
const BATCH_MAX: usize = 1_000;
/// For how long a commit is tried again that could not be sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one is tried again that collided with others' transactions, or was cut off.
const COLLISIONS_MAX: u32 = 10;
/// How soon, at first and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The writer's task, as others see it. It finishes what was asked of it and ends when
/// this is dropped.
pub(super) struct Writer {
    waiting: mpsc::UnboundedSender<Waiting>,
    transactions: Arc<AtomicU64>,
    address: Address,
}

/// A commit that waits, and who waits for it.
struct Waiting {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Writer {
    pub(super) fn start(line: Line) -> Self {
        let (sender, waiting) = mpsc::unbounded_channel();
        let transactions = Arc::new(AtomicU64::new(0));
        let address = line.address().clone();
        let mut work = Work {
            line,
            transactions: Arc::clone(&transactions),
            forget_before: None,
        };
        tokio::spawn(async move { work.run(waiting).await });
        Self {
            waiting: sender,
            transactions,
            address,
        }
    }

    /// Has `changes` written with whatever else waits.
    pub(super) async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || {
            StoreError(format!(
                "The writer of {} has stopped; restart dwell",
                self.address
            ))
        };
        let (done, result) = oneshot::channel();
        self.waiting
            .send(Waiting { changes, done })
            .map_err(|_| gone())?;
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    /// How many transactions it has written.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

/// What the task has.
struct Work {
    line: Line,
    transactions: Arc<AtomicU64>,
    /// There may be more to forget than has been yet.
    forget_before: Option<Timestamp>,
}

impl Work {
    async fn run(&mut self, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
        loop {
            let first = match self.forget_before {
                None => waiting.recv().await.ok_or(TryRecvError::Disconnected),
                Some(_) => waiting.try_recv(),
            };
            match first {
                Ok(first) => {
                    let mut batch = vec![first];
                    while batch.len() < BATCH_MAX
                        && let Ok(next) = waiting.try_recv()
                    {
                        batch.push(next);
                    }
                    self.commit(batch).await;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            if let Some(before) = self.forget_before {
                self.forget_more(before).await;
            }
        }
    }

    async fn commit(&mut self, batch: Vec<Waiting>) {
        match self.write(&batch).await {
            Err(trouble) if batch.len() > 1 && trouble.kind == Kind::Refused => {
                for one in batch {
                    let alone = self.write(std::slice::from_ref(&one)).await;
                    // Who asked may have gone away.
                    let _ = one.done.send(alone.map_err(|trouble| trouble.sentence));
                }
            }
            result => {
                let result = result.map_err(|trouble| trouble.sentence);
                for one in batch {
                    let _ = one.done.send(result.clone());
                }
            }
        }
    }

    async fn write(&mut self, batch: &[Waiting]) -> Result<(), Trouble> {
        let changes: Vec<_> = batch.iter().flat_map(|one| &one.changes).collect();
        let more_to_forget = self.write_all(&changes).await?;
        if more_to_forget {
            let moments = changes.iter().filter_map(|change| match change {
                Change::ForgetEndedBefore(before) => Some(*before),
                Change::Session(_)
                | Change::Machine(_)
                | Change::MachineVersion(..)
                | Change::MachineDeleted(_)
                | Change::Key(_)
                | Change::Share(_) => None,
            });
            self.forget_before = self.forget_before.max(moments.max());
        }
        Ok(())
    }

    /// All in one transaction, or nothing. True if there may be more to forget.
    async fn write_all(&mut self, changes: &[&Change]) -> Result<bool, Trouble> {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, mut collisions) = (PAUSES.0, 0);
        loop {
            let trouble = match self.line.write(changes).await {
                Outcome::Committed { more_to_forget } => {
                    self.transactions.fetch_add(1, Ordering::Relaxed);
                    return Ok(more_to_forget);
                }
                Outcome::Unknown if self.is_on_record().await => {
                    self.transactions.fetch_add(1, Ordering::Relaxed);
                    return Ok(true);
                }
                Outcome::Unknown => self.line.cut_off(),
                Outcome::Failed(trouble) => trouble,
            };
            collisions += u32::from(trouble.kind == Kind::Collided);
            let again = match trouble.kind {
                Kind::Lost => Instant::now() + pause < deadline,
                Kind::Collided => collisions <= COLLISIONS_MAX,
                Kind::Refused | Kind::Unable => false,
            };
            if !again {
                return Err(trouble);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// What became of the last transaction, for as long as it takes to find out: to say
    /// either would be a guess.
    async fn is_on_record(&mut self) -> bool {
        let mut pause = PAUSES.0;
        let mut said = false;
        loop {
            match self.line.is_on_record().await {
                Ok(is_on_record) => return is_on_record,
                Err(trouble) if !said => {
                    let sentence = trouble.sentence;
                    tracing::error!(
                        "what was last written may or may not be on record: {sentence}"
                    );
                    said = true;
                }
                // The store was closed: nobody waits for it.
                Err(_) if Arc::strong_count(&self.transactions) == 1 => return false,
                Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn forget_more(&mut self, before: Timestamp) {
        match self.write_all(&[&Change::ForgetEndedBefore(before)]).await {
            Ok(true) => {}
            Ok(false) => self.forget_before = None,
            Err(trouble) => {
                let sentence = trouble.sentence;
                tracing::warn!("Old sessions are kept until the next time: {sentence}");
                self.forget_before = None;
            }
        }
    }
}
