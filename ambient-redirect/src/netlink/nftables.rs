//! nf_tables: batches and listings.

pub(super) mod expr;
pub(super) mod sets;
pub(super) mod theirs;

use super::{
    Error,
    codec::{self, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, Writer, fixed},
    socket::{Listed, Socket, Speaks},
};

pub use expr::{Cmp, CtKey, Expr, MetaKey, PayloadBase, Verdict};
pub use sets::{Set, SetKey};
pub use theirs::{Does, Reading};

/// The tables, chains and rules of one network namespace.
#[derive(Debug)]
pub struct Nftables(Socket);

/// What an nf_tables table looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Another of the kernel's, by number; found in listings.
    Other(u8),
}

/// Where a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    Filter,
    Nat,
    /// As filter, and a packet whose mark it changes is routed again.
    Route,
}

/// The place of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseChain {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

impl BaseChain {
    /// Where destinations of packets that come in are changed.
    pub const fn nat_prerouting() -> Self {
        Self {
            kind: ChainKind::Nat,
            hook: Hook::Prerouting,
            priority: -100,
        }
    }

    /// Where destinations of packets of local processes are changed.
    pub const fn nat_output() -> Self {
        Self {
            kind: ChainKind::Nat,
            hook: Hook::Output,
            priority: -100,
        }
    }

    /// Where sources of packets that go out are changed.
    pub const fn nat_postrouting() -> Self {
        Self {
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: 100,
        }
    }
}

/// The number of the last transaction; given to [`Nftables::commit`] it says "only if nothing has changed since".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub u32);

/// A table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: String,
    /// What its maker wrote into it; empty if nothing.
    pub userdata: Vec<u8>,
    /// 0 unless it is switched off (1, dormant) or belongs to one process (2).
    pub flags: u32,
}

/// A chain that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub family: Family,
    pub table: String,
    pub name: String,
    /// Hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
    /// `filter`, `nat` or `route` of a base chain.
    pub kind: Option<String>,
    /// What a base chain does with a packet that no rule decides: drops it (0) or accepts it (1).
    pub policy: Option<u32>,
}

impl Chain {
    /// Whether it stands where [`Batch::add_base_chain`] puts such a one.
    pub fn is(&self, base: &BaseChain) -> bool {
        self.hook == Some((base.hook.number(), base.priority)) && self.kind.as_deref() == Some(base.kind.name())
    }

    /// Whether it accepts what no rule decides.
    pub fn accepts(&self) -> bool {
        self.policy == Some(NF_ACCEPT)
    }
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub family: Family,
    pub table: String,
    pub chain: String,
    pub handle: u64,
    /// The expressions as the kernel lists them: what it fills in is there, and counters show what they have counted.
    pub expressions: Vec<u8>,
}

/// Changes that the kernel makes all together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    writer: Writer,
    names: Vec<String>,
    sets: u32,
}

impl Rule {
    /// Whether it is what these expressions make, whatever its counters have counted.
    pub fn is(&self, expressions: &[Expr]) -> bool {
        expr::comparable(&self.expressions) == expr::comparable(&Batch::list(expressions))
    }

    /// What it does, of one that was written by others.
    pub fn reading(&self) -> Reading {
        theirs::read(&self.expressions)
    }

    /// The kernel's names of its expressions.
    pub fn steps(&self) -> Vec<String> {
        expr::comparable(&self.expressions).into_iter().map(|(name, _)| name).collect()
    }
}

impl Batch {
    /// Makes a table, or leaves the one of the same name.
    pub fn add_table(&mut self, family: Family, name: &str, userdata: &[u8]) {
        self.begin(NFT_MSG_NEWTABLE, NLM_F_CREATE, family, format!("table {name}"));
        self.writer.text(NFTA_TABLE_NAME, name);
        self.writer.be32(NFTA_TABLE_FLAGS, 0);
        if !userdata.is_empty() {
            self.writer.attribute(NFTA_TABLE_USERDATA, userdata);
        }
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, family: Family, name: &str) {
        self.begin(NFT_MSG_DELTABLE, 0, family, format!("deletion of table {name}"));
        self.writer.text(NFTA_TABLE_NAME, name);
    }

