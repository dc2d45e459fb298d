//! CONNECT (RFC 9113 8.5): its request and its answer as header lists, written and read.

use ambient_core::{Authority, AuthorityError};
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::hpack::{self, FIELD_OVERHEAD, names};

/// Writes the header block that asks for a connection to `authority`.
pub(crate) fn write_request(out: &mut BytesMut, authority: &Authority, headers: &HeaderMap) {
    hpack::literal_named(out, names::METHOD, b"CONNECT");
    hpack::literal_named(out, names::AUTHORITY, authority.to_string().as_bytes());
    write_headers(out, headers);
}

/// Writes the header block of an answer.
pub(crate) fn write_answer(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    match status {
        StatusCode::OK => hpack::indexed(out, names::STATUS_200),
        other => hpack::literal_named(out, names::STATUS, other.as_str().as_bytes()),
    }
    write_headers(out, headers);
}

fn write_headers(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        hpack::literal(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// A request that a peer sent.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) authority: Authority,
    pub(crate) headers: HeaderMap,
}

/// An answer that a peer sent.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Why a header list is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It breaks the rules of HTTP/2, so that the stream must be reset (RFC 9113 8.1.1).
    Malformed,
    /// It is larger than was allowed. 431 is the answer (RFC 6585 5).
    TooLarge,
    /// It is a request, but none for a connection to a host and port. 400 is the answer.
    Unfit(MalformedRequest),
}

/// Gathers a header list, field by field, within a bound.
#[derive(Debug)]
pub(crate) struct FieldList {
    headers: HeaderMap,
    pseudo: [Option<Box<[u8]>>; PSEUDO.len()],
    size: usize,
    limit: usize,
    malformed: bool,
}

/// Pseudo-header fields, in the order in which they are kept.
const PSEUDO: [&[u8]; 6] = [b":method", b":authority", b":scheme", b":path", b":protocol", b":status"];
const STATUS: usize = 5;

/// Fields that speak of a connection of HTTP/1.1: a list that bears one is malformed (RFC 9113 8.2.2).
const OF_CONNECTIONS: [&str; 5] = ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"];

impl FieldList {
    /// An empty list that takes `limit` bytes, counted as in RFC 9113 6.5.2.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            headers: HeaderMap::new(),
            pseudo: Default::default(),
            size: 0,
            limit,
            malformed: false,
        }
    }

    /// Takes a field; once the list is too large or malformed nothing more is kept.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.size = self.size.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
        if self.size > self.limit || self.malformed {
            return;
        }
        if name.first() == Some(&b':') {
            let known = PSEUDO.iter().position(|pseudo| *pseudo == name);
            // None after a regular field, none twice, none that is not known (RFC 9113 8.3).
            match known.filter(|_| self.headers.is_empty()).map(|index| &mut self.pseudo[index]) {
                Some(place @ None) => *place = Some(value.into()),
                _ => self.malformed = true,
            }
            return;
        }
        match (HeaderName::from_lowercase(name), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(value)) if is_fit(&name, &value) => drop(self.headers.append(name, value)),
            _ => self.malformed = true,
        }
    }

    /// What the list asks for.
    pub(crate) fn into_request(mut self) -> Result<Request, Refused> {
        self.judge()?;
        let [Some(method), authority, scheme, path, protocol, status] = self.pseudo else {
            return Err(Refused::Malformed);
        };
        if protocol.is_some() || status.is_some() {
            return Err(Refused::Malformed);
        }
        if *method != *b"CONNECT" {
            // Methods are the peer's text: at most 16 characters of it are repeated.
            let method = String::from_utf8_lossy(&method).chars().take(16).collect();
            return Err(Refused::Unfit(MalformedRequest::Method { method }));
        }
        if scheme.is_some() || path.is_some() {
            return Err(Refused::Malformed);
        }
        let authority = authority.ok_or(Refused::Unfit(MalformedRequest::NoAuthority))?;
        let authority = String::from_utf8_lossy(&authority).parse();
        Ok(Request {
            authority: authority.map_err(|source| Refused::Unfit(MalformedRequest::Authority { source }))?,
            headers: std::mem::take(&mut self.headers),
        })
    }

    /// What the list answers.
    pub(crate) fn into_answer(mut self) -> Result<Answer, Refused> {
        self.judge()?;
        let status = self.pseudo[STATUS].take().ok_or(Refused::Malformed)?;
        if self.pseudo.iter().any(Option::is_some) {
            return Err(Refused::Malformed);
        }
        Ok(Answer {
            status: StatusCode::from_bytes(&status).map_err(|_| Refused::Malformed)?,
            headers: self.headers,
        })
    }

    /// Whether it may stand behind the data of a stream.
    pub(crate) fn is_trailers(&self) -> bool {
        !self.malformed && self.pseudo.iter().all(Option::is_none)
    }

    fn judge(&self) -> Result<(), Refused> {
        if self.malformed {
            return Err(Refused::Malformed);
        }
        if self.size > self.limit {
            return Err(Refused::TooLarge);
        }
        Ok(())
    }
}

