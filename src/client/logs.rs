//! A session's log as server-sent events.

use std::collections::VecDeque;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;

use super::ClientError;
use crate::session_log::LogLine;

/// The longest line of a stream; a longer one is none of ours.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One thing that a log stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A line of the log.
    Line(LogLine),
    /// Nothing new, but the stream lives.
    KeepAlive,
}

/// The wire's three kinds of event.
#[derive(Deserialize)]
#[serde(untagged)]
enum Wire {
    Line(LogLine),
    Mark {
        #[serde(rename = "type")]
        kind: String,
    },
}

/// A log that is being read.
pub struct LogStream {
    url: String,
    body: Incoming,
    lines: Lines,
    over: bool,
}

impl LogStream {
    pub(super) fn new(url: String, body: Incoming) -> Self {
        Self {
            url,
            body,
            lines: Lines::default(),
            over: false,
        }
    }

    /// What comes next; `None` when the log is complete.
    ///
    /// # Errors
    /// When the connection breaks before that.
    pub async fn next(&mut self) -> Result<Option<LogEvent>, ClientError> {
        loop {
            if self.over {
                return Ok(None);
            }
            if let Some(line) = self.lines.take() {
                match event(&line) {
                    Some(Wire::Line(line)) => return Ok(Some(LogEvent::Line(line))),
                    Some(Wire::Mark { kind }) if kind == "stream_complete" => self.over = true,
                    Some(Wire::Mark { .. }) => return Ok(Some(LogEvent::KeepAlive)),
                    // A comment, the end of an event, or what only later versions know.
                    None => {}
                }
                continue;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.put(&data).map_err(|why| self.broke(why))?;
                    }
                }
                Some(Err(why)) => return Err(self.broke(&super::root_cause(&why))),
                None => return Err(self.broke("it ended before the log did")),
            }
        }
    }

    fn broke(&self, why: &str) -> ClientError {
        ClientError::Unreachable {
            url: self.url.clone(),
            why: format!("the log's connection broke: {why}"),
        }
    }
}

fn event(line: &str) -> Option<Wire> {
    let data = line.strip_prefix("data:")?;
    serde_json::from_str(data.trim_start()).ok()
}

/// Bytes in, whole lines out.
#[derive(Default)]
struct Lines {
    whole: VecDeque<String>,
    begun: Vec<u8>,
}

impl Lines {
    fn put(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.begun.extend_from_slice(part);
            if self.begun.len() > LINE_BYTES_MAX {
                return Err("a line is too long");
            }
            if parts.peek().is_some() {
                let line = std::mem::take(&mut self.begun);
                let line = String::from_utf8_lossy(&line);
                self.whole.push_back(line.trim_end_matches('\r').to_owned());
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_the_bytes_arrive() {
        let text = "data: {\"a\":1}\r\n\n: ping\ndata: é\nrest".as_bytes();
        for size in 1..text.len() {
            let mut lines = Lines::default();
            for part in text.chunks(size) {
                lines.put(part).unwrap();
            }
            let whole: Vec<_> = std::iter::from_fn(|| lines.take()).collect();
            assert_eq!(whole, ["data: {\"a\":1}", "", ": ping", "data: é"]);
        }
    }

    #[test]
    fn each_kind_of_event_is_known() {
        assert!(matches!(
            event(r#"data: {"message":"hi","level":"info","timestamp":"t"}"#),
            Some(Wire::Line(line)) if line.message == "hi"
        ));
        assert!(matches!(
            event(r#"data:{"type":"stream_complete","source":"session"}"#),
            Some(Wire::Mark { kind }) if kind == "stream_complete"
        ));
        assert!(event(": comment").is_none());
        assert!(event("data: what").is_none());
    }
}
