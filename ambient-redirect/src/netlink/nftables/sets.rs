//! Sets of addresses, and single tables and chains.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    super::codec::{self, NLM_F_CREATE, Writer, fixed},
    Batch, Chain, Error, Family, LISTINGS, NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN, NFT_MSG_GETTABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE,
    NFTA_TABLE_NAME, Nftables, Table, nfgen, read_chain, read_table, text,
};

/// What a set of addresses holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetKey {
    Ipv4,
    Ipv6,
}

/// A set that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    /// `None` for one that holds something else than addresses.
    pub key: Option<SetKey>,
    /// 0 for a plain set.
    pub flags: u32,
}

impl Batch {
    /// Makes a set of addresses, or leaves the one of the same name.
    pub fn add_set(&mut self, family: Family, table: &str, name: &str, key: SetKey) {
        self.begin(NFT_MSG_NEWSET, NLM_F_CREATE, family, format!("set {table} {name}"));
        self.writer.text(NFTA_SET_TABLE, table);
        self.writer.text(NFTA_SET_NAME, name);
        self.writer.be32(NFTA_SET_FLAGS, 0);
        self.writer.be32(NFTA_SET_KEY_TYPE, key.datatype());
        self.writer.be32(NFTA_SET_KEY_LEN, key.length());
        // The kernel asks for one, to be spoken of within the batch; names do that here.
        self.sets += 1;
        self.writer.be32(NFTA_SET_ID, self.sets);
    }

    /// Puts addresses into a set; those that are there stay.
    pub fn add_elements<'a>(&mut self, family: Family, table: &str, set: &str, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        self.elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, family, table, set, addresses);
    }

    /// Takes addresses out of a set; all must be there.
    pub fn delete_elements<'a>(&mut self, family: Family, table: &str, set: &str, addresses: impl IntoIterator<Item = &'a IpAddr>) {
        self.elements(NFT_MSG_DELSETELEM, 0, family, table, set, addresses);
    }

    fn elements<'a>(
        &mut self,
        message: u16,
        flags: u16,
        family: Family,
        table: &str,
        set: &str,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) {
        let addresses: Vec<&IpAddr> = addresses.into_iter().collect();
        // The length of what holds them has 16 bits.
        for some in addresses.chunks(ELEMENTS) {
            self.begin(message, flags, family, format!("elements of set {table} {set}"));
            self.writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
            self.writer.text(NFTA_SET_ELEM_LIST_SET, set);
            self.writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for ip in some {
                    list.nest(NFTA_LIST_ELEM, |element| {
                        element.nest(NFTA_SET_ELEM_KEY, |key| key.ip(NFTA_DATA_VALUE, **ip));
                    });
                }
            });
        }
    }
}

impl Nftables {
    /// One table; `None` where there is none of that name.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Option<Table>, Error> {
        let what = "looking for a table";
        let found = self.single(what, NFT_MSG_GETTABLE, family, |m| m.text(NFTA_TABLE_NAME, name))?;
        found.map(|payload| read_table(what, &payload)).transpose()
    }

    /// One chain; `None` where there is none of that name.
    pub fn chain(&mut self, family: Family, table: &str, name: &str) -> Result<Option<Chain>, Error> {
        let what = "looking for a chain";
        let found = self.single(what, NFT_MSG_GETCHAIN, family, |m| {
            m.text(NFTA_CHAIN_TABLE, table);
            m.text(NFTA_CHAIN_NAME, name);
        })?;
        found.map(|payload| read_chain(what, &payload)).transpose()
    }

    /// The sets of one table.
    pub fn sets(&mut self, family: Family, table: &str) -> Result<Vec<Set>, Error> {
        let what = "listing sets";
        let all = self.list_of(what, NFT_MSG_GETSET, family.number(), |m| m.text(NFTA_SET_TABLE, table))?;
        let mut sets = Vec::new();
        for (_, payload) in &all {
            let (header, rest) = fixed(what, payload, 4)?;
            if Family::from_number(header[0]) != family || text(rest, NFTA_SET_TABLE) != table {
                continue;
            }
            let number = |kind| codec::find(rest, kind).and_then(codec::read_be32);
            let length = number(NFTA_SET_KEY_LEN);
            sets.push(Set {
                name: text(rest, NFTA_SET_NAME),
                key: [SetKey::Ipv4, SetKey::Ipv6].into_iter().find(|k| Some(k.length()) == length),
                flags: number(NFTA_SET_FLAGS).unwrap_or(0),
            });
        }
        Ok(sets)
    }

    /// The addresses in a set that is there.
    ///
    /// # Errors
    /// [`Error::interrupted`] holds where a change came in between so often that no whole listing was had.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<BTreeSet<IpAddr>, Error> {
        let what = "listing a set";
        for _ in 0..LISTINGS {
            let before = self.generation()?;
            let mut found = BTreeSet::new();
            let all = self.list_of(what, NFT_MSG_GETSETELEM, family.number(), |m| {
                m.text(NFTA_SET_ELEM_LIST_TABLE, table);
                m.text(NFTA_SET_ELEM_LIST_SET, set);
            })?;
            for (_, payload) in &all {
                let (_, rest) = fixed(what, payload, 4)?;
                let list = codec::find(rest, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(&[]);
                found.extend(codec::attributes(list).filter_map(|(_, element)| read_address(element)));
            }
            if self.generation()? == before {
                return Ok(found);
            }
        }
        Err(Error::new(
            what,
            std::io::Error::new(std::io::ErrorKind::Interrupted, "it kept changing"),
        ))
    }

    fn single(&mut self, what: &str, message: u16, family: Family, fill: impl FnOnce(&mut Writer)) -> Result<Option<Vec<u8>>, Error> {
        let mut request = Writer::default();
        request.begin(NFNL_SUBSYS_NFTABLES << 8 | message, 0, &nfgen(family.number(), 0));
        fill(&mut request);
        match self.0.query(what, request) {
            Ok((_, payload)) => Ok(Some(payload)),
            Err(e) if e.missing() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl SetKey {
    /// The number by which `nft` knows what it is.
    fn datatype(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }
}

pub(in crate::netlink) fn read_address(element: &[u8]) -> Option<IpAddr> {
    let bytes = codec::find(codec::find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into());
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into()))
}

/// Elements of one message.
const ELEMENTS: usize = 500;

const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
