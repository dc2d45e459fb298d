//! Blocks of addresses, and which of them an address lies in.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{dictionary::Dictionary, lengths::Lengths, sums::Sums};

mod short;

use short::Short;

/// Blocks by number, and the way from an address to those that cover it. Blocks that cover the same are one, however they are
/// written behind their length: so an address lies in one of each length at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nets {
    pub(crate) blocks: Dictionary<IpNet>,
    pub(crate) sums: Sums<1>,
    /// Of each family.
    lengths: [Lengths; 2],
    v4: Short,
    v6: Tree,
}

impl Nets {
    /// Uses a block once more; gives its number.
    pub(crate) fn take(&mut self, block: &IpNet) -> u32 {
        let block = block.trunc();
        let (number, new) = self.blocks.take(&block);
        if new {
            self.lengths(&block).take(block.prefix_len().into());
            match block.network() {
                IpAddr::V4(ip) => self.v4.insert(ip.into(), block.prefix_len(), number),
                IpAddr::V6(ip) => {
                    let path = Path::new(ip, block.prefix_len());
                    self.v6.change(path, |node| insert(node, path, number));
                }
            }
        }
        number
    }

    /// Uses a block once less.
    pub(crate) fn release(&mut self, number: u32) {
        let Some(block) = self.blocks.release(number) else { return };
        self.lengths(&block).release(block.prefix_len().into());
        match block.network() {
            IpAddr::V4(ip) => self.v4.remove(ip.into(), block.prefix_len()),
            IpAddr::V6(ip) => {
                let path = Path::new(ip, block.prefix_len());
                self.v6.change(path, |node| remove(node, path));
            }
        }
    }

    /// Whether a change of a block's rows is to be brought into sums.
    pub(crate) fn sums_concern(&self, number: u32, heavy: usize) -> bool {
        let depth = self.blocks.value(number).map_or(1, |block| self.lengths[family(block)].depth());
        self.sums.concern(&self.blocks, number, depth, heavy)
    }

    fn lengths(&mut self, block: &IpNet) -> &mut Lengths {
        &mut self.lengths[family(block)]
    }

    /// Calls for each block that an address lies in. One family never lies in blocks of the other.
    pub(crate) fn covering(&self, ip: IpAddr, call: impl FnMut(u32)) {
        match ip {
            IpAddr::V4(ip) => self.v4.covering(ip.into(), call),
            IpAddr::V6(ip) => self.v6.covering(u128::from(ip), call),
        }
    }
}

fn family(block: &IpNet) -> usize {
    usize::from(block.addr().is_ipv6())
}

/// Blocks of IPv6: a tree for each two first octets, as a mesh's addresses often share the first, and one for the
/// blocks that are wider.
#[derive(Clone, Debug, Default)]
struct Tree {
    wide: Option<Arc<Node>>,
    octets: Option<ByOctet<Second>>,
}

type ByOctet<T> = Arc<[Option<Arc<T>>; 256]>;
type Second = [Option<Arc<Node>>; 256];

/// The first bits of an address, from the highest on; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    bits: u128,
    length: u8,
}

impl Path {
    fn new(ip: Ipv6Addr, length: u8) -> Self {
        Self { bits: ip.into(), length }
    }

    /// Whether an address begins so.
    fn covers(self, bits: u128) -> bool {
        self.length == 0 || (self.bits ^ bits) >> (128 - self.length) == 0
    }

    /// How many bits two begin with alike.
    fn shared(self, other: Self) -> u8 {
        let alike = (self.bits ^ other.bits).leading_zeros() as u8;
        alike.min(self.length).min(other.length)
    }

    fn cut(self, length: u8) -> Self {
        let bits = if length == 0 {
            0
        } else {
            self.bits >> (128 - length) << (128 - length)
        };
        Self { bits, length }
    }
}

/// On which side of a node that is `length` long an address goes on.
fn side(bits: u128, length: u8) -> usize {
    (bits >> (127 - length) & 1) as usize
}

#[derive(Clone, Debug)]
struct Node {
    path: Path,
    /// The block that ends here; none where only two ways part.
    block: Option<u32>,
    below: [Option<Arc<Self>>; 2],
}

