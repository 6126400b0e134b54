//! A response of the gateway's own.

use super::headers::{connection, put, status_line};

/// A response of the gateway's own: whole, and short.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    lines: Vec<u8>,
    body: String,
    /// Nothing more will come on this connection.
    pub(super) is_last: bool,
}

impl Answer {
    pub(super) const fn new(status: u16) -> Self {
        Self {
            status,
            lines: Vec::new(),
            body: String::new(),
            is_last: false,
        }
    }

    pub(super) const fn status(&self) -> u16 {
        self.status
    }

    /// Add a header line. A value that cannot stand in one is left out.
    pub(super) fn line(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        if !value.iter().any(|byte| b"\r\n\0".contains(byte)) {
            put(&mut self.lines, name, value);
        }
    }

    /// What it says.
    pub(super) fn body(&mut self, media_type: &str, body: String) {
        self.line("content-type", media_type);
        self.body = body;
    }

    /// Let scripts of `origin` read it.
    pub(super) fn allow(&mut self, origin: &[u8]) {
        super::cors::allow(origin, &mut self.lines);
    }

    /// Write it for a visitor. One that only asked for the head gets that.
    pub(super) fn write(&self, is_1_1: bool, keeps_alive: bool, is_head: bool, out: &mut Vec<u8>) {
        status_line(out, is_1_1, self.status, reason(self.status));
        out.extend_from_slice(&self.lines);
        if self.status != 204 {
            put(
                out,
                "content-length",
                self.body.len().to_string().as_bytes(),
            );
        }
        connection(out, is_1_1, keeps_alive);
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

fn reason(status: u16) -> &'static str {
    hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}
