use proptest::prelude::*;
use prost_types::Any;

use super::*;

fn resource(name: &str, body: usize) -> Resource {
    Resource {
        name: name.into(),
        version: "7".into(),
        resource: Some(Any {
            type_url: "type.googleapis.com/istio.workload.Address".into(),
            value: vec![7; body],
        }),
        aliases: vec!["net/192.0.2.1".into()],
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

fn take(pieces: &mut Pieces) -> Result<Vec<Piece>, PieceError> {
    std::iter::from_fn(|| pieces.poll_piece().transpose()).collect()
}

#[test]
fn a_resource_is_given_once_it_is_there_and_not_held_until_the_end() {
    let response = DeltaDiscoveryResponse {
        resources: (0..100).map(|n| resource(&n.to_string(), 1000)).collect(),
        nonce: "n".into(),
        ..DeltaDiscoveryResponse::default()
    };
    let mut pieces = Pieces::new(1 << 20);
    let mut given = Vec::new();
    for part in framed(&response.encode_to_vec()).chunks(700) {
        pieces.handle_data(part);
        given.extend(take(&mut pieces).unwrap());
        assert!(
            pieces.fields.come.len() < 1200 && pieces.fields.come.capacity() < 8192,
            "{pieces:?}"
        );
    }
    assert_eq!(given.len(), 101);
    let Some(Piece::End(end)) = given.pop() else { panic!() };
    assert_eq!((end.nonce.as_str(), end.resources.len()), ("n", 0));
}

#[test]
fn what_was_large_is_let_go() {
    let mut pieces = Pieces::new(1 << 24);
    let response = DeltaDiscoveryResponse {
        resources: vec![resource("large", 1 << 22)],
        ..DeltaDiscoveryResponse::default()
    };
    for part in framed(&response.encode_to_vec()).chunks(16_384) {
        pieces.handle_data(part);
    }
    assert_eq!(take(&mut pieces).unwrap().len(), 2);
    pieces.handle_data(&[0]);
    assert!(pieces.fields.come.capacity() <= ROOM, "{}", pieces.fields.come.capacity());
}

#[test]
fn what_is_no_stream_is_refused_with_the_reason() {
    let mut key_of_a_group = framed(&[0x1b, 0x1c]);
    let mut over_the_end = framed(&[0x12, 9, 0]);
    let mut no_number = framed(&[0x80; 11]);
    let mut half_a_number = framed(&[0x12, 0x80]);
    let mut no_resource = framed(&[0x12, 2, 0x0a, 9]);
    let mut no_text = framed(&[0x2a, 1, 0xff]);
    let mut compressed = vec![1, 0, 0, 0, 0];
    let mut too_long = vec![0, 0, 1, 0, 0];
    for (bytes, why) in [
        (&mut key_of_a_group, "none of the delta protocol"),
        (&mut over_the_end, "none of the delta protocol"),
        (&mut no_number, "none of the delta protocol"),
        (&mut half_a_number, "none of the delta protocol"),
        (&mut no_resource, "none of the delta protocol: "),
        (&mut no_text, "none of the delta protocol: "),
        (&mut compressed, "is compressed"),
        (&mut too_long, "65536 bytes, and 1000 are the most"),
    ] {
        let mut pieces = Pieces::new(1000);
        pieces.handle_data(bytes);
        let error = take(&mut pieces).unwrap_err().to_string();
        assert!(error.contains(why), "{bytes:?}: {error}");
    }
}

proptest! {
    /// Wherever a stream is parted, and in whatever order fields stand in it.
    #[test]
    fn pieces_are_what_the_whole_is(
        responses in prop::collection::vec((prop::collection::vec((0..40usize, any::<bool>()), 0..5), any::<[bool; 4]>()), 1..4),
        parts in prop::collection::vec(1..60usize, 1..20),
    ) {
        let mut stream = Vec::new();
        let mut wanted = Vec::new();
        for (resources, [first, kind, removed, unknown]) in responses {
            let rest = DeltaDiscoveryResponse {
                type_url: if kind { "some".into() } else { String::new() },
                nonce: "n".repeat(200),
                removed_resources: vec!["gone".into(); usize::from(removed) * 2],
                ..DeltaDiscoveryResponse::default()
            };
            let mut message = Vec::new();
            let mut others = rest.encode_to_vec();
            if unknown {
                // Fields that are not known, of every form.
                others.extend_from_slice(&[0x78, 0x80, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4, 0x7a, 1, 9]);
            }
            if first {
                message.extend_from_slice(&others);
            }
            for (body, long_key) in resources {
                let resource = resource("some", body);
                // A key may take more bytes than it must.
                message.extend_from_slice(if long_key { &[0x92, 0x00] } else { &[0x12] });
                message.extend_from_slice(&resource.encode_length_delimited_to_vec());
                wanted.push(Piece::Resource(resource));
            }
            if !first {
                message.extend_from_slice(&others);
            }
            stream.extend_from_slice(&framed(&message));
            wanted.push(Piece::End(rest));
        }
        let mut pieces = Pieces::new(1 << 20);
        let (mut given, mut parts) = (Vec::new(), parts.into_iter().cycle());
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(parts.next().unwrap_or(1).min(rest.len()));
            pieces.handle_data(part);
            given.extend(take(&mut pieces).unwrap());
            rest = after;
        }
        prop_assert_eq!(given, wanted);
    }
}
