//! The values that all rules ask for, and the rows that ask for each.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    BitsOfBlocks,
    dictionary::{Dictionary, Lists},
    filed::Filed,
    names::Names,
    nets::Nets,
    sums::{Changed, ChangedBlocks, Sums},
    term::{Lane, Sort, Term},
    value::{NameOf, Place, TextField},
};
use crate::Scope;

/// The dictionaries of all values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) names: Names,
    pub(crate) ports: Dictionary<u16>,
    pub(crate) port_sums: Sums<1>,
    pub(crate) sources: Nets,
    pub(crate) destinations: Nets,
    pub(crate) places: Dictionary<Place>,
    /// What applies to every workload.
    pub(crate) mesh: Arc<Place>,
    /// The rows that ask for nothing that a connection might not have.
    pub(crate) always: Filed,
    /// Whether names came or went since the last [`Names::renew`].
    names_changed: bool,
}

impl Terms {
    /// A name, which has this number if any is told.
    pub(crate) fn name(&mut self, name: NameOf<'_>, found: Option<u32>) -> Term {
        let (number, new) = self.names.take(name, found);
        self.names_changed |= new;
        Term::new(Sort::Name, number)
    }

    pub(crate) fn port(&mut self, port: u16) -> Term {
        Term::new(Sort::Port, self.ports.take(&port).0)
    }

    pub(crate) fn source(&mut self, block: &IpNet) -> Term {
        Term::new(Sort::Source, self.sources.take(block))
    }

    pub(crate) fn destination(&mut self, block: &IpNet) -> Term {
        Term::new(Sort::Destination, self.destinations.take(block))
    }

    /// The number of a namespace where something applies.
    pub(crate) fn place(&self, name: &str) -> Option<u32> {
        self.places
            .find(Place::hash_of(self.places.keys(), name), |place| *place.name == *name)
    }

    /// Uses a namespace once more; gives its number.
    pub(crate) fn take_place(&mut self, name: &Arc<str>) -> u32 {
        self.places.take(&Place::new(name.clone())).0
    }

    /// A place that is used, to be changed; none for selected workloads.
    pub(crate) fn place_mut(&mut self, scope: Scope, namespace: &str) -> Option<&mut Place> {
        match scope {
            Scope::Global => Some(Arc::make_mut(&mut self.mesh)),
            Scope::Namespace => self.places.value_mut(self.place(namespace)?),
            Scope::Selector => None,
        }
    }

    /// Uses a value once less.
    pub(crate) fn release(&mut self, term: Term) {
        match term.sort() {
            Sort::Name => self.names_changed |= self.names.release(term.number()),
            Sort::Port => drop(self.ports.release(term.number())),
            Sort::Source => self.sources.release(term.number()),
            Sort::Destination => self.destinations.release(term.number()),
            Sort::Place => drop(self.places.release(term.number())),
            Sort::Listed | Sort::Always => {}
        }
    }

    /// Peers that were resolved fit no longer, if names came or went.
    pub(crate) fn renew(&mut self) {
        if std::mem::take(&mut self.names_changed) {
            self.names.renew();
        }
    }

    /// Whether a change of a value's list, which was made already, is to be brought into sums.
    pub(crate) fn sums_concern(&self, term: Term, heavy: usize) -> bool {
        let number = term.number();
        match term.sort() {
            Sort::Name => self
                .names
                .sums
                .concern(&self.names.dictionary, number, self.names.depth(number), heavy),
            Sort::Source => self.sources.sums_concern(number, heavy),
            Sort::Destination => self.destinations.sums_concern(number, heavy),
            Sort::Port => self.port_sums.concern(&self.ports, number, 1, heavy),
            Sort::Place | Sort::Listed | Sort::Always => false,
        }
    }

    /// Brings such changes in, of values of one sort, of lists that have changed already; beside a sum so many rows may be read at most.
    pub(crate) fn edit_sums(&mut self, sort: Sort, changes: &[Changed], most: usize) {
        match sort {
            Sort::Name => self.names.sums.edit(&mut self.names.dictionary, changes, most),
            Sort::Source => self.sources.sums.edit(&mut self.sources.blocks, changes, most),
            Sort::Destination => self.destinations.sums.edit(&mut self.destinations.blocks, changes, most),
            Sort::Port => self.port_sums.edit(&mut self.ports, changes, most),
            Sort::Place | Sort::Listed | Sort::Always => {}
        }
    }

    /// Brings up to date in some blocks what fails by the sums, given the rows of each lane that ask in it alone, and those that
    /// ask about a text from both sides.
    pub(crate) fn renew_fails(
        &mut self,
        used: &[BitsOfBlocks; Lane::ALL.len()],
        mixed: &[BitsOfBlocks; TextField::ALL.len()],
        blocks: ChangedBlocks<'_>,
    ) {
        let of = |lane: Lane| (&used[lane as usize], mixed.get(lane as usize / 2));
        self.names.sums.renew_fails(|chain| of(Lane::ALL[chain]), blocks);
        self.sources.sums.renew_fails(|_| of(Lane::Source), blocks);
        self.destinations.sums.renew_fails(|_| of(Lane::Destination), blocks);
        self.port_sums.renew_fails(|_| of(Lane::Port), blocks);
    }

    /// In which lane a term asks about something.
    pub(crate) fn lane(&self, term: Term) -> Option<Lane> {
        Some(match term.sort() {
            Sort::Name => *Lane::ALL.get(usize::from(self.names.dictionary.tag(term.number())?))?,
            Sort::Port => Lane::Port,
            Sort::Source => Lane::Source,
            Sort::Destination => Lane::Destination,
            Sort::Place | Sort::Listed => Lane::Scope,
            Sort::Always => return None,
        })
    }

    /// How many rows ask for a value, more or less.
    pub(crate) fn weight(&self, term: Term) -> usize {
        let number = term.number();
        match term.sort() {
            Sort::Name => self.names.dictionary.weight(number),
            Sort::Port => self.ports.weight(number),
            Sort::Source => self.sources.blocks.weight(number),
            Sort::Destination => self.destinations.blocks.weight(number),
            Sort::Place => self.places.weight(number),
            Sort::Listed | Sort::Always => 0,
        }
    }

    /// The rows that are looked for by a term. Those of listed policies are with the policies.
    pub(crate) fn filed_mut(&mut self, term: Term) -> Option<&mut Filed> {
        let number = term.number();
        Some(match term.sort() {
            Sort::Name => self.names.dictionary.filed_mut(number),
            Sort::Port => self.ports.filed_mut(number),
            Sort::Source => self.sources.blocks.filed_mut(number),
            Sort::Destination => self.destinations.blocks.filed_mut(number),
            Sort::Place => self.places.filed_mut(number),
            Sort::Always => &mut self.always,
            Sort::Listed => return None,
        })
    }

    /// The other rows of a term, but for listed policies.
    pub(crate) fn lists_mut(&mut self, term: Term) -> Option<&mut Lists> {
        let number = term.number();
        match term.sort() {
            Sort::Name => self.names.dictionary.lists_mut(number),
            Sort::Port => self.ports.lists_mut(number),
            Sort::Source => self.sources.blocks.lists_mut(number),
            Sort::Destination => self.destinations.blocks.lists_mut(number),
            Sort::Place => self.places.lists_mut(number),
            Sort::Listed | Sort::Always => None,
        }
    }
}
