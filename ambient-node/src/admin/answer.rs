//! What is asked, and what is answered: whole, or piece by piece with a bound on what waits.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    pin::Pin,
    task::{Context as Waker, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";
pub(crate) const JSON: &str = "application/json";

const OPEN_METRICS: &str = "application/openmetrics-text";

/// Bytes of a piece.
const PIECE: usize = 32 << 10;
/// Pieces that wait for the client.
const WAITING: usize = 2;

/// What was asked of a page.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// GET or POST.
    pub(crate) method: Method,
    query: BTreeMap<String, String>,
    /// Whether the client says that it reads OpenMetrics.
    pub(super) open_metrics: bool,
}

impl Asked {
    pub(super) fn new(method: Method, query: Option<&str>, headers: &HeaderMap) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        });
        Self {
            method,
            query: query.collect(),
            open_metrics: accepts(headers, OPEN_METRICS),
        }
    }

    /// A value of the query; empty text where only the name is given.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

/// Whether a kind of content is named among those that a client accepts, however much it prefers others.
fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    let all = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut named = all.flat_map(|value| value.split(',')).filter_map(|range| range.split(';').next());
    named.any(|named| named.trim().eq_ignore_ascii_case(kind))
}

/// Percent-decoded, as RFC 3986 writes it; a `+` is a space, as HTML forms write one. What is no UTF-8 is replaced.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let (value, length) = match (byte, digit(at + 1), digit(at + 2)) {
            // Two digits of four bits each.
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, 3),
            (b'+', ..) => (b' ', 1),
            _ => (*byte, 1),
        };
        out.push(value);
        at += length;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Writes a body, piece by piece.
type WriteBody = Box<dyn FnOnce(&mut Out) -> io::Result<()> + Send>;

/// What a page answers.
pub(crate) struct Answer {
    status: StatusCode,
    kind: &'static str,
    content: Content,
}

enum Content {
    Whole(String),
    Stream(WriteBody),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Answer {
    /// A text.
    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::whole(status, PLAIN, text)
    }

    /// A whole body of any kind.
    pub(crate) fn whole(status: StatusCode, kind: &'static str, text: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            content: Content::Whole(text.into()),
        }
    }

    /// A body that is written piece by piece, on a thread that may block. An error of it, or of the client, ends it; the
    /// client sees a body that was cut off, never one that looks complete.
    pub(crate) fn stream(kind: &'static str, write: impl FnOnce(&mut Out) -> io::Result<()> + Send + 'static) -> Self {
        Self {
            status: StatusCode::OK,
            kind,
            content: Content::Stream(Box::new(write)),
        }
    }

    /// Needs a runtime: a stream is written on one of its blocking threads.
    pub(super) fn into_response(self) -> Response<Sent> {
        let sent = match self.content {
            Content::Whole(text) => Sent::Whole(Some(text.into())),
            Content::Stream(write) => {
                let (pieces, coming) = mpsc::channel(WAITING);
                tokio::task::spawn_blocking(move || {
                    let mut out = Out {
                        piece: BytesMut::with_capacity(PIECE),
                        pieces,
                    };
                    let written = write(&mut out).and_then(|()| out.end());
                    if let Err(error) = written {
                        // Most often a client that has gone away.
                        tracing::debug!(%error, "a page was not written to its end");
                    }
                });
                Sent::Stream(coming)
            }
        };
        let mut response = Response::new(sent);
        *response.status_mut() = self.status;
        let kind = header::HeaderValue::from_static(self.kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// Where a body is written to; blocks while the client is slower.
#[derive(Debug)]
pub(crate) struct Out {
    piece: BytesMut,
    pieces: mpsc::Sender<Piece>,
}

#[derive(Debug)]
pub(super) enum Piece {
    Of(Bytes),
    /// The body is whole with it. Without it, it was cut off.
    ///
    /// The end has something to come along with: hyper 1.12 may leave a close undone that is all there is to tell of an end, as it is
    /// to a client that speaks HTTP/1.0, and that comes by itself between two of its looks.
    Last(Bytes),
}

impl Out {
    fn send(&mut self) -> io::Result<()> {
        let piece = self.piece.split().freeze();
        self.piece.reserve(PIECE);
        self.pieces.blocking_send(Piece::Of(piece)).map_err(gone)
    }

    fn end(&mut self) -> io::Result<()> {
        self.pieces.blocking_send(Piece::Last(self.piece.split().freeze())).map_err(gone)
    }
}

fn gone(_: mpsc::error::SendError<Piece>) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone away, or took too long")
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A piece goes once there is something for the next, so that the last is never empty.
        if self.piece.len() >= PIECE && !bytes.is_empty() {
            self.send()?;
        }
        let room = PIECE.saturating_sub(self.piece.len());
        let taken = &bytes[..bytes.len().min(room)];
        self.piece.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The body of a response.
#[derive(Debug)]
pub(super) enum Sent {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Piece>),
    /// All of it.
    Ended,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = self.get_mut();
        let coming = match body {
            Self::Whole(text) => return Poll::Ready(text.take().filter(|text| !text.is_empty()).map(|text| Ok(Frame::data(text)))),
            Self::Ended => return Poll::Ready(None),
            Self::Stream(coming) => coming,
        };
        Poll::Ready(match ready!(coming.poll_recv(waker)) {
            Some(Piece::Of(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::Last(bytes)) => {
                *body = Self::Ended;
                Some(Ok(Frame::data(bytes)))
            }
            None => Some(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the page was not written to its end",
            ))),
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_forms_write_it() {
        let asked = Asked::new(
            Method::GET,
            Some("from=shop%2Fcart-0&to=10.0.0.2%3a80&reset&x=a+b%zz&&"),
            &HeaderMap::new(),
        );
        assert_eq!(asked.value("from"), Some("shop/cart-0"));
        assert_eq!(asked.value("to"), Some("10.0.0.2:80"));
        assert_eq!(asked.value("reset"), Some(""));
        assert_eq!(asked.value("x"), Some("a b%zz"));
        assert_eq!(asked.value("none"), None);
        assert_eq!(Asked::new(Method::GET, None, &HeaderMap::new()).value(""), None);
    }

    /// How long the pieces of a body of so many bytes are, and after which of them it says that it has ended.
    async fn pieces(length: usize) -> Vec<(usize, bool)> {
        use http_body_util::BodyExt as _;
        let answer = Answer::stream(PLAIN, move |out| out.write_all(&vec![b'x'; length]));
        let (mut body, mut pieces) = (answer.into_response().into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            pieces.push((frame.unwrap().into_data().unwrap().len(), body.is_end_stream()));
        }
        pieces
    }

    #[tokio::test]
    async fn the_end_comes_with_the_last_of_a_stream() {
        assert_eq!(pieces(1).await, [(1, true)]);
        assert_eq!(pieces(PIECE).await, [(PIECE, true)]);
        assert_eq!(pieces(PIECE + 1).await, [(PIECE, false), (1, true)]);
        assert_eq!(pieces(2 * PIECE).await, [(PIECE, false), (PIECE, true)]);
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_is_an_error() {
        use http_body_util::BodyExt as _;
        let whole = Answer::stream(PLAIN, |out| out.write_all(&[b'x'; 3 * PIECE]));
        let body = whole.into_response().into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes().len(), 3 * PIECE);
        let torn = Answer::stream(PLAIN, |out| {
            out.write_all(&[b'x'; 2 * PIECE])?;
            Err(io::Error::other("no more"))
        });
        assert!(torn.into_response().into_body().collect().await.is_err());
    }
}
