//! The threads that carry traffic. Each has a runtime of its own: a connection and the
//! connections to its app stay on one thread, and nothing is handed from core to core.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// More threads than this carry more than any host's network.
const WORKERS_MAX: usize = 16;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// The threads that carry traffic. They end when this is dropped, and what they carry
/// with them.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Dropped to end it.
    _stop: oneshot::Sender<()>,
}

impl Workers {
    /// One for each second core: the kernel's part of the traffic, and the apps', needs
    /// the others, and threads that take turns on a core cost more than they carry.
    pub(super) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..cores.div_ceil(2).min(WORKERS_MAX)).map(Worker::start);
        Ok(Self {
            workers: workers.collect::<io::Result<_>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// How many there can be.
    pub(super) fn count_max() -> usize {
        WORKERS_MAX
    }

    /// Which of them this thread is.
    pub(super) fn own_number() -> usize {
        NUMBER.get()
    }

    /// The one whose turn it is: its number, and where it works.
    pub(super) fn next(&self) -> (usize, &Handle) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        (turn, &self.workers[turn].runtime)
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(1_024)
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("gateway-{number}"))
            .spawn(move || {
                NUMBER.set(number);
                // An error says that nobody needs it any more.
                let _ = runtime.block_on(stopped);
            })?;
        Ok(Self {
            runtime: handle,
            _stop: stop,
        })
    }
}
