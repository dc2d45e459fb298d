//! What a server tells of what it does, for whoever counts it.

use std::time::Duration;

use crate::{
    Transport,
    wire::{self, Header},
};

/// Whoever is told what becomes of queries.
pub trait Observer: Send + Sync {
    /// Takes an event. Must not block: the server waits.
    fn observe(&self, event: &Event);
}

/// What may be told of a query without a bound on how many kinds there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// The name of the type that it asks for, `unknown` if that is none of the usual ones.
    pub kind: &'static str,
    /// What it came by.
    pub transport: Transport,
}

impl Query {
    pub(crate) fn of(bytes: &[u8], transport: Transport) -> Self {
        let kind = Header::read(bytes).and_then(|header| wire::kind(bytes, &header));
        Self {
            kind: kind.map_or("unknown", kind_name),
            transport,
        }
    }
}

/// Something has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A query has come.
    Asked(Query),
    /// A query was sent on to a nameserver.
    Forwarded(Query),
    /// A nameserver has answered.
    Took {
        /// The query.
        query: Query,
        /// How long it took.
        took: Duration,
    },
    /// No nameserver has answered.
    Failed {
        /// The query.
        query: Query,
        /// Why.
        failure: Failure,
    },
    /// The client was answered.
    Answered {
        /// The query.
        query: Query,
        /// By whom.
        source: Source,
        /// The answer's code, in words ([`code_name`]).
        code: &'static str,
    },
    /// Nothing is said to the client.
    Dropped(Dropped),
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The mesh's state.
    Mesh,
    /// A nameserver.
    Upstream,
    /// The server itself, because the network says that no nameserver is there.
    Server,
}

impl Source {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Upstream => "upstream",
            Self::Server => "server",
        }
    }
}

/// Why no nameserver has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// None can be reached.
    Unreachable,
    /// None has said anything in time.
    Silent,
}

impl Failure {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
        }
    }
}

/// Why nothing is said to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dropped {
    /// It is no query.
    NoQuery,
    /// The mesh is not known yet, and the name may be one of it.
    NotReady,
    /// As many queries as may wait for nameservers do so already.
    Busy,
    /// Its nameserver says nothing either.
    Silent,
    /// The client takes no more.
    Full,
}

impl Dropped {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoQuery => "no_query",
            Self::NotReady => "not_ready",
            Self::Busy => "busy",
            Self::Silent => "silent",
            Self::Full => "full",
        }
    }
}

/// The name of a type ([IANA's]), one of [`KINDS`]: `unknown` for what is rarely asked for.
///
/// [IANA's]: https://www.iana.org/assignments/dns-parameters/dns-parameters.xhtml#dns-parameters-4
pub fn kind_name(kind: u16) -> &'static str {
    let at = NUMBERS.binary_search(&kind).unwrap_or(NUMBERS.len());
    KINDS[at]
}

/// Every name that [`kind_name`] gives.
pub const KINDS: [&str; 22] = [
    "A", "NS", "CNAME", "SOA", "PTR", "MX", "TXT", "AAAA", "SRV", "NAPTR", "DS", "SSHFP", "RRSIG", "DNSKEY", "TLSA", "SVCB", "HTTPS",
    "IXFR", "AXFR", "ANY", "CAA", "unknown",
];

/// The types of the names, in their order.
const NUMBERS: [u16; 21] = [1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 43, 44, 46, 48, 52, 64, 65, 251, 252, 255, 257];

/// The name of an answer's code ([IANA's]), without what EDNS adds to it.
///
/// [IANA's]: https://www.iana.org/assignments/dns-parameters/dns-parameters.xhtml#dns-parameters-6
pub fn code_name(code: u8) -> &'static str {
    match code {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_their_names() {
        assert!(NUMBERS.is_sorted());
        for (kind, name) in [
            (1, "A"),
            (28, "AAAA"),
            (33, "SRV"),
            (65, "HTTPS"),
            (252, "AXFR"),
            (257, "CAA"),
            (0, "unknown"),
            (65_535, "unknown"),
        ] {
            assert_eq!(kind_name(kind), name);
        }
    }
}
