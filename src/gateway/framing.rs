//! Where a message's body ends (RFC 9112, section 6 and 7). Pure: bytes in, parts out.
//!
//! Chunks are read strictly, since what we pass on as it came another reader must not
//! be able to understand in another way: every line ends in CRLF.

use super::head::{Lines, RequestHead, ResponseHead};

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunks of a body cannot be read")]
pub struct Malformed;

/// Bytes that chunk extensions of one body may have.
const EXTENSION_BYTES_MAX: usize = 16 * 1_024;
/// Bytes that trailers may have.
const TRAILER_BYTES_MAX: usize = 16 * 1_024;

/// Why it cannot be told where the body of a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LengthError {
    /// Two readers could come to two lengths.
    #[error("it is not certain how long its body is")]
    Ambiguous,
    /// By a transfer coding that is not understood here.
    #[error("the only transfer coding that is understood here is chunked")]
    Coding,
}

/// How much of a body is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks, each with its length.
    Chunked(Chunks),
    /// All that comes until the connection is closed.
    ToEnd,
}

/// What some bytes of a body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They say how long it is.
    Frame,
    /// The content.
    Data,
    /// Header lines behind the content.
    Trailer,
}

/// The first bytes of what was looked at: of one kind, and at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What they are.
    pub kind: Kind,
    /// How many.
    pub length: usize,
}

impl Framing {
    /// There is no body.
    pub const NONE: Self = Self::Length(0);

    /// A body in chunks.
    #[must_use]
    pub fn chunked() -> Self {
        Self::Chunked(Chunks::default())
    }

    /// Where the body of a request ends.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn of_request(head: &RequestHead<'_>) -> Result<Self, LengthError> {
        if !head.is_1_1 && head.lines.has("transfer-encoding") {
            return Err(LengthError::Ambiguous);
        }
        Ok(by_lines(head.lines)?.unwrap_or(Self::NONE))
    }

    /// Where the body of the response to a request with `method` ends.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn of_response(head: &ResponseHead<'_>, is_head: bool) -> Result<Self, LengthError> {
        if is_head || head.status < 200 || [204, 304].contains(&head.status) {
            return Ok(Self::NONE);
        }
        Ok(by_lines(head.lines)?.unwrap_or(Self::ToEnd))
    }

    /// Has all of it been seen? What comes to the end of the connection is not known
    /// to end before.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => matches!(chunks.state, State::Done),
            Self::ToEnd => false,
        }
    }

    /// What the first of these bytes are; they have then been seen. None when all of
    /// the body had been seen before, or there are no bytes.
    ///
    /// # Errors
    /// When they cannot be read. Nothing after them can be.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Option<Part>, Malformed> {
        if self.is_done() || bytes.is_empty() {
            return Ok(None);
        }
        let data = |length| Part {
            kind: Kind::Data,
            length,
        };
        match self {
            Self::ToEnd => Ok(Some(data(bytes.len()))),
            Self::Length(left) => Ok(Some(data(take(left, bytes.len())))),
            Self::Chunked(chunks) => chunks.next(bytes).map(Some),
        }
    }

    /// How many of these bytes belong to the body, whatever they are; they have then
    /// been seen.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn all(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut length = 0;
        while let Some(part) = self.next(bytes.get(length..).unwrap_or_default())? {
            length += part.length;
        }
        Ok(length)
    }
}

/// Chunks count, whatever length stands beside them.
fn by_lines(lines: Lines<'_>) -> Result<Option<Framing>, LengthError> {
    let mut codings = lines.tokens("transfer-encoding");
    if let Some(first) = codings.next() {
        let (others, last) = codings.fold((0, first), |(others, _), coding| (others + 1, coding));
        if !last.eq_ignore_ascii_case(b"chunked") {
            return Err(LengthError::Ambiguous);
        }
        let is_alone = others == 0;
        return is_alone
            .then(|| Some(Framing::chunked()))
            .ok_or(LengthError::Coding);
    }
    let mut lengths = lines.all("content-length");
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    // A sign or a space would be read by some and not by others.
    let is_number = !first.is_empty() && first.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(first)
        .ok()
        .and_then(|it| it.parse().ok());
    match length {
        Some(length) if is_number && lengths.all(|other| other == first) => {
            Ok(Some(Framing::Length(length)))
        }
        _ => Err(LengthError::Ambiguous),
    }
}

