//! Header blocks.

use bytes::BytesMut;

use super::input::Input;
use crate::proto::hpack::{self, Decoder, FIELD_OVERHEAD, TABLE};

/// Blocks of any bytes on one connection: they are read or they are not, and the table keeps its bound. What is written
/// is read as it was.
pub(crate) fn hpack(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => decode(input),
        _ => round_trip(input),
    }
}

fn decode(mut input: Input<'_>) {
    let mut decoder = Decoder::default();
    while !input.is_empty() {
        let n = input.size();
        let block = input.take(n);
        let mut fields = 0;
        let read = decoder.decode(block, |_, _| fields += 1);
        assert!(fields <= block.len(), "each field takes a byte at least");
        let kept = table(&mut decoder);
        assert!(kept <= TABLE, "{kept}");
        if read.is_err() {
            // The connection ends with it.
            return;
        }
    }
}

/// What the table holds, asked for entry by entry: that changes nothing in it.
fn table(decoder: &mut Decoder) -> usize {
    let mut size = 0;
    for index in 62_usize.. {
        let mut block = BytesMut::new();
        hpack::indexed(&mut block, index);
        let entry = decoder.decode(&block, |name, value| size += name.len() + value.len() + FIELD_OVERHEAD);
        if entry.is_err() {
            break;
        }
    }
    size
}

fn round_trip(mut input: Input<'_>) {
    let mut block = BytesMut::new();
    let mut written: Vec<[Option<&[u8]>; 2]> = Vec::new();
    while !input.is_empty() {
        match input.byte() % 3 {
            0 => {
                let (name, value) = (input.text(), input.text());
                hpack::literal(&mut block, name, value);
                written.push([Some(name), Some(value)]);
            }
            1 => {
                let (name, value) = (1 + input.below(61), input.text());
                hpack::literal_named(&mut block, name, value);
                written.push([None, Some(value)]);
            }
            _ => {
                hpack::indexed(&mut block, 1 + input.below(61));
                written.push([None, None]);
            }
        }
    }
    let mut decoder = Decoder::default();
    let mut expected = written.iter();
    let read = decoder.decode(&block, |name, value| {
        let field = expected.next().expect("no more fields than were written");
        assert!(field[0].is_none_or(|text| text == name) && field[1].is_none_or(|text| text == value));
    });
    assert_eq!(read, Ok(()));
    assert!(expected.next().is_none(), "every field is read");
    assert_eq!(table(&mut decoder), 0, "what is written needs no memory");
}
