//! HPACK (RFC 7541): header blocks are read whole, and written without a memory.

use std::collections::VecDeque;

use bytes::{BufMut, BytesMut};

mod huffman;
mod table;
#[cfg(test)]
mod tests;

/// The dynamic table that a peer may fill, in bytes as RFC 7541 4.1 counts them: the default of HTTP/2.
pub(crate) const TABLE: usize = 4096;

/// What a field costs beside its name and value (RFC 7541 4.1, and RFC 9113 6.5.2 for the size of a list).
pub(crate) const FIELD_OVERHEAD: usize = 32;

/// A header block that breaks the rules: the tables of both ends differ from here on, so that the connection must end
/// (RFC 9113 4.3, COMPRESSION_ERROR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Garbled;

/// Reads header blocks, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    /// What the peer has set, up to [`TABLE`].
    capacity: usize,
    /// A name and a value that were written in Huffman's code.
    scratch: [Vec<u8>; 2],
}

#[derive(Debug)]
struct Entry {
    text: Box<[u8]>,
    name: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len() + FIELD_OVERHEAD
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            capacity: TABLE,
            scratch: [Vec::new(), Vec::new()],
        }
    }
}

impl Decoder {
    /// Gives every field of a block to `field`, name and value.
    ///
    /// It is read to its end whatever `field` makes of it: the table must follow.
    pub(crate) fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), Garbled> {
        let mut input = Input(block);
        let mut may_resize = true;
        while let Some(&first) = input.0.first() {
            match first {
                0x80.. => {
                    let (name, value) = self.indexed(input.integer(7)?)?;
                    field(name, value);
                }
                0x40..0x80 => {
                    let (name, value) = self.literal(&mut input, 6)?;
                    field(name, value);
                    let mut text = Vec::with_capacity(name.len() + value.len());
                    text.extend_from_slice(name);
                    text.extend_from_slice(value);
                    let name = name.len();
                    self.insert(Entry { text: text.into(), name });
                }
                0x20..0x40 => {
                    // Only before the first field of a block (RFC 7541 4.2).
                    let size = input.integer(5)?;
                    if !may_resize || size > TABLE {
                        return Err(Garbled);
                    }
                    self.capacity = size;
                    self.evict(0);
                    continue;
                }
                // Without indexing, or never to be indexed by whoever passes it on: the same to whoever does not.
                ..0x20 => {
                    let (name, value) = self.literal(&mut input, 4)?;
                    field(name, value);
                }
            }
            may_resize = false;
        }
        for buffer in &mut self.scratch {
            // Kept only while a block is read: a tunnel is idle most of its life.
            *buffer = Vec::new();
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<(&[u8], &[u8]), Garbled> {
        let index = index.checked_sub(1).ok_or(Garbled)?;
        match table::STATIC.get(index) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => Ok(self.entries.get(index - table::STATIC.len()).ok_or(Garbled)?.parts()),
        }
    }

    fn literal<'s, 'b: 's>(&'s mut self, input: &mut Input<'b>, prefix: u8) -> Result<(&'s [u8], &'s [u8]), Garbled> {
        let index = input.integer(prefix)?;
        let [for_name, for_value] = &mut self.scratch;
        let name = match index {
            0 => input.string(for_name)?,
            index => match table::STATIC.get(index - 1) {
                Some((name, _)) => name.as_bytes(),
                None => {
                    let entry = self.entries.get(index - 1 - table::STATIC.len()).ok_or(Garbled)?;
                    entry.parts().0
                }
            },
        };
        Ok((name, input.string(for_value)?))
    }

    fn insert(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(size);
        // One that is larger than the whole table empties it and is not kept (RFC 7541 4.4).
        if size <= self.capacity {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    /// Makes room for `size` bytes.
    fn evict(&mut self, size: usize) {
        while self.size + size > self.capacity {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size -= entry.size();
        }
    }
}

/// What is left of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Garbled> {
        let (&first, rest) = self.0.split_first().ok_or(Garbled)?;
        self.0 = rest;
        Ok(first)
    }

    /// An integer whose first `prefix` bits share a byte with something else (RFC 7541 5.1). None that counts here needs
    /// more than four bytes.
    fn integer(&mut self, prefix: u8) -> Result<usize, Garbled> {
        let full = (1_usize << prefix) - 1;
        let mut value = usize::from(self.byte()?) & full;
        if value < full {
            return Ok(value);
        }
        for shift in [0, 7, 14] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Garbled)
    }

    fn string<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Garbled>
    where
        'a: 's,
    {
        let coded = self.0.first().ok_or(Garbled)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Garbled)?;
        self.0 = rest;
        if !coded {
            return Ok(text);
        }
        scratch.clear();
        huffman::decode(text, scratch)?;
        Ok(scratch)
    }
}

/// Writes a field whole, by its name: no end has to remember it.
pub(crate) fn literal(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_u8(0);
    string(out, name);
    string(out, value);
}

/// The same with a name of the static table, by its index there.
pub(crate) fn literal_named(out: &mut BytesMut, name: usize, value: &[u8]) {
    integer(out, 4, 0, name);
    string(out, value);
}

/// A field of the static table, by its index there.
pub(crate) fn indexed(out: &mut BytesMut, index: usize) {
    integer(out, 7, 0x80, index);
}

fn string(out: &mut BytesMut, text: &[u8]) {
    integer(out, 7, 0, text.len());
    out.put_slice(text);
}

fn integer(out: &mut BytesMut, prefix: u8, flags: u8, value: usize) {
    let full = (1_usize << prefix) - 1;
    if value < full {
        // Below 2^prefix: it fits.
        out.put_u8(flags | value as u8);
        return;
    }
    out.put_u8(flags | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        out.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Indices of the static table (RFC 7541, appendix A).
pub(crate) mod names {
    pub(crate) const AUTHORITY: usize = 1;
    pub(crate) const METHOD: usize = 2;
    pub(crate) const STATUS: usize = 8;
    /// `:status: 200`, whole.
    pub(crate) const STATUS_200: usize = 8;
}
