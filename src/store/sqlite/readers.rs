//! The readers: a few threads with a connection each, who never wait for the
//! writer.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, Transaction};
use tokio::sync::oneshot;

use super::error::sentence;
use super::schema::open_reader;
use crate::store::StoreError;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The readers' threads, as others see them.
pub(super) struct Readers {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    file: Arc<Path>,
}

impl Readers {
    pub(super) fn start(file: Arc<Path>) -> Result<Self, StoreError> {
        let (sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        // At least two, so that one long list does not hold up everything else.
        let count = std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8));
        let mut readers = Self {
            jobs: Some(sender),
            threads: Vec::new(),
            file,
        };
        for _ in 0..count {
            let connection = open_reader(&readers.file)?;
            let jobs = Arc::clone(&jobs);
            let thread = std::thread::Builder::new()
                .name("store-reader".to_owned())
                .spawn(move || serve(connection, &jobs))
                .map_err(|error| {
                    StoreError(format!("The store could not start a thread: {error}"))
                })?;
            readers.threads.push(thread);
        }
        Ok(readers)
    }

    /// The answer to `query`, all of which sees the store as it is at one moment.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let gone = || {
            StoreError(format!(
                "The readers of {} have stopped; restart dwell",
                self.file.display()
            ))
        };
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Who asked may have gone away: then there is no hurry.
            if !done.is_closed() {
                let _ = done.send(at_one_moment(connection, query));
            }
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(gone)?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| sentence(&self.file, &error))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut connection: Connection, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(job) => job(&mut connection),
            Err(_) => return,
        }
    }
}

fn at_one_moment<T>(
    connection: &mut Connection,
    query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let moment: Transaction<'_> = connection.transaction()?;
    let answer = query(&moment)?;
    moment.commit()?;
    Ok(answer)
}
