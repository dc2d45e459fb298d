//! Why a pod is not captured. The texts are for people; for programs there are codes, which stay as they are.

use std::{fmt::Display, io, net::IpAddr, time::Duration};

use super::Step;
use crate::{
    ProxyError,
    linux::{ApplyError, NetnsError, NetnsId},
};

/// Why a pod has no network namespace. Exhaustive, so that who says what to do about each forgets none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpaired {
    /// It is not known yet which there are, or which addresses they have had since it was told of.
    #[error("no network namespace has been looked into yet")]
    NotLooked,
    /// Its status has no address.
    #[error("it has no address yet")]
    NoAddress,
    /// An address that every namespace has.
    #[error("{0} is no pod's address")]
    NotAPods(IpAddr),
    /// None has its addresses.
    #[error("no network namespace with its addresses is to be seen")]
    Nowhere,
    /// None of those that were looked into has, and this kept one from being looked into.
    #[error("no network namespace with its addresses is to be seen; not every one can be looked into: {0}")]
    Unseen(Cause),
    /// Another pod claims the same address.
    #[error("{pod} has the same address {address}{}", and_the(*namespace))]
    SameAddress {
        /// The other pod.
        pod: String,
        /// The address.
        address: IpAddr,
        /// The namespace, where the other has it already.
        namespace: Option<NetnsId>,
    },
    /// The one with its address is that of a pod that leaves.
    #[error("the namespace {namespace} with its address {address} is being let go by another pod")]
    LetGo {
        /// The namespace.
        namespace: NetnsId,
        /// The address.
        address: IpAddr,
    },
    /// Its own is; or what was left in it is being taken away.
    #[error("its namespace is being let go by another pod")]
    OwnLetGo,
    /// The one with its address was another's a moment ago.
    #[error("its namespace served another pod until now")]
    JustLeft,
    /// There are two that could be its own.
    #[error("two namespaces, {0} and {1}, have its address")]
    Two(NetnsId, NetnsId),
    /// The one with its address was there already when another went that had it too, which may have been its own.
    #[error("the namespace {0} has its address, and was there already when another went that had it: it may be somebody else's")]
    Doubtful(NetnsId),
    /// Another pod's processes run in the one with its address.
    #[error("the namespace {namespace} with its address is that of {pod}, whose processes run in it")]
    Anothers {
        /// The namespace.
        namespace: NetnsId,
        /// The other pod.
        pod: String,
    },
    /// The one with one of its addresses has not all of them.
    #[error("the namespace {namespace} lacks its address {missing}")]
    Lacks {
        /// The namespace.
        namespace: NetnsId,
        /// What is not in it.
        missing: IpAddr,
    },
}

/// Why something that is done for a pod fails. Exhaustive, as [`Unpaired`] is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// This process may not do what it has to.
    #[error("{0}")]
    Rights(String),
    /// Processes are kept from this one that may be the pod's.
    #[error("{0}")]
    Hidden(String),
    /// The pod has an IPv6 address where IPv6 is not captured.
    #[error("it has the address {0}, and IPv6 is not captured here")]
    Ipv6(IpAddr),
    /// A table of our name is somebody else's.
    #[error("{0}")]
    ForeignTable(String),
    /// A port of the proxy's is another's.
    #[error("{0}")]
    PortTaken(String),
    /// What is to come back to the proxy is routed elsewhere by rules or routes of somebody else's.
    #[error("{0}")]
    Diverted(String),
    /// What is to serve the pod is not there.
    #[error("{0}")]
    NoProxy(String),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Why a pod cannot be captured, or let go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Refusal {
    /// What failed.
    pub step: Step,
    /// Why.
    pub why: Cause,
}

impl Unpaired {
    /// Its name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotLooked => "not-looked",
            Self::NoAddress => "no-address",
            Self::NotAPods(_) => "not-a-pods-address",
            Self::Nowhere => "no-namespace",
            Self::Unseen(_) => "namespace-unseen",
            Self::SameAddress { .. } => "same-address",
            Self::LetGo { .. } | Self::OwnLetGo => "namespace-let-go",
            Self::JustLeft => "namespace-just-left",
            Self::Two(..) => "two-namespaces",
            Self::Doubtful(_) => "doubtful-namespace",
            Self::Anothers { .. } => "anothers-namespace",
            Self::Lacks { .. } => "address-missing",
        }
    }
}

