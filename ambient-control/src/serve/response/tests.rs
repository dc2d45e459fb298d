use std::collections::BTreeSet;

use ambient_core::{Workload, mesh::Update};

use super::{
    super::{board::Board, tests::TIGHT},
    *,
};
use crate::{Change, wire::envoy::service::discovery::v3::DeltaDiscoveryResponse};

/// A response as whoever has got all of it reads it.
pub(in crate::serve) fn whole(response: Response) -> DeltaDiscoveryResponse {
    let mut writing = response.write();
    let parts: Vec<u8> = std::iter::from_fn(|| writing.next_part()).flatten().collect();
    let ([0, length @ ..], message) = parts.split_first_chunk::<5>().map(|(head, rest)| (*head, rest)).unwrap() else {
        panic!("it is compressed")
    };
    assert_eq!(
        u32::from_be_bytes(length) as usize,
        message.len(),
        "it is as long as was said before"
    );
    DeltaDiscoveryResponse::decode(message).unwrap()
}

/// A resource that is a field.
pub(in crate::serve) fn resource(field: &[u8]) -> wire::Resource {
    let mut response = DeltaDiscoveryResponse::decode(field).unwrap();
    assert_eq!(response.resources.len(), 1);
    response.resources.remove(0)
}

fn workload(n: usize, revision: &str) -> Change {
    let mut workload = Workload::new(&format!("c//Pod/shop/{n}"), "shop", &n.to_string());
    workload.canonical_revision = revision.into();
    workload.addresses = vec![std::net::IpAddr::from([10, 0, (n >> 8) as u8, n as u8])];
    Change::Mesh(Update::Workload(workload.into()))
}

fn response(board: &Board, scan: Option<Scan>) -> Response {
    Response {
        kind: Kind::Address,
        generation: board.generation(),
        nonce: "7".into(),
        some: Vec::new(),
        scan,
        removed: Vec::new(),
    }
}

#[test]
fn what_is_written_in_parts_is_one_message() {
    let mut board = Board::within(TIGHT);
    board.apply(&(0..1000).map(|n| workload(n, "1")).collect::<Vec<_>>(), true);
    let scan = Scan {
        of: board.all(Kind::Address).clone(),
        after: 0,
        has: None,
    };
    let mut response = response(&board, Some(scan));
    let extra = board.get(Kind::Address, "c//Pod/shop/7").unwrap().1.field.clone();
    response.some.push(extra);
    response.removed = vec!["gone".into(), "x".repeat(300).into()];
    // What changes meanwhile is not in it.
    board.apply(&(0..1000).map(|n| workload(n, "2")).collect::<Vec<_>>(), true);
    let read = whole(response);
    assert_eq!((read.nonce.as_str(), read.type_url.as_str()), ("7", Kind::Address.type_url()));
    assert_eq!(read.system_version_info, "1000");
    assert_eq!(read.removed_resources, ["gone".to_owned(), "x".repeat(300)]);
    assert_eq!(read.resources.len(), 1001);
    let names: BTreeSet<_> = read.resources.iter().map(|resource| &resource.name).collect();
    assert_eq!(names.len(), 1000);
    for resource in &read.resources {
        assert_eq!((resource.aliases.len(), resource.version.len()), (1, 16));
        let body = &resource.resource.as_ref().unwrap().value;
        let Change::Mesh(Update::Workload(workload)) = crate::istiod::read::address(&resource.name, body).unwrap().change else {
            panic!()
        };
        assert_eq!(&*workload.canonical_revision, "1");
    }
}

#[test]
fn of_what_a_client_has_it_is_told_what_has_changed() {
    let mut board = Board::within(TIGHT);
    board.apply(&(0..TIGHT.remembered).map(|n| workload(n, "1")).collect::<Vec<_>>(), true);
    let after = board.generation();
    board.apply(&[workload(3, "2"), workload(TIGHT.remembered, "1")], true);
    let scan = |has: Option<&[&str]>| Scan {
        of: board.all(Kind::Address).clone(),
        after,
        has: has.map(|has| has.iter().map(|name| Arc::from(*name)).collect()),
    };
    assert_eq!(whole(response(&board, Some(scan(None)))).resources.len(), 2);
    let has = scan(Some(&["c//Pod/shop/1", "c//Pod/shop/3"]));
    assert_eq!(whole(response(&board, Some(has))).resources.len(), TIGHT.remembered, "all but one");
    assert!(response(&board, None).is_empty() && !response(&board, Some(scan(None))).is_empty());
}

#[test]
fn a_part_is_no_longer_than_it_must_be() {
    let mut board = Board::within(TIGHT);
    board.apply(&(0..5000).map(|n| workload(n, "1")).collect::<Vec<_>>(), true);
    let scan = Scan {
        of: board.all(Kind::Address).clone(),
        after: 0,
        has: None,
    };
    let mut writing = response(&board, Some(scan)).write();
    let parts: Vec<_> = std::iter::from_fn(|| writing.next_part()).collect();
    let longest = board
        .all(Kind::Address)
        .values()
        .map(|resource| resource.field.len())
        .max()
        .unwrap();
    assert!(parts.len() > 10 && parts.iter().all(|part| part.len() < PART + longest));
}
