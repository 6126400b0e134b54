//! The access log: one event for each request, once its exchange has ended. Nothing is
//! done for it unless somebody listens.

use std::time::Instant;

use tracing::Level;

use super::connection::Visit;
use crate::seals::Grant;
use crate::telemetry::ACCESS_TARGET as TARGET;

/// A request that is to be logged.
#[derive(Debug)]
pub(super) struct Entry {
    began: Instant,
    method: String,
    path: String,
}

impl Entry {
    /// For the request with this head. Its query stays out of the log: people are let in
    /// by what stands there.
    pub(super) fn begin(head: &[u8]) -> Option<Self> {
        if !tracing::enabled!(target: TARGET, Level::INFO) {
            return None;
        }
        let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next()?;
        let mut words = line.split(|byte| *byte == b' ');
        let method = words.next()?;
        let path = words.next()?.split(|byte| *byte == b'?').next()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(Self {
            began: Instant::now(),
            method: text(method),
            path: text(path),
        })
    }

    /// It was answered with `status`, and a body of so many bytes; 0 says that it was not
    /// answered. `by` is what it passed by, where not everybody does.
    pub(super) fn end(self, visit: &Visit, by: Option<Grant>, status: u16, bytes: u64) {
        let duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            target: TARGET,
            session = %visit.session,
            from = %visit.from.ip(),
            by = by.map(tracing::field::display),
            method = self.method,
            path = self.path,
            status,
            bytes,
            duration_ms,
        );
    }
}