impl Refusal {
    /// Its name for programs: of the cause where that is one to be known by, else of the step.
    pub fn code(&self) -> &'static str {
        match self.why {
            Cause::Rights(_) => "rights-missing",
            Cause::Hidden(_) => "processes-hidden",
            Cause::Ipv6(_) => "ipv6-not-captured",
            Cause::ForeignTable(_) => "foreign-table",
            Cause::PortTaken(_) => "port-taken",
            Cause::Diverted(_) => "replies-diverted",
            Cause::NoProxy(_) => "no-proxy",
            Cause::Late(_) => "no-answer",
            Cause::Other(_) => self.step.code(),
        }
    }
}

impl Cause {
    /// What a proof says. A connection that the pod's own rules drop fails as if a right were missing: only one to enter its
    /// namespace can be.
    pub(crate) fn of_proof(error: &io::Error) -> Self {
        let entering = error.get_ref().is_some_and(|inner| inner.is::<NetnsError>());
        let lacks = entering && error.kind() == io::ErrorKind::PermissionDenied;
        if lacks {
            Self::Rights(error.to_string())
        } else {
            Self::Other(error.to_string())
        }
    }

    fn of_kind(kind: io::ErrorKind, text: &dyn Display) -> Self {
        let text = text.to_string();
        match kind {
            io::ErrorKind::PermissionDenied => Self::Rights(text),
            io::ErrorKind::AddrInUse => Self::PortTaken(text),
            io::ErrorKind::NotConnected => Self::NoProxy(text),
            _ => Self::Other(text),
        }
    }
}

impl From<ApplyError> for Cause {
    fn from(error: ApplyError) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Foreign { .. } => Self::ForeignTable(text),
            ApplyError::Kernel(kernel) if kernel.forbidden() => Self::Rights(text),
            ApplyError::Netns(NetnsError::Enter { source, .. } | NetnsError::Open { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Self::Rights(text)
            }
            ApplyError::Kernel(_) | ApplyError::Netns(_) => Self::Other(text),
        }
    }
}

impl From<ProxyError> for Cause {
    fn from(error: ProxyError) -> Self {
        Self::of_kind(error.source.kind(), &error)
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::of_kind(error.kind(), &error)
    }
}

impl From<&str> for Cause {
    fn from(why: &str) -> Self {
        Self::Other(why.into())
    }
}

impl From<String> for Cause {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

fn and_the(namespace: Option<NetnsId>) -> String {
    namespace.map_or_else(String::new, |id| format!(", and the namespace {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_known_by_the_error_and_not_by_its_words() {
        let path = || "/run/netns/a".into();
        let entering = |errno| NetnsError::Enter {
            path: path(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert!(matches!(Cause::from(ApplyError::from(entering(libc::EPERM))), Cause::Rights(_)));
        assert!(matches!(Cause::from(ApplyError::from(entering(libc::ENOMEM))), Cause::Other(_)));
        let not_one = NetnsError::NotOne { path: path() };
        assert!(matches!(Cause::from(ApplyError::from(not_one)), Cause::Other(_)));
        let foreign = ApplyError::Foreign { table: "ambient-nat" };
        assert!(matches!(Cause::from(foreign), Cause::ForeignTable(why) if why.contains("ambient-nat")));
        let of = |kind: io::ErrorKind| {
            Cause::from(ProxyError {
                what: "listening on port 15001".into(),
                source: kind.into(),
            })
        };
        assert!(matches!(of(io::ErrorKind::PermissionDenied), Cause::Rights(why) if why.starts_with("listening")));
        assert!(matches!(of(io::ErrorKind::AddrInUse), Cause::PortTaken(_)));
        assert!(matches!(of(io::ErrorKind::NotConnected), Cause::NoProxy(_)));
        assert!(matches!(of(io::ErrorKind::TimedOut), Cause::Other(_)));
        // A connection that is dropped in the pod is not a right that the process lacks.
        let dropped = io::Error::from_raw_os_error(libc::EPERM);
        assert!(matches!(Cause::of_proof(&dropped), Cause::Other(_)));
        assert!(matches!(Cause::of_proof(&entering(libc::EPERM).into()), Cause::Rights(_)));
    }

    #[test]
    fn codes_are_of_the_cause_where_there_is_one() {
        let of = |why| Refusal { step: Step::Enforce, why }.code();
        assert_eq!(of("so".into()), "cannot-enforce");
        assert_eq!(of(Cause::Late(Duration::from_secs(1))), "no-answer");
    }
}
