//! The session's log as its agent writes it: what the app says, and the agent's remarks.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::spec::AppLimits;
use crate::data_dir::SessionDir;
use crate::session_log::{LineSplitter, LogLevel, Writer};

/// So much of the app's last line goes into the sentence that says why it ended.
const LAST_WORDS_CHARS: usize = 200;

/// The log, shared by all who write to it.
#[derive(Clone)]
pub(super) struct Log(Rc<RefCell<Written>>);

struct Written {
    writer: Writer,
    last_line: Option<String>,
}

impl Log {
    /// The log of the session in `dir`.
    pub(super) fn new(dir: &SessionDir, limits: AppLimits) -> Self {
        Self(Rc::new(RefCell::new(Written {
            writer: Writer::new(dir.log(), limits.log_mib.saturating_mul(1 << 20)),
            last_line: None,
        })))
    }

    /// A remark of the agent's.
    pub(super) fn write(&self, level: LogLevel, message: &str) {
        // A full disk must not end a session: what does not fit is not kept.
        let _ = self.0.borrow_mut().writer.write(level, message);
    }

    /// A line of the app's.
    pub(super) fn app_wrote(&self, level: LogLevel, line: &str) {
        self.write(level, line);
        if !line.trim().is_empty() {
            let words = line.trim().chars().take(LAST_WORDS_CHARS).collect();
            self.0.borrow_mut().last_line = Some(words);
        }
    }

    /// The last that the app wrote.
    pub(super) fn last_line(&self) -> Option<String> {
        self.0.borrow().last_line.clone()
    }
}

/// Put what comes through `pipe` into the log, line by line, as fast as the log
/// takes it and no faster: an app that floods it waits.
pub(super) async fn capture(pipe: OwnedFd, level: LogLevel, log: Log) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(pipe) else {
        return;
    };
    let mut splitter = LineSplitter::default();
    let mut buffer = vec![0; 8 * 1024];
    let put = |line: &str| log.app_wrote(level, line);
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(bytes) => splitter.push(buffer.get(..bytes).unwrap_or_default(), put),
        }
        // The lease comes first, however much there is to read.
        tokio::task::yield_now().await;
    }
    splitter.flush(put);
}
