//! The head of a message, as it came (RFC 9112, sections 2 to 5): borrowed from the
//! bytes it was read from, and never changed.

use std::mem::MaybeUninit;

/// The longest head, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1_024;
/// The most header lines that it can have.
pub const LINES_MAX: usize = 100;

/// A header line: its name as it was written, and its value.
pub type Line<'b> = httparse::Header<'b>;

/// Where the lines of one head are put while it is looked at.
pub type Storage<'b> = [MaybeUninit<Line<'b>>; LINES_MAX];

/// Room for the lines of one head.
#[must_use]
pub const fn storage<'b>() -> Storage<'b> {
    [MaybeUninit::uninit(); LINES_MAX]
}

/// Why a head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It has too many lines, or is too long.
    #[error("its head is too large")]
    TooLarge,
    /// It is of a version that is not spoken here.
    #[error("its version of HTTP is not spoken here")]
    Version,
    /// It is no head at all.
    #[error("its head cannot be read")]
    Malformed,
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooLarge,
            httparse::Error::Version => Self::Version,
            httparse::Error::HeaderName
            | httparse::Error::HeaderValue
            | httparse::Error::NewLine
            | httparse::Error::Status
            | httparse::Error::Token => Self::Malformed,
        }
    }
}

/// How long the head is that `bytes` begin with, once all of it is there. `searched`
/// is how many of them were seen before without finding its end.
#[must_use]
pub fn end(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    // The line that was the last may have been cut off.
    let from = searched.saturating_sub(3);
    *searched = bytes.len();
    let unseen = bytes.get(from..)?;
    memchr::memchr_iter(b'\n', unseen).find_map(|at| {
        let behind = unseen.get(at + 1..)?;
        let empty_line = match behind {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => return None,
        };
        Some(from + at + 1 + empty_line)
    })
}

/// The header lines of a head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines<'h>(&'h [Line<'h>]);

impl<'h> Lines<'h> {
    /// These.
    #[must_use]
    pub const fn new(lines: &'h [Line<'h>]) -> Self {
        Self(lines)
    }

    /// Each, in the order in which they came.
    pub fn iter(self) -> impl Iterator<Item = &'h Line<'h>> {
        self.0.iter()
    }

    /// The values of the lines of this name, which is written in lower case.
    pub fn all(self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.0
            .iter()
            .filter(move |line| line.name.eq_ignore_ascii_case(name))
            .map(|line| line.value)
    }

    /// The value of the first line of this name.
    #[must_use]
    pub fn first(self, name: &str) -> Option<&'h [u8]> {
        self.all(name).next()
    }

    /// Is there a line of this name?
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// The elements of a list that may be spread over several lines. Bytes, since what
    /// is no ASCII in one does not unsay the others.
    pub fn tokens(self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.all(name)
            .flat_map(|line| line.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    /// Is this one of the elements, in whatever case?
    #[must_use]
    pub fn has_token(self, name: &str, token: &str) -> bool {
        self.tokens(name)
            .any(|it| it.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'h> {
    /// What is to be done.
    pub method: &'h str,
    /// With what, as it was written.
    pub target: &'h str,
    /// Whether the visitor speaks HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// The header lines.
    pub lines: Lines<'h>,
}

impl<'h> RequestHead<'h> {
    /// Read the head that is all of `bytes`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &'h [u8], storage: &'h mut Storage<'h>) -> Result<Self, HeadError> {
        let mut head = httparse::Request::new(&mut []);
        // One that has not ended was cut off.
        if head.parse_with_uninit_headers(bytes, storage)?.is_partial() {
            return Err(HeadError::TooLarge);
        }
        let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version)
        else {
            return Err(HeadError::Malformed);
        };
        Ok(Self {
            method,
            target,
            is_1_1: minor > 0,
            lines: Lines(head.headers),
        })
    }
}

/// The head of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h> {
    /// What came of the request.
    pub status: u16,
    /// In words, perhaps none.
    pub reason: &'h str,
    /// Whether the app speaks HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// The header lines.
    pub lines: Lines<'h>,
}

impl<'h> ResponseHead<'h> {
    /// Read the head that is all of `bytes`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &'h [u8], storage: &'h mut Storage<'h>) -> Result<Self, HeadError> {
        let mut head = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut head, bytes, storage)?;
        if parsed.is_partial() {
            return Err(HeadError::TooLarge);
        }
        let (Some(status), Some(minor)) = (head.code, head.version) else {
            return Err(HeadError::Malformed);
        };
        Ok(Self {
            status,
            reason: head.reason.unwrap_or_default(),
            is_1_1: minor > 0,
            lines: Lines(head.headers),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_whatever_pieces_it_comes_in() {
        for (head, rest) in [
            ("GET / HTTP/1.1\r\na: b\r\n\r\n", "body\r\n\r\n"),
            ("GET / HTTP/1.1\na: b\n\n", "\n\n"),
            ("\r\n\r\n", ""),
        ] {
            let bytes = format!("{head}{rest}").into_bytes();
            for first in 0..=bytes.len() {
                let mut searched = 0;
                let early = end(&bytes[..first], &mut searched);
                let found = early.or_else(|| end(&bytes, &mut searched));
                assert_eq!(found, Some(head.len()), "{first}");
                assert_eq!(early.is_some(), first >= head.len(), "{first}");
            }
        }
        assert_eq!(end(b"GET / HTTP/1.1\r\na: b\r\n", &mut 0), None);
    }

    #[test]
    fn lines_are_found_by_their_names_in_whatever_case() {
        let bytes =
            b"GET /p HTTP/1.1\r\nHost: h\r\nConnection: a , B\r\nCONNECTION: \xff,c\r\n\r\n";
        let mut storage = storage();
        let head = RequestHead::parse(bytes, &mut storage).unwrap();
        assert_eq!((head.method, head.target, head.is_1_1), ("GET", "/p", true));
        assert_eq!(head.lines.first("host"), Some(&b"h"[..]));
        let tokens: Vec<_> = head.lines.tokens("connection").collect();
        assert_eq!(tokens, [&b"a"[..], b"B", b"\xff", b"c"]);
        assert!(head.lines.has_token("connection", "b") && !head.lines.has("upgrade"));
    }

    #[test]
    fn what_is_no_head_is_told_from_what_is_too_much() {
        let error = |bytes: &[u8]| {
            RequestHead::parse(bytes, &mut storage())
                .map(drop)
                .unwrap_err()
        };
        let many = "x: 1\r\n".repeat(LINES_MAX + 1);
        let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
        assert_eq!(error(many.as_bytes()), HeadError::TooLarge);
        assert_eq!(error(b"GET / HTTP/1.1\r\nx: 1\r\n"), HeadError::TooLarge);
        assert_eq!(error(b"PRI * HTTP/2.0\r\n\r\n"), HeadError::Version);
        assert_eq!(error(b"SSH-2.0-x\r\n\r\n"), HeadError::Malformed);
        assert_eq!(
            error(b"GET / HTTP/1.1\r\nx : 1\r\n\r\n"),
            HeadError::Malformed
        );
    }
}