fn is_fit(name: &HeaderName, value: &HeaderValue) -> bool {
    !OF_CONNECTIONS.contains(&name.as_str()) && (name.as_str() != "te" || value == "trailers")
}

/// A request that is not a CONNECT to a host and port. It is answered 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedRequest {
    /// The method is not CONNECT.
    #[error("expected method CONNECT, got {method}")]
    Method {
        /// What it sent.
        method: String,
    },
    /// There is no `:authority`.
    #[error("the peer's CONNECT names no authority")]
    NoAuthority,
    /// The `:authority` is not `host:port`.
    #[error("the peer's CONNECT names what cannot be connected to: {source}")]
    Authority {
        /// What is wrong with it.
        source: AuthorityError,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(fields: &[(&str, &str)]) -> FieldList {
        let mut list = FieldList::new(1 << 14);
        for (name, value) in fields {
            list.add(name.as_bytes(), value.as_bytes());
        }
        list
    }

    fn read(block: &[u8]) -> FieldList {
        let mut list = FieldList::new(1 << 14);
        hpack::Decoder::default()
            .decode(block, |name, value| list.add(name, value))
            .unwrap();
        list
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for text in ["10.0.0.1:8080", "[fd00::1]:15008", "web.shop.svc.cluster.local:80", "a:65535"] {
            let authority: Authority = text.parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("baggage", "k8s.namespace.name=shop".parse().unwrap());
            headers.append("baggage", "service.name=cart".parse().unwrap());
            let mut block = BytesMut::new();
            write_request(&mut block, &authority, &headers);
            let request = read(&block).into_request().unwrap();
            assert_eq!((request.authority, request.headers), (authority, headers));
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for status in [200, 204, 401, 503, 999] {
            let status = StatusCode::from_u16(status).unwrap();
            let mut block = BytesMut::new();
            write_answer(&mut block, status, &HeaderMap::new());
            assert_eq!(read(&block).into_answer().unwrap().status, status);
        }
    }

    #[test]
    fn what_is_no_connect_is_unfit() {
        let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:80")];
        let unfit = |fields: &[(&str, &str)]| match list(fields).into_request() {
            Err(Refused::Unfit(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(unfit(&get), MalformedRequest::Method { method: "GET".into() });
        assert_eq!(unfit(&[(":method", "CONNECT")]), MalformedRequest::NoAuthority);
        for authority in ["a", "user@a:80", "a:0", "10.0.0:80", "a:80/x", ""] {
            let reason = unfit(&[(":method", "CONNECT"), (":authority", authority)]);
            assert!(matches!(reason, MalformedRequest::Authority { .. }), "{authority}");
        }
    }

    #[test]
    fn what_breaks_the_rules_is_malformed() {
        let connect = [(":method", "CONNECT"), (":authority", "a:80")];
        let wrong = [
            (":scheme", "https"),
            (":path", "/"),
            (":protocol", "websocket"),
            (":status", "200"),
            (":method", "CONNECT"),
            (":odd", "x"),
            ("Upper", "x"),
            ("", "x"),
            ("connection", "close"),
            ("te", "gzip"),
            ("x", "a\nb"),
        ];
        assert!(list(&connect).into_request().is_ok());
        for field in wrong {
            let fields = [connect.as_slice(), &[field]].concat();
            assert_eq!(list(&fields).into_request().unwrap_err(), Refused::Malformed, "{field:?}");
        }
        let late = [(":method", "CONNECT"), ("x", "y"), (":authority", "a:80")];
        assert_eq!(list(&late).into_request().unwrap_err(), Refused::Malformed);
        assert_eq!(list(&[]).into_request().unwrap_err(), Refused::Malformed);
        for answer in [&[][..], &[(":status", "20")], &[(":status", "200"), (":path", "/")]] {
            assert_eq!(list(answer).into_answer().unwrap_err(), Refused::Malformed);
        }
    }

    #[test]
    fn a_list_has_a_bound() {
        let long = "x".repeat((1 << 14) - FIELD_OVERHEAD - 1);
        assert_eq!(list(&[("x", &long)]).headers.len(), 1);
        let mut over = list(&[("x", &long)]);
        over.add(b"", b"");
        assert_eq!(over.into_request().unwrap_err(), Refused::TooLarge);
    }

    proptest! {
        #[test]
        fn reading_never_panics(fields in proptest::collection::vec(("[:a-zA-Z]{0,12}", "\\PC{0,60}"), 0..6)) {
            let mut list = FieldList::new(200);
            for (name, value) in &fields {
                list.add(name.as_bytes(), value.as_bytes());
            }
            let _ = list.into_request();
        }
    }
}
