//! Blocks that are pieces of one rule, where its clauses have more matches than fit into one.
//!
//! A clause with more matches than a block has places stands in several, alone; the others stand in some together, as in blocks
//! of many rules. The blocks of a rule follow each other in the order of its kind, so that one pass tells whether it holds: of each
//! long clause a row in any of its blocks must match, and of every block of short ones all its clauses.

use std::sync::Arc;

use super::{
    clauses::Clauses,
    posting::{Bits, WORDS},
};

/// How a block belongs to the rule that it is a piece of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Whether the next begins another clause, or others.
    pub(super) ends_clause: bool,
    pub(super) ends_rule: bool,
}

/// The blocks that are pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces(Arc<Vec<Option<Piece>>>);

impl Pieces {
    pub(super) fn at(&self, block: u32) -> Option<Piece> {
        *self.0.get(block as usize)?
    }

    pub(super) fn put(&mut self, block: u32, piece: Piece) {
        self.set(block, Some(piece));
    }

    /// The block is none any more.
    pub(super) fn remove(&mut self, block: u32) {
        if self.at(block).is_some() {
            self.set(block, None);
        }
    }

    fn set(&mut self, block: u32, piece: Option<Piece>) {
        let pieces = Arc::make_mut(&mut self.0);
        if pieces.len() <= block as usize {
            pieces.resize(block as usize + 1, None);
        }
        pieces[block as usize] = piece;
    }
}

/// Whether a rule holds of which one block after the other is told.
#[derive(Debug)]
pub(super) struct Reading {
    /// Whether all clauses before this one hold.
    all: bool,
    /// Whether this one does.
    any: bool,
}

impl Reading {
    pub(super) fn new() -> Self {
        Self { all: true, any: false }
    }

    /// Whether what follows of the rule may still matter.
    pub(super) fn needs(&self) -> bool {
        self.all && !self.any
    }

    /// Takes in the rows of the next block that match; at the end of a rule says whether it holds.
    pub(super) fn take(&mut self, piece: Piece, clauses: Option<&Clauses>, rows: Option<&Bits>) -> bool {
        self.any |= rows.is_some_and(|rows| match clauses {
            Some(clauses) if *clauses.members() != NO_BITS => clauses.that_hold(rows) != NO_BITS,
            _ => *rows != NO_BITS,
        });
        if piece.ends_clause {
            self.all &= std::mem::take(&mut self.any);
        }
        let holds = self.all;
        if piece.ends_rule {
            *self = Self::new();
        }
        piece.ends_rule && holds
    }
}

static NO_BITS: Bits = [0; WORDS];

#[cfg(test)]
mod tests {
    use ambient_core::Workload;

    use crate::{Action, Clause, Conn, Match, Policies, Policy, Rule, Scope, StringMatch, decide, policy::Update};

    /// As many matches, one of which a connection from a peer to a port may have, at some place among them.
    fn clause(matches: usize, given: Option<(usize, u16)>) -> Clause {
        let one = |at: usize| match given {
            Some((place, port)) if place == at => Match {
                destination_ports: vec![port],
                principals: vec![StringMatch::Prefix("td/ns/a".into())],
                ..Match::default()
            },
            _ => Match {
                destination_ports: vec![1 + (at % 7) as u16],
                principals: vec![StringMatch::Exact(format!("td/ns/b/sa/{at}").as_str().into())],
                ..Match::default()
            },
        };
        Clause {
            matches: (0..matches).map(one).collect(),
        }
    }

    fn policy(key: &str, clauses: Vec<Clause>) -> Policy {
        Policy {
            key: key.into(),
            namespace: "a".into(),
            scope: Scope::Global,
            action: Action::Deny,
            rules: vec![Rule { clauses }],
            dry_run: false,
        }
    }

    /// Wherever in whichever of its blocks a match is given, and whatever stands around them.
    #[test]
    fn a_rule_of_many_blocks_holds_where_each_clause_does() {
        let identity = "spiffe://td/ns/a/sa/x".parse().unwrap();
        let stock = Workload::new("uid", "a", "stock");
        let shapes: [(&[usize], usize); 4] = [
            (&[4000, 97], 2),
            (&[5000, 3], 3),
            (&[2, 9000, 4097], 6),
            (&[3000, 3000, 3000, 1000], 3),
        ];
        for (lens, blocks) in shapes {
            let others = (0..40).map(|at| policy(&format!("a/{at:02}"), vec![clause(9, None), clause(9, None)]));
            let mut policies = Policies::default().apply(others.map(|policy| Update::Set(policy.into())));
            let before = policies.index().rows().blocks();
            let mut held = 0;
            for round in 0..14 {
                // In the last rounds one clause or another is not given.
                let given = |at: usize| (round < 10 || round % lens.len() != at).then(|| (lens[at] * round.min(9) / 10, 80));
                let clauses = (0..lens.len()).map(|at| clause(lens[at], given(at))).collect();
                let policy = policy("a/20-long", clauses);
                policies = policies.apply([Update::Set(policy.clone().into())]);
                assert_eq!(policies.index().rows().blocks(), before + blocks, "{lens:?}");
                let peer = policies.resolve(Some(&identity));
                for port in [80, 81] {
                    let conn = Conn {
                        peer: &peer,
                        source: [10, 0, 0, 1].into(),
                        destination: ([10, 0, 0, 2], port).into(),
                    };
                    let holds = policy.matching_rule(&conn).is_some();
                    let decision = decide(&policies, &stock, &conn);
                    assert_eq!(decision.is_allow(), !holds, "{lens:?}, round {round}");
                    assert!(!holds || decision.to_string().ends_with("a/20-long"));
                    held += usize::from(holds);
                }
            }
            assert_eq!(held, 10);
            let gone = policies.apply([Update::Remove("a/20-long".into())]);
            assert!((0..gone.index().rows().blocks() as u32).all(|block| gone.index().piece(block).is_none()));
            // Its blocks are there for others.
            let ordinary = (0..500).map(|at| policy(&format!("a/new-{at}"), vec![clause(9, None), clause(9, None)]));
            let more = gone.apply(ordinary.map(|policy| Update::Set(policy.into())));
            assert_eq!(more.index().rows().blocks(), (before + blocks).max(before + 2), "{lens:?}");
        }
    }
}
