//! The one writer: a thread that owns the connection that writes.
//!
//! Whatever waits when it is free goes into one transaction, and so onto the disk
//! at the price of one. If that transaction fails, each commit is tried alone, so
//! that none fails for another's reason.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use dwell_core::control_plane::Change;
use dwell_core::machine::MachineVersion;
use dwell_core::session::Session;
use dwell_core::time::Timestamp;
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::columns::Json;
use super::error::sentence;
use crate::failpoint::{self, Point};
use crate::store::StoreError;
use crate::store::columns::{Standing, owner_column};

/// More commits than this are not put into one transaction.
const BATCH_MAX: usize = 1_000;

/// So many sessions are forgotten in one transaction; commits go in between.
const FORGET_AT_ONCE: usize = 200;

/// The writer's thread, as others see it. Dropping it waits for what was asked.
pub(super) struct Writer {
    waiting: Option<Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    transactions: Arc<AtomicU64>,
    file: Arc<Path>,
}

/// A commit that waits, and who waits for it.
struct Waiting {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, file: Arc<Path>) -> Result<Self, StoreError> {
        let (sender, waiting) = channel();
        let transactions = Arc::new(AtomicU64::new(0));
        let mut work = Work {
            connection,
            identity: identity(&file).map_err(|error| gone(&file, &error))?,
            file: Arc::clone(&file),
            transactions: Arc::clone(&transactions),
            forget_before: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || work.run(&waiting))
            .map_err(|error| StoreError(format!("The store could not start a thread: {error}")))?;
        Ok(Self {
            waiting: Some(sender),
            thread: Some(thread),
            transactions,
            file,
        })
    }

    /// Has `changes` written with whatever else waits.
    pub(super) async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let gone = || {
            StoreError(format!(
                "The writer of {} has stopped; restart dwell",
                self.file.display()
            ))
        };
        let (done, result) = oneshot::channel();
        self.waiting
            .as_ref()
            .and_then(|waiting| waiting.send(Waiting { changes, done }).ok())
            .ok_or_else(gone)?;
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    /// How many transactions it has written.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.waiting = None;
        if let Some(thread) = self.thread.take() {
            // It closes the file; one that panicked has nothing left to close.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Work {
    connection: Connection,
    /// Of the file that was opened.
    identity: Identity,
    file: Arc<Path>,
    transactions: Arc<AtomicU64>,
    /// There may be more to forget than has been yet.
    forget_before: Option<Timestamp>,
}

impl Work {
    fn run(&mut self, waiting: &Receiver<Waiting>) {
        loop {
            let first = match self.forget_before {
                None => waiting.recv().map_err(|_| TryRecvError::Disconnected),
                Some(_) => waiting.try_recv(),
            };
            match first {
                Ok(first) => {
                    let mut batch = vec![first];
                    batch.extend(waiting.try_iter().take(BATCH_MAX - 1));
                    self.commit(batch);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            if let Some(before) = self.forget_before {
                self.forget_more(before);
            }
        }
    }

    fn commit(&mut self, batch: Vec<Waiting>) {
        if let Err(refusal) = self.is_in_place() {
            for one in batch {
                let _ = one.done.send(Err(refusal.clone()));
            }
            return;
        }
        let together = self.write(&batch);
        match together {
            Err(error) if batch.len() > 1 && !is_locked(&error) => {
                for one in batch {
                    let alone = self.write(std::slice::from_ref(&one));
                    self.answer(one, alone);
                }
            }
            Ok(()) => {
                for one in batch {
                    self.answer(one, Ok(()));
                }
            }
            Err(error) => {
                let refusal = sentence(&self.file, &error);
                for one in batch {
                    // Who asked may have gone away.
                    let _ = one.done.send(Err(refusal.clone()));
                }
            }
        }
    }

    /// SQLite would go on writing to a file that was moved or deleted, and what it
    /// acknowledged would be gone.
    fn is_in_place(&self) -> Result<(), StoreError> {
        match identity(&self.file) {
            Ok(there) if there == self.identity => Ok(()),
            Ok(_) => Err(gone(&self.file, &"another file is in its place")),
            Err(error) => Err(gone(&self.file, &error)),
        }
    }

    fn answer(&self, one: Waiting, result: rusqlite::Result<()>) {
        let result = result.map_err(|error| sentence(&self.file, &error));
        let _ = one.done.send(result);
    }

    /// All of the batch in one transaction, or nothing of it.
    fn write(&mut self, batch: &[Waiting]) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut forget_before = self.forget_before;
        for change in batch.iter().flat_map(|one| &one.changes) {
            apply(&transaction, change)?;
            if let Change::ForgetEndedBefore(before) = change
                && forget_some(&transaction, *before)? == FORGET_AT_ONCE
            {
                forget_before = forget_before.max(Some(*before));
            }
        }
        failpoint::cross(Point::StoreInTransaction);
        transaction.commit()?;
        failpoint::cross(Point::StoreAfterCommit);
        self.forget_before = forget_before;
        self.transactions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn forget_more(&mut self, before: Timestamp) {
        match forget_some(&self.connection, before) {
            Ok(FORGET_AT_ONCE) => {}
            Ok(_) => self.forget_before = None,
            Err(error) => {
                let error = sentence(&self.file, &error);
                tracing::warn!("Old sessions are kept until the next time: {error}");
                self.forget_before = None;
            }
        }
    }
}

/// A file's device and number on it.
type Identity = (u64, u64);

fn identity(file: &Path) -> std::io::Result<Identity> {
    let file = file.metadata()?;
    Ok((file.dev(), file.ino()))
}

fn gone(file: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError(format!(
        "{} was moved or deleted ({why}); put it back, or restart dwell to begin anew",
        file.display()
    ))
}

fn is_locked(error: &rusqlite::Error) -> bool {
    // The others would wait for the lock as long, one after the other.
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Session(session) => put_session(connection, session),
        Change::Machine(machine) => run(
            connection,
            "INSERT INTO machines (id, owner, created_at, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            params![
                machine.id.0.as_bytes(),
                owner_column(&machine.owner),
                machine.created_at.0,
                Json(machine)
            ],
        ),
        Change::MachineVersion(machine, version) => run(
            connection,
            "INSERT INTO machine_versions (id, machine_id, version, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO NOTHING",
            params![
                version.id.0.as_bytes(),
                machine.0.as_bytes(),
                version.version,
                Json::<&MachineVersion>(version)
            ],
        ),
        Change::MachineDeleted(id) => run(
            connection,
            "DELETE FROM machines WHERE id = ?1",
            params![id.0.as_bytes()],
        ),
        Change::Key(key) => run(
            connection,
            "INSERT INTO keys (id, owner, created_at, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            params![
                key.id.0.as_bytes(),
                owner_column(&key.principal.owner()),
                key.created_at.0,
                Json(key)
            ],
        ),
        Change::Share(share) => run(
            connection,
            "INSERT INTO shares (id, owner, session_id, created_at, body)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            params![
                share.id.0.as_bytes(),
                owner_column(&share.owner),
                share.session.0.as_bytes(),
                share.created_at.0,
                Json(share)
            ],
        ),
        // In bites, by who calls.
        Change::ForgetEndedBefore(_) => Ok(()),
    }
}

