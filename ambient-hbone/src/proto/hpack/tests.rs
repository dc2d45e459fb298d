use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Garbled> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
    Ok(fields)
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// RFC 7541 C.3 and C.4: three requests on one connection, plain and in Huffman's code.
#[test]
fn the_requests_of_the_rfc() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    let common = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
    ];
    for blocks in [plain, coded] {
        let mut decoder = Decoder::default();
        assert_eq!(read(&mut decoder, &hex(blocks[0])).unwrap(), pairs(&common));
        let mut second = pairs(&common);
        second.extend(pairs(&[("cache-control", "no-cache")]));
        assert_eq!(read(&mut decoder, &hex(blocks[1])).unwrap(), second);
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!(read(&mut decoder, &hex(blocks[2])).unwrap(), pairs(&third));
        assert_eq!(decoder.size, 164);
    }
}

/// RFC 7541 C.5: entries are evicted, the oldest first.
#[test]
fn a_table_of_256_bytes_forgets() {
    let mut decoder = Decoder::default();
    read(&mut decoder, &hex("3fe101")).unwrap();
    assert_eq!(decoder.capacity, 256);
    let first = "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d \
                 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
    assert_eq!(read(&mut decoder, &hex(first)).unwrap().len(), 4);
    assert_eq!(decoder.size, 222);
    assert_eq!(
        read(&mut decoder, &hex("4803 3330 37c1 c0bf")).unwrap()[0],
        pairs(&[(":status", "307")])[0]
    );
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
}

#[test]
fn what_breaks_the_rules_is_garbled() {
    let bad = [
        "80",                     // index 0
        "be",                     // beyond an empty dynamic table
        "ff80 8080 8001",         // an integer without end
        "0005 6162",              // a name that is cut off
        "00",                     // nothing after the first byte
        "3fe2 1f",                // a table larger than allowed: 4097
        "8220",                   // a size after a field
        "0081 ff01 61",           // eight bits of padding
        "0085 ffff ffff fc01 61", // the end mark within a text
        "0081 0001 61",           // padding of zeros
    ];
    for block in bad {
        assert_eq!(read(&mut Decoder::default(), &hex(block)), Err(Garbled), "{block}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(fields in proptest::collection::vec((".{0,200}", ".{0,300}"), 0..8), named in 1_usize..62) {
        let mut out = BytesMut::new();
        for (name, value) in &fields {
            literal(&mut out, name.as_bytes(), value.as_bytes());
        }
        literal_named(&mut out, named, b"v");
        indexed(&mut out, named);
        let mut want = fields.clone();
        want.push((table::STATIC[named - 1].0.to_owned(), "v".to_owned()));
        want.extend(pairs(&[table::STATIC[named - 1]]));
        prop_assert_eq!(read(&mut Decoder::default(), &out).unwrap(), want);
    }

    #[test]
    fn the_table_keeps_its_bound(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            let _ = read(&mut decoder, &block);
            let size: usize = decoder.entries.iter().map(Entry::size).sum();
            prop_assert_eq!(size, decoder.size);
            prop_assert!(size <= TABLE);
        }
    }
}