impl Tree {
    fn change(&mut self, path: Path, change: impl FnOnce(&mut Option<Arc<Node>>)) {
        if path.length < 16 {
            return change(&mut self.wide);
        }
        let (first, second) = octets(path.bits);
        let firsts = self.octets.get_or_insert_with(|| Arc::new([const { None }; 256]));
        let seconds = Arc::make_mut(firsts)[first].get_or_insert_with(|| Arc::new([const { None }; 256]));
        change(&mut Arc::make_mut(seconds)[second]);
    }

    fn covering(&self, bits: u128, mut call: impl FnMut(u32)) {
        let (first, second) = octets(bits);
        let seconds = self.octets.as_ref().and_then(|firsts| firsts[first].as_ref());
        let octet = seconds.and_then(|seconds| seconds[second].as_deref());
        for mut next in [self.wide.as_deref(), octet] {
            while let Some(node) = next.filter(|node| node.path.covers(bits)) {
                node.block.into_iter().for_each(&mut call);
                next = match node.path.length {
                    128 => None,
                    length => node.below[side(bits, length)].as_deref(),
                };
            }
        }
    }
}

fn octets(bits: u128) -> (usize, usize) {
    ((bits >> 120) as usize, (bits >> 112) as usize & 0xff)
}

fn leaf(path: Path, block: u32) -> Arc<Node> {
    Arc::new(Node {
        path,
        block: Some(block),
        below: [None, None],
    })
}

fn insert(at: &mut Option<Arc<Node>>, path: Path, block: u32) {
    let Some(present) = at else {
        *at = Some(leaf(path, block));
        return;
    };
    let shared = present.path.shared(path);
    if shared == present.path.length {
        let node = Arc::make_mut(present);
        if shared < path.length {
            return insert(&mut node.below[side(path.bits, shared)], path, block);
        }
        node.block = Some(block);
        return;
    }
    // The two part before the present one ends: what they share stands above both.
    let mut above = Node {
        path: path.cut(shared),
        block: None,
        below: [None, None],
    };
    above.below[side(present.path.bits, shared)] = Some(present.clone());
    if shared == path.length {
        above.block = Some(block);
    } else {
        above.below[side(path.bits, shared)] = Some(leaf(path, block));
    }
    *at = Some(Arc::new(above));
}

fn remove(at: &mut Option<Arc<Node>>, path: Path) {
    let Some(present) = at else { return };
    if present.path.shared(path) < present.path.length {
        return;
    }
    let node = Arc::make_mut(present);
    if node.path.length < path.length {
        remove(&mut node.below[side(path.bits, node.path.length)], path);
    } else {
        node.block = None;
    }
    // A node where nothing ends and no two ways part is none.
    if node.block.is_none()
        && let [None, other] | [other, None] = &mut node.below
    {
        *at = other.take();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn block() -> impl Strategy<Value = IpNet> {
        let v4 = (0..4u32, 0..4u32, 0..32u8, 0..=32u8).prop_map(|(high, other, at, length)| {
            let bits = (high << 30 | 0x0a01_0203) ^ other.rotate_left(at.into());
            IpNet::new(IpAddr::from(bits.to_be_bytes()), length)
        });
        let v6 = (0..4u128, 0..=128u8).prop_map(|(high, length)| IpNet::new(IpAddr::from((high << 126 | 0xa01).to_be_bytes()), length));
        prop_oneof![v4, v6].prop_map(Result::unwrap)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_address_finds_the_blocks_it_lies_in(steps in vec((block(), any::<bool>()), 1..60), asked in vec(block(), 1..20)) {
            let (mut nets, mut held) = (Nets::default(), Vec::new());
            for (block, add) in steps {
                let position = held.iter().position(|(b, _)| *b == block);
                match (add, position) {
                    (true, _) => held.push((block, nets.take(&block))),
                    (false, Some(at)) => nets.release(held.swap_remove(at).1),
                    (false, None) => {}
                }
            }
            for ip in asked.iter().map(IpNet::addr) {
                let mut found = Vec::new();
                nets.covering(ip, |number| found.push(*nets.blocks.value(number).unwrap()));
                let mut wanted: Vec<_> = held.iter().map(|(b, _)| b.trunc()).filter(|b| b.contains(&ip)).collect();
                found.sort();
                wanted.sort();
                wanted.dedup();
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
