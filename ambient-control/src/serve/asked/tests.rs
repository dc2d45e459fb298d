use ambient_core::{Workload, mesh::Update};

use super::*;
use crate::{Change, istiod::pieces::PieceError};

fn board() -> Board {
    let mut board = Board::default();
    let workload = |name: &str| Change::Mesh(Update::Workload(Workload::new(&format!("c//Pod/shop/{name}"), "shop", name).into()));
    board.apply(&["a", "b"].map(workload), true);
    board
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

fn request(board: &Board) -> DeltaDiscoveryRequest {
    let version = version_text(board.get(Kind::Address, "c//Pod/shop/a").unwrap().1.version);
    let versions = [
        ("c//Pod/shop/a", &*version),
        ("c//Pod/shop/b", "of old"),
        ("c//Pod/shop/c", "1"),
        ("d", ""),
    ];
    DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().into(),
        response_nonce: "3".into(),
        resource_names_subscribe: vec!["x".into(), "y".into()],
        initial_resource_versions: versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(of: &HashSet<Arc<str>>) -> Vec<&str> {
    of.iter().map(|name| &**name).collect()
}

fn is_as_asked((request, claims): &(DeltaDiscoveryRequest, Claims)) {
    assert!(request.initial_resource_versions.is_empty());
    assert_eq!(
        (request.response_nonce.as_str(), &request.resource_names_subscribe[..]),
        ("3", &["x".to_owned(), "y".into()][..])
    );
    assert_eq!(
        (names(&claims.has), names(&claims.stale)),
        (vec!["c//Pod/shop/a"], vec!["c//Pod/shop/b"])
    );
    assert_eq!(
        (names(&claims.unknown), names(&claims.without_version)),
        (vec!["c//Pod/shop/c"], vec!["d"])
    );
    assert!(claims.has("c//Pod/shop/c") && !claims.has("d") && claims.names().count() == 4);
}

#[test]
fn a_request_is_read_as_it_comes_whatever_its_parts() {
    let board = board();
    let whole = [framed(&request(&board).encode_to_vec()), framed(&[])].concat();
    for step in 1..whole.len() {
        let (mut asked, mut read) = (Asked::new(), Vec::new());
        for part in whole.chunks(step) {
            asked.handle_data(part);
            while let Some(one) = asked.poll_request(&board).unwrap() {
                read.push(one);
            }
        }
        let [first, second] = &read[..] else { panic!("{read:?}") };
        is_as_asked(first);
        assert_eq!((&second.0, second.1.since), (&DeltaDiscoveryRequest::default(), None));
    }
}

#[test]
fn versions_may_come_before_it_is_said_of_what() {
    let board = board();
    let mut all = request(&board);
    let late = DeltaDiscoveryRequest {
        type_url: std::mem::take(&mut all.type_url),
        ..DeltaDiscoveryRequest::default()
    };
    let mut asked = Asked::new();
    asked.handle_data(&framed(&[all.encode_to_vec(), late.encode_to_vec()].concat()));
    is_as_asked(&asked.poll_request(&board).unwrap().unwrap());
}

#[test]
fn what_a_client_has_is_not_held_in_its_own_words() {
    let board = board();
    let version = version_text(board.get(Kind::Address, "c//Pod/shop/a").unwrap().1.version);
    let mut message = DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    }
    .encode_to_vec();
    let entry = DeltaDiscoveryRequest {
        initial_resource_versions: [("c//Pod/shop/a".to_owned(), version)].into(),
        ..DeltaDiscoveryRequest::default()
    }
    .encode_to_vec();
    (0..100_000).for_each(|_| message.extend_from_slice(&entry));
    let mut asked = Asked::new();
    for part in framed(&message).chunks(16_384) {
        asked.handle_data(part);
        let Some((_, claims)) = asked.poll_request(&board).unwrap() else {
            assert_eq!(asked.claims.names().count(), 1);
            continue;
        };
        assert_eq!(
            (names(&claims.has), claims.since),
            (vec!["c//Pod/shop/a"], Some(board.generation()))
        );
    }
}

#[test]
fn what_is_too_much_is_refused_before_it_is_all_here() {
    let board = board();
    let refused = |request: &DeltaDiscoveryRequest| {
        let mut asked = Asked::new();
        let message = framed(&request.encode_to_vec());
        // All but its end.
        for part in message[..message.len() - 1].chunks(16_384) {
            asked.handle_data(part);
            if let Err(error) = asked.poll_request(&board) {
                return error;
            }
        }
        panic!("it was taken")
    };
    let names = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=NAMES + 1).map(|n| n.to_string()).collect(),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(matches!(refused(&names), RequestError::Names));
    let long = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["x".repeat(LONGEST_NAME + 1), String::new()],
        ..DeltaDiscoveryRequest::default()
    };
    assert!(matches!(refused(&long), RequestError::Name));
    let field = DeltaDiscoveryRequest {
        response_nonce: "x".repeat(LONGEST_FIELD + 100_000),
        ..DeltaDiscoveryRequest::default()
    };
    assert!(matches!(refused(&field), RequestError::Unreadable(PieceError::FieldTooLong { .. })));
    let mut asked = Asked::new();
    asked.handle_data(&[0, 0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(
        asked.poll_request(&board),
        Err(RequestError::Unreadable(PieceError::TooLong { .. }))
    ));
    let mut asked = Asked::new();
    asked.handle_data(&framed(b"no protobuf"));
    assert!(matches!(asked.poll_request(&board), Err(RequestError::Unreadable(_))));
}