    /// Deletes all rules of a table; its chains stay, and stay hooked.
    pub fn flush_table(&mut self, family: Family, name: &str) {
        self.begin(NFT_MSG_DELRULE, 0, family, format!("emptying of table {name}"));
        self.writer.text(NFTA_RULE_TABLE, name);
    }

    /// Makes a chain that is only jumped to, or leaves the one of the same name.
    pub fn add_chain(&mut self, family: Family, table: &str, name: &str) {
        self.begin(NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, format!("chain {table} {name}"));
        self.writer.text(NFTA_CHAIN_TABLE, table);
        self.writer.text(NFTA_CHAIN_NAME, name);
    }

    /// Makes a chain that the kernel calls, or leaves the one of the same name; it accepts what no rule decides.
    pub fn add_base_chain(&mut self, family: Family, table: &str, name: &str, base: &BaseChain) {
        self.begin(NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, format!("chain {table} {name}"));
        self.writer.text(NFTA_CHAIN_TABLE, table);
        self.writer.text(NFTA_CHAIN_NAME, name);
        self.writer.nest(NFTA_CHAIN_HOOK, |hook| {
            hook.be32(NFTA_HOOK_HOOKNUM, base.hook.number());
            hook.be32(NFTA_HOOK_PRIORITY, base.priority as u32);
        });
        self.writer.be32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        self.writer.text(NFTA_CHAIN_TYPE, base.kind.name());
    }

    /// Deletes a chain, which must be empty by then.
    pub fn delete_chain(&mut self, family: Family, table: &str, name: &str) {
        self.begin(NFT_MSG_DELCHAIN, 0, family, format!("deletion of chain {table} {name}"));
        self.writer.text(NFTA_CHAIN_TABLE, table);
        self.writer.text(NFTA_CHAIN_NAME, name);
    }

    /// Adds a rule to the end of a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, expressions: &[Expr]) {
        self.begin(
            NFT_MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            family,
            format!("rule in {table} {chain}"),
        );
        self.writer.text(NFTA_RULE_TABLE, table);
        self.writer.text(NFTA_RULE_CHAIN, chain);
        self.writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
            for expression in expressions {
                expression.write(list);
            }
        });
    }

    /// Expressions as the kernel lists those of a rule, but for what it fills in.
    pub fn list(expressions: &[Expr]) -> Vec<u8> {
        let mut list = Writer::default();
        expressions.iter().for_each(|e| e.write(&mut list));
        list.bytes().to_vec()
    }

    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn begin(&mut self, message: u16, flags: u16, family: Family, name: String) {
        self.writer
            .begin(NFNL_SUBSYS_NFTABLES << 8 | message, flags, &nfgen(family.number(), 0));
        self.names.push(name);
    }

    /// All messages with the two that enclose them.
    fn enclose(self, generation: Option<Generation>) -> (Writer, Vec<String>) {
        let mut whole = Writer::default();
        whole.begin(NFNL_MSG_BATCH_BEGIN, 0, &nfgen(0, NFNL_SUBSYS_NFTABLES));
        if let Some(Generation(id)) = generation {
            whole.be32(NFNL_BATCH_GENID, id);
        }
        let mut inner = self.writer;
        // One answer for all: a long batch that asks for an answer to each message overflows the socket's buffer.
        inner.ask_ack();
        whole.append(inner);
        whole.begin(NFNL_MSG_BATCH_END, 0, &nfgen(0, NFNL_SUBSYS_NFTABLES));
        let names = std::iter::once("the transaction".to_owned()).chain(self.names).collect();
        (whole, names)
    }
}

