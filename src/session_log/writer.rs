//! The writing end: lines in, segments of limited size out.

use std::fs::{File, OpenOptions, create_dir_all, remove_file};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::{LogLevel, LogLine, segment_name, segments};
use crate::clock;

/// A log is kept in about so many pieces; the oldest goes when a new one is begun.
pub(super) const SEGMENTS: u64 = 8;
/// A line longer than this is split.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Writes a session's log.
pub struct Writer {
    dir: PathBuf,
    segment_bytes_max: u64,
    number: u64,
    bytes: u64,
    file: Option<File>,
}

impl Writer {
    /// A log in `dir` that takes at most about `bytes_max` of disk.
    #[must_use]
    pub fn new(dir: PathBuf, bytes_max: u64) -> Self {
        let number = segments(&dir).last().map_or(0, |last| last + 1);
        let segment_bytes_max = (bytes_max / SEGMENTS).max(4 * 1024);
        Self {
            dir,
            segment_bytes_max,
            number,
            bytes: 0,
            file: None,
        }
    }

    /// Add a line.
    ///
    /// # Errors
    /// When it cannot be written. The next one is tried anew.
    pub fn write(&mut self, level: LogLevel, message: &str) -> io::Result<()> {
        let line = LogLine {
            timestamp: clock::rfc3339(clock::wall()),
            level,
            message: message.to_owned(),
        };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let written = self.segment()?.write_all(&bytes);
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        if written.is_err() || self.bytes >= self.segment_bytes_max {
            // After a failure too: a line cut short must not run into the next.
            self.file = None;
        }
        written
    }

    fn segment(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            create_dir_all(&self.dir)?;
            let oldest_kept = (self.number + 1).saturating_sub(SEGMENTS);
            for number in segments(&self.dir)
                .into_iter()
                .filter(|number| *number < oldest_kept)
            {
                let _ = remove_file(self.dir.join(segment_name(number)));
            }
            let path = self.dir.join(segment_name(self.number));
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)?;
            self.number += 1;
            self.bytes = 0;
            return Ok(self.file.insert(file));
        }
        self.file
            .as_mut()
            .ok_or_else(|| io::Error::other("no segment"))
    }
}

/// Makes lines of an app's output as it comes.
#[derive(Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// The lines that end in `bytes`; what follows the last waits for more.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LINE_BYTES_MAX {
                self.flush(&mut line);
            }
        }
    }

    /// What is left when no more will come.
    pub fn flush(&mut self, mut line: impl FnMut(&str)) {
        for part in self.partial.chunks(LINE_BYTES_MAX) {
            let text = String::from_utf8_lossy(part);
            line(text.trim_end_matches(['\n', '\r']));
        }
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &std::path::Path) -> Vec<String> {
        let mut messages = Vec::new();
        for number in segments(dir) {
            for line in std::fs::read_to_string(dir.join(segment_name(number)))
                .unwrap()
                .lines()
            {
                messages.push(serde_json::from_str::<LogLine>(line).unwrap().message);
            }
        }
        messages
    }

    #[test]
    fn a_flood_stays_under_its_limit_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let bytes_max = 64 * 1024;
        let mut writer = Writer::new(dir.path().join("log"), bytes_max);
        for number in 0..10_000 {
            writer
                .write(LogLevel::Info, &format!("line {number}"))
                .unwrap();
        }
        let dir = dir.path().join("log");
        let size: u64 = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size < bytes_max + 8 * 1024, "{size}");
        let messages = read(&dir);
        assert_eq!(messages.last().unwrap(), "line 9999");
        assert!(messages.len() > 100);
    }

    #[test]
    fn lines_are_made_of_pieces_and_long_ones_are_split() {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for piece in ["a", "b\nc", "\r\n\n", "d"] {
            splitter.push(piece.as_bytes(), |line| lines.push(line.to_owned()));
        }
        splitter.flush(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["ab", "c", "", "d"]);

        lines.clear();
        splitter.push("x".repeat(LINE_BYTES_MAX * 2 + 5).as_bytes(), |line| {
            lines.push(line.to_owned())
        });
        splitter.push(b"y\xff\n", |line| lines.push(line.to_owned()));
        assert!(lines.iter().all(|line| line.len() <= LINE_BYTES_MAX + 3));
        assert!(lines.last().unwrap().ends_with("y\u{fffd}"));
    }
}
