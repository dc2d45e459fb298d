//! Reads HPACK (RFC 7541), which is how the library under test writes its headers.

use std::collections::VecDeque;

/// A decoder for one direction of a connection.
#[derive(Default)]
pub(crate) struct Decoder {
    /// What was added, the newest first. Tests add too little for anything to be evicted.
    added: VecDeque<(String, String)>,
}

impl Decoder {
    /// The fields of a header block. Panics where it is malformed, as the bytes under test must not be.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let mut rest = block;
        let mut fields = Vec::new();
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7);
                fields.push(self.field(index));
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut rest, 6);
                self.added.push_front(field.clone());
                fields.push(field);
            } else if first & 0x20 != 0 {
                integer(&mut rest, 5); // a new size of the table
            } else {
                let field = self.literal(&mut rest, 4);
                fields.push(field);
            }
        }
        fields
    }

    fn literal(&self, rest: &mut &[u8], prefix: u32) -> (String, String) {
        let name = match integer(rest, prefix) {
            0 => string(rest),
            index => self.field(index).0,
        };
        (name, string(rest))
    }

    fn field(&self, index: usize) -> (String, String) {
        match index.checked_sub(FIXED.len() + 1) {
            None => {
                let (name, value) = FIXED[index - 1];
                (name.to_owned(), value.to_owned())
            }
            Some(index) => self.added[index].clone(),
        }
    }
}

/// Whether a block is written the way the vectors are: literals without indexing, with literal names, not Huffman coded.
pub(crate) fn is_plain(block: &[u8]) -> bool {
    let mut rest = block;
    while let Some((0, after)) = rest.split_first() {
        rest = after;
        for _ in 0..2 {
            if rest.first().is_none_or(|b| b & 0x80 != 0) {
                return false;
            }
            let length = integer(&mut rest, 7);
            let Some(after) = rest.get(length..) else { return false };
            rest = after;
        }
    }
    rest.is_empty()
}

fn integer(rest: &mut &[u8], prefix: u32) -> usize {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(take(rest)) & mask;
    let mut shift = 0;
    while value >= mask {
        let next = usize::from(take(rest));
        value += (next & 0x7f) << shift;
        shift += 7;
        if next & 0x80 == 0 {
            break;
        }
    }
    value
}

fn string(rest: &mut &[u8]) -> String {
    let coded = rest[0] & 0x80 != 0;
    let length = integer(rest, 7);
    let (text, after) = rest.split_at(length);
    *rest = after;
    let text = if coded { huffman(text) } else { text.to_vec() };
    String::from_utf8(text).expect("headers of these tests are text")
}

fn take(rest: &mut &[u8]) -> u8 {
    let (first, after) = rest.split_first().expect("the block goes on");
    *rest = after;
    *first
}

/// The code is canonical: among the codes of one length, symbols stand in order. So their lengths say everything.
fn huffman(text: &[u8]) -> Vec<u8> {
    let mut symbols: Vec<usize> = (0..LENGTHS.len()).collect();
    symbols.sort_by_key(|&symbol| (LENGTHS[symbol], symbol));
    let mut codes = Vec::with_capacity(symbols.len());
    let mut code = 0_u32;
    for (at, &symbol) in symbols.iter().enumerate() {
        if at > 0 {
            code = (code + 1) << (LENGTHS[symbol] - LENGTHS[symbols[at - 1]]);
        }
        codes.push((LENGTHS[symbol], code, symbol));
    }
    let (mut read, mut bits, mut length) = (Vec::new(), 0_u32, 0_u8);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        bits = bits << 1 | u32::from(bit);
        length += 1;
        if let Some(&(_, _, symbol)) = codes.iter().find(|code| (code.0, code.1) == (length, bits)) {
            read.push(u8::try_from(symbol).expect("the end is never written"));
            (bits, length) = (0, 0);
        }
    }
    assert!(
        length < 8 && bits == (1 << length) - 1,
        "the padding is the beginning of the end's code"
    );
    read
}

/// RFC 7541, Appendix B: how many bits the code of each byte has, and of the end.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// RFC 7541, Appendix A.
#[rustfmt::skip]
const FIXED: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"),
    (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""), ("accept-encoding", "gzip, deflate"), ("accept-language", ""),
    ("accept-ranges", ""), ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""),
    ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""),
    ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""), ("retry-after", ""),
    ("server", ""), ("set-cookie", ""), ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

#[test]
fn the_examples_of_the_standard() {
    let mut decoder = Decoder::default();
    // RFC 7541 C.4.1 and C.4.2.
    let first = [
        0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
    ];
    let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
    let text = |fields: Vec<(String, String)>| fields.into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>();
    let common = [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"];
    assert_eq!(text(decoder.decode(&first)), common);
    assert_eq!(text(decoder.decode(&second)), [&common[..], &["cache-control=no-cache"]].concat());
    assert!(!is_plain(&first) && is_plain(b"\0\x01a\x02bc") && !is_plain(b"\0\x01a\x02b"));
}