impl Nftables {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Socket::open(Speaks::Netfilter, 0).map(Self)
    }

    /// Makes all changes of a batch, or none.
    ///
    /// # Errors
    /// [`Error::stale`] holds where `generation` is given and no longer the present one.
    pub fn commit(&mut self, batch: Batch, generation: Option<Generation>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (writer, names) = batch.enclose(generation);
        self.0.batch("changing nftables", writer, &names)
    }

    /// The number of the last transaction.
    pub fn generation(&mut self) -> Result<Generation, Error> {
        let what = "asking for the generation of nftables";
        let mut message = Writer::default();
        message.begin(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, 0, &nfgen(0, 0));
        let (_, payload) = self.0.query(what, message)?;
        let (_, rest) = fixed(what, &payload, 4)?;
        codec::find(rest, NFTA_GEN_ID)
            .and_then(codec::read_be32)
            .map(Generation)
            .ok_or_else(|| Error::malformed(what))
    }

    /// All tables of all families.
    pub fn tables(&mut self) -> Result<Vec<Table>, Error> {
        let what = "listing tables";
        let all = self.list(what, NFT_MSG_GETTABLE, |_| ())?;
        all.iter().map(|(_, payload)| read_table(what, payload)).collect()
    }

    /// All chains of all tables.
    pub fn chains(&mut self) -> Result<Vec<Chain>, Error> {
        let what = "listing chains";
        let all = self.list(what, NFT_MSG_GETCHAIN, |_| ())?;
        all.iter().map(|(_, payload)| read_chain(what, payload)).collect()
    }

    /// The rules of one table, chain by chain, each chain in order.
    ///
    /// # Errors
    /// [`Error::interrupted`] holds where a change came in between so often that no whole listing was had, and [`Error::too_large`] where
    /// there are more than are read.
    pub fn rules(&mut self, family: Family, table: &str) -> Result<Vec<Rule>, Error> {
        let (rules, _) = self.steadily(|nftables| nftables.rules_once(family, table, RULES))?;
        rules.ok_or_else(|| Error::too_many("listing rules", &format!("rules in table {table}"), RULES))
    }

    /// Lists by `list` until no transaction has come in between, and gives the generation that the listing is of.
    ///
    /// # Errors
    /// [`Error::interrupted`] holds where a change came in between so often that no whole listing was had.
    pub fn steadily<T>(&mut self, list: impl Fn(&mut Self) -> Result<T, Error>) -> Result<(T, Generation), Error> {
        for _ in 0..LISTINGS {
            // A listing that a transaction overlaps can repeat or skip rules without any sign; the generation shows a
            // transaction that succeeded, a handle seen twice one that failed. The question comes first for another reason
            // too: by what it is read with the kernel learns how large the pieces of a listing may be.
            let before = self.generation()?;
            match list(self) {
                Err(e) if e.interrupted() => continue,
                listed => {
                    let listed = listed?;
                    if self.generation()? == before {
                        return Ok((listed, before));
                    }
                }
            }
        }
        Err(kept_changing("listing nftables"))
    }

    /// The rules of one table, if there are `most` at most, for [`Nftables::steadily`].
    pub fn rules_once(&mut self, family: Family, table: &str, most: usize) -> Result<Option<Vec<Rule>>, Error> {
        let what = "listing rules";
        let mut request = Writer::default();
        request.begin(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, NLM_F_DUMP, &nfgen(family.number(), 0));
        request.text(NFTA_RULE_TABLE, table);
        let (all, more) = self.0.list_some(what, request, most)?;
        if more {
            return Ok(None);
        }
        let rules = all
            .iter()
            .map(|(_, payload)| read_rule(what, payload))
            .collect::<Result<Vec<_>, _>>()?;
        let rules: Vec<Rule> = rules.into_iter().filter(|r| r.family == family && r.table == table).collect();
        let mut handles: Vec<u64> = rules.iter().map(|r| r.handle).collect();
        handles.sort_unstable();
        match handles.windows(2).all(|pair| pair[0] != pair[1]) {
            true => Ok(Some(rules)),
            false => Err(kept_changing(what)),
        }
    }

    /// The rules of a table of somebody else's, as many as `most`, and whether there are more; for [`Nftables::steadily`].
    pub fn rules_of_others(&mut self, family: Family, table: &str, most: usize) -> Result<(Vec<Rule>, bool), Error> {
        let what = "listing rules of others";
        let mut request = Writer::default();
        request.begin(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, NLM_F_DUMP, &nfgen(family.number(), 0));
        request.text(NFTA_RULE_TABLE, table);
        let (listed, more) = self.0.list_some(what, request, most)?;
        let rules = listed.iter().map(|(_, payload)| read_rule(what, payload));
        Ok((rules.collect::<Result<_, _>>()?, more))
    }

    fn list(&mut self, what: &str, message: u16, fill: impl Fn(&mut Writer)) -> Result<Vec<Listed>, Error> {
        self.list_of(what, message, 0, fill)
    }

    /// Of one family; 0 is all of them.
    fn list_of(&mut self, what: &str, message: u16, family: u8, fill: impl Fn(&mut Writer)) -> Result<Vec<Listed>, Error> {
        let mut tries = 0;
        loop {
            let mut request = Writer::default();
            request.begin(NFNL_SUBSYS_NFTABLES << 8 | message, NLM_F_DUMP, &nfgen(family, 0));
            fill(&mut request);
            match self.0.list_within(what, request, MOST) {
                Err(e) if e.interrupted() && tries < LISTINGS => tries += 1,
                result => return result,
            }
        }
    }
}

