//! Many clients at the same time.

use std::time::{Duration, Instant};

use crate::Result;

/// Do it with all of them at the same time. How long until the last was done, and
/// what came of each.
pub fn at_once<T: Send, R: Send>(
    all: Vec<T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<(Duration, Vec<R>)> {
    let began = Instant::now();
    let work = &work;
    let done: Result<Vec<R>> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .map(|one| scope.spawn(move || work(one)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a client died")?)
            .collect()
    });
    Ok((began.elapsed(), done?))
}
