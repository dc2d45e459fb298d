//! Blocks of IPv4, and which of them cover an address, in few steps that depend on each other: six bits a step.

use std::sync::Arc;

/// Blocks by where they begin and how long that is: a node for each two first octets, and one for the blocks that are
/// wider.
#[derive(Clone, Debug, Default)]
pub(super) struct Short {
    wide: Node,
    octets: Option<ByOctet<Second>>,
}

type ByOctet<T> = Arc<[Option<Arc<T>>; 256]>;
type Second = [Option<Arc<Node>>; 256];

/// The blocks that begin alike and are up to five bits longer than that, and the way to those that are longer still.
#[derive(Clone, Debug, Default)]
struct Node {
    /// A bit for each way to go on by up to five bits that is a block: the first for none, two for one bit, and so on.
    ends: u64,
    /// A bit for each six bits that lead on.
    ways: u64,
    blocks: Arc<[u32]>,
    below: Arc<[Self]>,
}

impl Short {
    pub(super) fn insert(&mut self, bits: u32, length: u8, block: u32) {
        if length < DIRECT {
            return self.wide.insert(bits, 0, length, block);
        }
        let (first, second) = octets(bits);
        let firsts = self.octets.get_or_insert_with(|| Arc::new([const { None }; 256]));
        let seconds = Arc::make_mut(firsts)[first].get_or_insert_with(|| Arc::new([const { None }; 256]));
        let node = Arc::make_mut(seconds)[second].get_or_insert_default();
        Arc::make_mut(node).insert(bits, DIRECT, length, block);
    }

    pub(super) fn remove(&mut self, bits: u32, length: u8) {
        if length < DIRECT {
            return self.wide.remove(bits, 0, length);
        }
        let (first, second) = octets(bits);
        let Some(firsts) = &mut self.octets else { return };
        let Some(seconds) = &mut Arc::make_mut(firsts)[first] else { return };
        let node = &mut Arc::make_mut(seconds)[second];
        if let Some(present) = node {
            let present = Arc::make_mut(present);
            present.remove(bits, DIRECT, length);
            if present.is_empty() {
                *node = None;
            }
        }
    }

    /// Calls for each block that an address lies in.
    pub(super) fn covering(&self, bits: u32, mut call: impl FnMut(u32)) {
        self.wide.covering(bits, 0, &mut call);
        let (first, second) = octets(bits);
        let seconds = self.octets.as_ref().and_then(|firsts| firsts[first].as_ref());
        if let Some(node) = seconds.and_then(|seconds| seconds[second].as_ref()) {
            node.covering(bits, DIRECT, &mut call);
        }
    }
}

fn octets(bits: u32) -> (usize, usize) {
    ((bits >> 24) as usize, (bits >> 16) as usize & 0xff)
}

impl Node {
    fn is_empty(&self) -> bool {
        self.ends | self.ways == 0
    }

    fn insert(&mut self, bits: u32, depth: u8, length: u8, block: u32) {
        if length - depth >= STEP {
            let (is, at) = find(self.ways, way(bits, depth));
            if is {
                return Arc::make_mut(&mut self.below)[at].insert(bits, depth + STEP, length, block);
            }
            self.ways |= 1 << way(bits, depth);
            let mut node = Self::default();
            node.insert(bits, depth + STEP, length, block);
            self.below = with(&self.below, at, node);
            return;
        }
        let (is, at) = find(self.ends, end(bits, depth, length));
        if is {
            Arc::make_mut(&mut self.blocks)[at] = block;
            return;
        }
        self.ends |= 1 << end(bits, depth, length);
        self.blocks = with(&self.blocks, at, block);
    }

    fn remove(&mut self, bits: u32, depth: u8, length: u8) {
        if length - depth >= STEP {
            let (is, at) = find(self.ways, way(bits, depth));
            if is {
                let below = &mut Arc::make_mut(&mut self.below)[at];
                below.remove(bits, depth + STEP, length);
                if below.is_empty() {
                    self.ways ^= 1 << way(bits, depth);
                    self.below = without(&self.below, at);
                }
            }
            return;
        }
        let (is, at) = find(self.ends, end(bits, depth, length));
        if is {
            self.ends ^= 1 << end(bits, depth, length);
            self.blocks = without(&self.blocks, at);
        }
    }

    fn covering(&self, bits: u32, mut depth: u8, call: &mut impl FnMut(u32)) {
        let mut node = self;
        loop {
            let way = way(bits, depth);
            let mut hit = node.ends & beginnings(way);
            while hit != 0 {
                let (_, at) = find(node.ends, hit.trailing_zeros());
                call(node.blocks[at]);
                hit &= hit - 1;
            }
            let (is, at) = find(node.ways, way);
            if !is {
                return;
            }
            node = &node.below[at];
            depth += STEP;
        }
    }
}

/// The bits in which a node of some depth leads on.
fn way(bits: u32, depth: u8) -> u32 {
    // Behind the last bit there are none, and of 32 none is left to go by.
    (u64::from(bits) << 32 << depth >> (64 - STEP)) as u32
}

/// Where the block that begins so and is so long has its bit, in a node of some depth.
fn end(bits: u32, depth: u8, length: u8) -> u32 {
    (1 << STEP | way(bits, depth)) >> (STEP - (length - depth))
}

/// The bits of all blocks that go on as an address does.
fn beginnings(way: u32) -> u64 {
    (1..=STEP).fold(0, |all, by| all | 1 << ((1 << STEP | way) >> by))
}

/// Whether a bit is set, and how many are set before it.
fn find(bits: u64, at: u32) -> (bool, usize) {
    (bits >> at & 1 == 1, (bits & ((1 << at) - 1)).count_ones() as usize)
}

fn with<T: Clone>(all: &[T], at: usize, new: T) -> Arc<[T]> {
    let (before, after) = all.split_at(at);
    before.iter().cloned().chain([new]).chain(after.iter().cloned()).collect()
}

fn without<T: Clone>(all: &[T], at: usize) -> Arc<[T]> {
    if all.len() == 1 {
        return Arc::default();
    }
    let (before, after) = all.split_at(at);
    before.iter().chain(&after[1..]).cloned().collect()
}

const STEP: u8 = 6;
/// As a mesh's addresses often share the first octet.
const DIRECT: u8 = 16;