/// Take as many of `there` as are `left`.
fn take(left: &mut u64, there: usize) -> usize {
    let taken = usize::try_from(*left).map_or(there, |left| left.min(there));
    *left -= taken as u64;
    taken
}

/// Where in a chunked body we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a length.
    #[default]
    Begin,
    /// Behind a digit of it.
    Size(u64),
    /// In what may stand behind a length.
    Extension(u64),
    /// Behind the CR of the line with a length.
    SizeEnd(u64),
    /// So many bytes of content are left.
    Data(u64),
    /// Behind a chunk's content.
    DataEnd,
    /// Behind its CR.
    DataEndLine,
    /// Where a line of the trailer may begin.
    TrailerBegin,
    /// In one.
    Trailer,
    /// Behind its CR.
    TrailerLine,
    /// Behind the CR of the last, empty line.
    End,
    Done,
}

impl Chunks {
    fn next(&mut self, bytes: &[u8]) -> Result<Part, Malformed> {
        if let State::Data(left) = &mut self.state {
            let length = take(left, bytes.len());
            if *left == 0 {
                self.state = State::DataEnd;
            }
            let kind = Kind::Data;
            return Ok(Part { kind, length });
        }
        let is_in_trailer = |state: State, byte: u8| {
            matches!(state, State::Trailer | State::TrailerLine)
                || (state == State::TrailerBegin && byte != b'\r')
        };
        let begins_in_trailer = bytes
            .first()
            .is_some_and(|byte| is_in_trailer(self.state, *byte));
        let mut length = 0;
        for byte in bytes {
            let is_done = matches!(self.state, State::Data(_) | State::Done);
            if is_done || is_in_trailer(self.state, *byte) != begins_in_trailer {
                break;
            }
            self.state = self.after(*byte)?;
            length += 1;
        }
        let kind = if begins_in_trailer {
            Kind::Trailer
        } else {
            Kind::Frame
        };
        Ok(Part { kind, length })
    }