fn put_session(connection: &Connection, session: &Session) -> rusqlite::Result<()> {
    let standing = Standing::of(session);
    let ticket = standing
        .ticket
        .map(i64::try_from)
        .transpose()
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    // Who owns it, its machine, its type and its creation never change: their
    // indexes need not be touched again.
    run(
        connection,
        "INSERT INTO sessions (id, owner, machine_id, gpu_type, created_at,
                               ticket, ended_at, held_from, held_until, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE SET
             ticket = excluded.ticket, ended_at = excluded.ended_at,
             held_from = excluded.held_from, held_until = excluded.held_until,
             body = excluded.body",
        params![
            session.id.0.as_bytes(),
            owner_column(&session.owner),
            session.machine_id.as_ref().map(|id| id.0.as_bytes()),
            session.gpu_type.0,
            session.created_at.0,
            ticket,
            standing.ended_at,
            standing.held_from,
            standing.held_until,
            Json(session)
        ],
    )?;
    match (&session.gpu_event.gpu, standing.held_until) {
        (Some(gpu), Some(until)) => run(
            connection,
            "INSERT INTO gpus (id, free_since) VALUES (?1, ?2)
             ON CONFLICT (id) DO UPDATE SET free_since = max(free_since, excluded.free_since)",
            params![gpu.0, until],
        ),
        _ => Ok(()),
    }
}

/// Forgets at most [`FORGET_AT_ONCE`] sessions and says how many.
fn forget_some(connection: &Connection, before: Timestamp) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM sessions WHERE rowid IN
                 (SELECT rowid FROM sessions WHERE ended_at < ?1 ORDER BY ended_at LIMIT ?2)",
        )?
        .execute(params![
            before.0,
            i64::try_from(FORGET_AT_ONCE).unwrap_or(i64::MAX)
        ])
}

fn run(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema::open_writer;
    use dwell_core::id::KeyId;
    use dwell_core::key::{Key, KeyHash};
    use dwell_core::owner::{Principal, UserId};
    use uuid::Uuid;

    #[test]
    fn a_full_disk_refuses_what_does_not_fit_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store.db");
        let mut work = Work {
            connection: open_writer(&file).unwrap(),
            identity: identity(&file).unwrap(),
            file: Arc::from(file.as_path()),
            transactions: Arc::default(),
            forget_before: None,
        };
        let pages: u32 = work
            .connection
            .pragma_query_value(None, "page_count", |pages| pages.get(0))
            .unwrap();
        let limit_pages = |work: &Work, limit: u32| {
            work.connection
                .pragma_update(None, "max_page_count", limit)
                .unwrap();
        };
        limit_pages(&work, pages + 10);

        let results = commit_together(&mut work, &[(1, 100), (2, 100_000), (3, 100)]);
        let refusal = format!(
            "{} could not be written: its disk is full; free some space and try again",
            file.display()
        );
        assert_eq!(results, [None, Some(refusal), None]);

        limit_pages(&work, pages + 1_000);
        assert_eq!(commit_together(&mut work, &[(2, 100_000)]), [None]);
        let kept: u32 = work
            .connection
            .query_row("SELECT count(*) FROM keys", [], |row| row.get(0))
            .unwrap();
        assert_eq!(kept, 3);
    }

    /// Commits keys of these numbers and sizes; the refusals.
    fn commit_together(work: &mut Work, keys: &[(u128, usize)]) -> Vec<Option<String>> {
        let (batch, results): (Vec<_>, Vec<_>) = keys
            .iter()
            .map(|(n, size)| {
                let key = Key {
                    id: KeyId(Uuid::from_u128(*n)),
                    name: "x".repeat(*size),
                    hash: KeyHash([0; 32]),
                    principal: Principal {
                        user: UserId("ann".into()),
                        org: None,
                        admin: false,
                    },
                    created_at: Timestamp(0),
                    revoked_at: None,
                };
                let (done, result) = oneshot::channel();
                let changes = vec![Change::Key(key)];
                (Waiting { changes, done }, result)
            })
            .unzip();
        work.commit(batch);
        results
            .into_iter()
            .map(|mut result| result.try_recv().unwrap().err().map(|refusal| refusal.0))
            .collect()
    }
}
