//! What a rule asks for, as numbers.

use super::value::Name;
use crate::StringMatch;

/// A value that a connection has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Term(u32);

/// What the number of a term is a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// What an identity has.
    Name,
    /// The port in the pod.
    Port,
    /// A block that the connection comes from.
    Source,
    /// A block that the pod's address lies in.
    Destination,
    /// The workload's namespace.
    Place,
    /// A policy that the workload lists.
    Listed,
    /// What every connection has.
    Always,
}

impl Term {
    pub(crate) const ALWAYS: Self = Self::new(Sort::Always, 0);

    /// Memory ends long before the numbers do: each is of a value, a policy or a namespace that is held.
    pub(crate) const fn new(sort: Sort, number: u32) -> Self {
        Self((sort as u32) << NUMBER_BITS | number & NUMBER)
    }

    pub(crate) fn sort(self) -> Sort {
        match self.0 >> NUMBER_BITS {
            0 => Sort::Name,
            1 => Sort::Port,
            2 => Sort::Source,
            3 => Sort::Destination,
            4 => Sort::Place,
            5 => Sort::Listed,
            _ => Sort::Always,
        }
    }

    pub(crate) fn number(self) -> u32 {
        self.0 & NUMBER
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }
}

/// A bit for each of some terms, several terms to a bit: to tell in one step that no term is in both of two sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(u64);

impl Marks {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u64::MAX);
    /// Of a workload that lists policies; also of some term, as every bit is.
    pub(crate) const LISTS: Self = Self(1);

    pub(crate) fn of(term: Term) -> Self {
        // The highest bits of the product differ most.
        Self(1 << (term.0.wrapping_mul(0x9e37_79b1) >> 26))
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A term in a row: wanted, or refused; what is wanted stands in groups, of which one must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Word(u32);

impl Word {
    /// What every connection has.
    pub(crate) const NONE: Self = Self(Term::ALWAYS.0 | LAST);

    pub(crate) fn wanted(term: Term, last_of_group: bool) -> Self {
        Self(term.0 | if last_of_group { LAST } else { 0 })
    }

    pub(crate) fn refused(term: Term) -> Self {
        Self(term.0 | REFUSED)
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn term(self) -> Term {
        Term(self.0 & !(REFUSED | LAST))
    }

    pub(crate) fn is_refused(self) -> bool {
        self.0 & REFUSED != 0
    }

    pub(crate) fn is_last(self) -> bool {
        self.0 & LAST != 0
    }
}

impl Default for Word {
    fn default() -> Self {
        Self::NONE
    }
}

/// What a group of a row asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    /// The one that tells rules apart best is looked for by, where numbers are equal: so they are in this order.
    Principal,
    Account,
    Source,
    Namespace,
    Destination,
    Scope,
    Port,
    TrustDomain,
}

/// What a value of a field is compared from: values of one lane lie one in the other, or apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Beginnings, and whole texts.
    NamespaceFront,
    /// Ends.
    NamespaceBack,
    PrincipalFront,
    PrincipalBack,
    TrustDomainFront,
    TrustDomainBack,
    Account,
    Source,
    Destination,
    Port,
    Scope,
}

impl Lane {
    pub(crate) const ALL: [Self; 11] = [
        Self::NamespaceFront,
        Self::NamespaceBack,
        Self::PrincipalFront,
        Self::PrincipalBack,
        Self::TrustDomainFront,
        Self::TrustDomainBack,
        Self::Account,
        Self::Source,
        Self::Destination,
        Self::Port,
        Self::Scope,
    ];

    /// Those in which a peer's names are asked for.
    pub(crate) const OF_NAMES: &[Self] = Self::ALL.split_at(Self::Source as usize).0;
    /// The others.
    pub(crate) const BUT_NAMES: &[Self] = Self::ALL.split_at(Self::Source as usize).1;

    pub(crate) fn of_name(name: &Name) -> Self {
        match name {
            Name::Text(field, StringMatch::Suffix(_)) => Self::ALL[2 * *field as usize + 1],
            Name::Text(field, _) => Self::ALL[2 * *field as usize],
            Name::Account(_) => Self::Account,
        }
    }

    pub(crate) fn field(self) -> Field {
        match self {
            Self::NamespaceFront | Self::NamespaceBack => Field::Namespace,
            Self::PrincipalFront | Self::PrincipalBack => Field::Principal,
            Self::TrustDomainFront | Self::TrustDomainBack => Field::TrustDomain,
            Self::Account => Field::Account,
            Self::Source => Field::Source,
            Self::Destination => Field::Destination,
            Self::Port => Field::Port,
            Self::Scope => Field::Scope,
        }
    }
}

const NUMBER_BITS: u32 = 27;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;
const REFUSED: u32 = 1 << 31;
const LAST: u32 = 1 << 30;