fn kept_changing(what: &str) -> Error {
    Error::new(
        what,
        std::io::Error::new(std::io::ErrorKind::Interrupted, "the rules kept changing"),
    )
}

pub(super) fn read_table(what: &str, payload: &[u8]) -> Result<Table, Error> {
    let (header, rest) = fixed(what, payload, 4)?;
    Ok(Table {
        family: Family::from_number(header[0]),
        name: text(rest, NFTA_TABLE_NAME),
        userdata: codec::find(rest, NFTA_TABLE_USERDATA).unwrap_or(&[]).to_vec(),
        flags: codec::find(rest, NFTA_TABLE_FLAGS).and_then(codec::read_be32).unwrap_or(0),
    })
}

pub(super) fn read_chain(what: &str, payload: &[u8]) -> Result<Chain, Error> {
    let (header, rest) = fixed(what, payload, 4)?;
    let hook = codec::find(rest, NFTA_CHAIN_HOOK).and_then(|hook| {
        let number = |kind| codec::find(hook, kind).and_then(codec::read_be32);
        Some((number(NFTA_HOOK_HOOKNUM)?, number(NFTA_HOOK_PRIORITY)? as i32))
    });
    Ok(Chain {
        family: Family::from_number(header[0]),
        table: text(rest, NFTA_CHAIN_TABLE),
        name: text(rest, NFTA_CHAIN_NAME),
        hook,
        kind: codec::find(rest, NFTA_CHAIN_TYPE).map(codec::read_text),
        policy: codec::find(rest, NFTA_CHAIN_POLICY).and_then(codec::read_be32),
    })
}

pub(super) fn read_rule(what: &str, payload: &[u8]) -> Result<Rule, Error> {
    let (header, rest) = fixed(what, payload, 4)?;
    Ok(Rule {
        family: Family::from_number(header[0]),
        table: text(rest, NFTA_RULE_TABLE),
        chain: text(rest, NFTA_RULE_CHAIN),
        handle: codec::find(rest, NFTA_RULE_HANDLE).and_then(codec::read_be64).unwrap_or(0),
        expressions: codec::find(rest, NFTA_RULE_EXPRESSIONS).unwrap_or(&[]).to_vec(),
    })
}

fn text(attributes: &[u8], kind: u16) -> String {
    codec::find(attributes, kind).map(codec::read_text).unwrap_or_default()
}

/// `struct nfgenmsg`.
fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(n) => n,
        }
    }

    fn from_number(n: u8) -> Self {
        match n {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            n => Self::Other(n),
        }
    }
}

impl Hook {
    /// The kernel's number of it.
    pub fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl ChainKind {
    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Of tables, of chains and of a set so many bytes are read, which are some ten thousand: a pod may make as many as it likes.
const MOST: usize = 2 << 20;
/// Of a table's rules, of which the kernel takes none of more than some 4 KiB, so many are listed.
const RULES: usize = 10_000;
/// Listings that changes overtook are asked for again so many times.
const LISTINGS: usize = 10;

const NF_ACCEPT: u32 = 1;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_GETGEN: u16 = 16;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_GEN_ID: u16 = 1;

#[cfg(test)]
mod tests;