    /// Where we are behind `byte`, which is no content.
    fn after(&mut self, byte: u8) -> Result<State, Malformed> {
        let is_text = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        Ok(match (self.state, byte) {
            (State::Begin, _) => State::Size(digit(byte)?),
            (State::Size(size), b'\r') | (State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Size(size), b';' | b' ' | b'\t') => State::Extension(size),
            (State::Size(size), _) => {
                let size = size.checked_mul(16).ok_or(Malformed)?;
                State::Size(size | digit(byte)?)
            }
            (State::Extension(size), _) if is_text => {
                count(&mut self.extension_bytes, EXTENSION_BYTES_MAX)?;
                State::Extension(size)
            }
            (State::SizeEnd(0), b'\n') | (State::TrailerLine, b'\n') => State::TrailerBegin,
            (State::SizeEnd(size), b'\n') => State::Data(size),
            (State::DataEnd, b'\r') => State::DataEndLine,
            (State::DataEndLine, b'\n') => State::Begin,
            (State::TrailerBegin, b'\r') => State::End,
            (State::TrailerBegin, b' ' | b'\t' | b':') => return Err(Malformed),
            (State::Trailer, b'\r') => State::TrailerLine,
            (State::TrailerBegin | State::Trailer, _) if is_text => {
                count(&mut self.trailer_bytes, TRAILER_BYTES_MAX)?;
                State::Trailer
            }
            (State::End, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }
}

fn digit(byte: u8) -> Result<u64, Malformed> {
    let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
    Ok(u64::from(digit))
}

fn count(bytes: &mut usize, most: usize) -> Result<(), Malformed> {
    *bytes += 1;
    (*bytes <= most).then_some(()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content and the trailers of a body that comes in pieces of these lengths,
    /// and how many bytes it had; `None` if it has not ended.
    fn read(bytes: &[u8], piece: usize) -> Result<Option<(String, String, usize)>, Malformed> {
        let (mut framing, mut seen) = (Framing::chunked(), 0);
        let (mut content, mut trailers) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            let mut rest = piece;
            while let Some(part) = framing.next(rest)? {
                let (these, others) = rest.split_at(part.length);
                match part.kind {
                    Kind::Frame => {}
                    Kind::Data => content.extend_from_slice(these),
                    Kind::Trailer => trailers.extend_from_slice(these),
                }
                seen += part.length;
                rest = others;
            }
        }
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(framing
            .is_done()
            .then(|| (text(&content), text(&trailers), seen)))
    }

    #[test]
    fn a_chunked_body_is_read_whatever_pieces_it_comes_in() {
        let body =
            b"5;a=\"b\"\r\nhello\r\n00B \r\n, you there\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\nGET /next";
        for piece in 1..body.len() {
            let expected = (
                "hello, you there".to_owned(),
                "x-sum: 1\r\ny: 2\r\n".to_owned(),
                body.len() - 9,
            );
            assert_eq!(read(body, piece), Ok(Some(expected)), "{piece}");
        }
        assert_eq!(
            read(b"0\r\n\r\n", 1),
            Ok(Some((String::new(), String::new(), 5)))
        );
    }

    #[test]
    fn what_another_could_read_in_another_way_is_not_read_at_all() {
        for body in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloo\r\n0\r\n\r\n",
            "\r\n5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            " 5\r\nhello\r\n",
            ";a\r\n",
            "5;a\nb\r\nhello\r\n",
            "5;a\rb\r\nhello\r\n",
            "5;\0\r\nhello\r\n",
            "5_\r\nhello\r\n",
            "10000000000000000\r\nhello\r\n",
            "0\r\n folded: 1\r\n\r\n",
            "0\r\n: 1\r\n\r\n",
            "0\r\nx: 1\n\r\n",
            "0\r\n\n",
        ] {
            assert_eq!(read(body.as_bytes(), 3), Err(Malformed), "{body:?}");
        }
    }

    #[test]
    fn what_says_how_long_a_body_is_cannot_be_endless() {
        let mut extended = b"5;".to_vec();
        extended.resize(EXTENSION_BYTES_MAX + 3, b'x');
        assert_eq!(read(&extended, 1_000), Err(Malformed));
        let mut trailed = b"0\r\n".to_vec();
        (0..3_000).for_each(|_| trailed.extend_from_slice(b"x: 12345\r\n"));
        assert_eq!(read(&trailed, 1_000), Err(Malformed));
    }

    #[test]
    fn a_length_is_as_long_as_it_says_and_the_rest_is_the_next_messages() {
        let mut framing = Framing::Length(5);
        assert_eq!(framing.all(b"hel"), Ok(3));
        assert!(!framing.is_done());
        assert_eq!(framing.all(b"lo, GET /"), Ok(2));
        assert!(framing.is_done());
        assert_eq!(framing.all(b"GET /"), Ok(0));
        assert!(Framing::NONE.is_done());
        assert_eq!(Framing::ToEnd.all(b"hello"), Ok(5));
    }

    proptest! {
        #[test]
        fn any_content_in_any_chunks_comes_out_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            piece in 1_usize..50,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let content = String::from_utf8_lossy(&chunks.concat()).into_owned();
            let length = body.len();
            body.extend_from_slice(b"more");
            prop_assert_eq!(read(&body, piece), Ok(Some((content, String::new(), length))));
        }
    }
}
