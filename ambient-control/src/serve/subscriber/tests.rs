use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ambient_authz::{Action, Policy, Scope, policy};
use ambient_core::{Endpoint, Mesh, Service, Workload, WorkloadUid, mesh::Update};
use proptest::prelude::*;

use super::{
    super::{response::tests::whole, tests::TIGHT},
    *,
};
use crate::{
    Change,
    istiod::session::{Session, Settings},
    wire::envoy::service::discovery::v3::DeltaDiscoveryResponse,
};

/// As the stream does: what a client says that it has is compared with the board first.
fn hear(subscriber: &mut Subscriber, mut request: DeltaDiscoveryRequest, board: &Board) -> Result<Option<Refusal>, RequestError> {
    let mut claims = Claims::default();
    if let Some(kind) = Kind::of(&request.type_url) {
        for (name, version) in std::mem::take(&mut request.initial_resource_versions) {
            claims.note(board, kind, &name, &version)?;
        }
    }
    subscriber.handle_request(request, claims)
}

/// The next response, as it is on the wire.
fn poll(subscriber: &mut Subscriber, board: &Board) -> Option<DeltaDiscoveryResponse> {
    subscriber.poll_response(board).expect("it keeps up").map(whole)
}

fn request(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn workload(n: usize, version: usize) -> Update {
    let mut workload = Workload::new(&format!("c//Pod/shop/{n}"), "shop", &n.to_string());
    workload.addresses = vec![std::net::IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()])];
    workload.canonical_revision = version.to_string().into();
    workload.node = if n == 0 { "here" } else { "there" }.into();
    Update::Workload(workload.into())
}

fn service(n: usize, endpoints: &[usize]) -> Update {
    let mut service = Service::new("shop", &format!("s{n}.shop"));
    let endpoints = endpoints
        .iter()
        .map(|n| (WorkloadUid::from(format!("c//Pod/shop/{n}")), Endpoint::default()));
    service.endpoints = Arc::new(endpoints.collect());
    Update::Service(service.into())
}

fn board(updates: impl IntoIterator<Item = Update>) -> Board {
    let mut board = Board::within(TIGHT);
    let changes: Vec<Change> = updates.into_iter().map(Change::Mesh).collect();
    board.apply(&changes, true);
    board
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let names: BTreeSet<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names.len(), response.resources.len(), "nothing stands twice in a response");
    names.into_iter().collect()
}

#[test]
fn nothing_is_said_before_all_is_known_and_nothing_is_said_twice() {
    let mut subscriber = Subscriber::default();
    hear(&mut subscriber, request(Kind::Address), &Board::default()).unwrap();
    assert!(poll(&mut subscriber, &Board::default()).is_none());
    let mut board = board([workload(1, 1)]);
    let first = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&first), ["c//Pod/shop/1"]);
    // Not before the first is answered.
    board.apply(&[Change::Mesh(workload(2, 1)), Change::Mesh(workload(2, 2))], true);
    assert!(poll(&mut subscriber, &board).is_none());
    let ack = DeltaDiscoveryRequest {
        response_nonce: first.nonce,
        ..request(Kind::Address)
    };
    assert_eq!(hear(&mut subscriber, ack, &board).unwrap(), None);
    let second = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&second), ["c//Pod/shop/2"]);
    assert!(poll(&mut subscriber, &board).is_none());
}

#[test]
fn an_empty_mesh_is_said_to_be_so() {
    let mut subscriber = Subscriber::default();
    let board = board([]);
    for kind in [Kind::Address, Kind::Authorization] {
        hear(&mut subscriber, request(kind), &board).unwrap();
    }
    let first = poll(&mut subscriber, &board).unwrap();
    assert_eq!(first.type_url, Kind::Authorization.type_url(), "policies come first");
    assert_eq!(poll(&mut subscriber, &board).unwrap().type_url, Kind::Address.type_url());
    assert!(poll(&mut subscriber, &board).is_none());
}

fn policy(name: &str, is_there: bool) -> Change {
    let key = format!("shop/{name}").as_str().into();
    let policy = Policy {
        key,
        namespace: "shop".into(),
        scope: Scope::Selector,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
    };
    Change::Policy(match is_there {
        true => policy::Update::Set(policy.into()),
        false => policy::Update::Remove(policy.key),
    })
}

fn listing(n: usize, policies: &[&str]) -> Change {
    let Update::Workload(workload) = workload(n, 1) else {
        unreachable!()
    };
    let workload = Workload {
        policies: policies.iter().map(|name| format!("shop/{name}").as_str().into()).collect(),
        ..Workload::clone(&workload)
    };
    Change::Mesh(Update::Workload(workload.into()))
}

/// A client in between would refuse what a policy that is gone, and listed still, may refuse.
#[test]
fn that_a_policy_is_gone_is_said_once_the_client_has_who_lists_it_no_more() {
    let mut board = Board::within(TIGHT);
    board.apply(
        &[policy("p", true), policy("q", true), policy("r", true), listing(1, &["p", "r"])],
        true,
    );
    let mut client = Subscriber::default();
    let ack = |client: &mut Subscriber, board: &Board, response: DeltaDiscoveryResponse| {
        let ack = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            ..request(Kind::of(&response.type_url).unwrap())
        };
        assert_eq!(hear(client, ack, board).unwrap(), None);
    };
    for kind in [Kind::Address, Kind::Authorization] {
        hear(&mut client, request(kind), &board).unwrap();
    }
    while let Some(response) = poll(&mut client, &board) {
        ack(&mut client, &board, response);
    }
    board.apply(&[listing(1, &["r"]), policy("p", false), policy("s", true)], true);
    let come = poll(&mut client, &board).unwrap();
    assert_eq!(
        (names(&come), come.removed_resources.len()),
        (vec!["shop/s"], 0),
        "what comes is said first"
    );
    let addresses = poll(&mut client, &board).unwrap();
    assert_eq!(names(&addresses), ["c//Pod/shop/1"]);
    ack(&mut client, &board, come);
    assert!(poll(&mut client, &board).is_none(), "it has not taken it yet");
    // What goes meanwhile waits for its own.
    board.apply(&[listing(1, &[]), policy("r", false)], true);
    assert!(poll(&mut client, &board).is_none());
    ack(&mut client, &board, addresses);
    let gone = poll(&mut client, &board).unwrap();
    assert_eq!(gone.removed_resources, ["shop/p"]);
    let addresses = poll(&mut client, &board).unwrap();
    ack(&mut client, &board, gone);
    ack(&mut client, &board, addresses);
    let gone = poll(&mut client, &board).unwrap();
    assert_eq!(gone.removed_resources, ["shop/r"]);
    ack(&mut client, &board, gone);
    // Where nobody lists it, nothing is waited for.
    board.apply(&[policy("q", false)], true);
    let gone = poll(&mut client, &board).unwrap();
    assert_eq!(gone.removed_resources, ["shop/q"]);
    ack(&mut client, &board, gone);
    // What is back in time was never gone.
    board.apply(&[listing(1, &["s"])], true);
    let addresses = poll(&mut client, &board).unwrap();
    board.apply(&[policy("s", false)], true);
    assert!(poll(&mut client, &board).is_none());
    board.apply(&[policy("s", true)], true);
    let back = poll(&mut client, &board).unwrap();
    assert_eq!((names(&back), back.removed_resources.len()), (vec!["shop/s"], 0));
    ack(&mut client, &board, addresses);
    ack(&mut client, &board, back);
    assert!(poll(&mut client, &board).is_none());
    // Who begins anew is told in the same order.
    let mut again = Subscriber::default();
    let knows = |kind: Kind, name: &str| DeltaDiscoveryRequest {
        initial_resource_versions: [(name.to_owned(), "1".to_owned())].into(),
        ..request(kind)
    };
    hear(&mut again, knows(Kind::Address, "c//Pod/shop/1"), &board).unwrap();
    hear(&mut again, knows(Kind::Authorization, "shop/p"), &board).unwrap();
    let policies = poll(&mut again, &board).unwrap();
    assert_eq!((names(&policies), policies.removed_resources.len()), (vec!["shop/s"], 0));
    let addresses = poll(&mut again, &board).unwrap();
    ack(&mut again, &board, policies);
    assert!(poll(&mut again, &board).is_none());
    ack(&mut again, &board, addresses);
    assert_eq!(poll(&mut again, &board).unwrap().removed_resources, ["shop/p"]);
}

#[test]
fn who_asks_by_name_is_told_of_what_it_asked_for() {
    let mut subscriber = Subscriber::default();
    let mut board = board([workload(1, 1), workload(2, 1)]);
    let both = vec!["*".to_owned()];
    let first = DeltaDiscoveryRequest {
        resource_names_subscribe: both.clone(),
        resource_names_unsubscribe: both,
        ..request(Kind::Address)
    };
    hear(&mut subscriber, first, &board).unwrap();
    let first = poll(&mut subscriber, &board).expect("the first answer is owed");
    assert!(first.resources.is_empty() && first.removed_resources.is_empty());
    let ask = |subscriber: &mut Subscriber, names: &[&str], nonce: String| {
        let ask = DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce,
            ..request(Kind::Address)
        };
        subscriber.handle_request(ask, Claims::default()).unwrap();
    };
    ask(&mut subscriber, &["/10.0.0.1", "/10.0.0.9"], first.nonce);
    let response = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&response), ["c//Pod/shop/1"]);
    assert_eq!(response.removed_resources, ["/10.0.0.9"]);
    // Of what it has asked for it hears again, also of what was not there.
    board.apply(
        &[
            Change::Mesh(workload(1, 2)),
            Change::Mesh(workload(2, 2)),
            Change::Mesh(workload(9, 1)),
        ],
        true,
    );
    ask(&mut subscriber, &[], response.nonce);
    let response = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&response), ["c//Pod/shop/1", "c//Pod/shop/9"]);
    // Asked for again it is said again: whoever asks may have lost it.
    ask(&mut subscriber, &["/10.0.0.1"], response.nonce);
    let response = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&response), ["c//Pod/shop/1"]);
    // An address that several have means all of them.
    let also = |uid: &str| {
        let mut workload = Workload::new(uid, "shop", uid);
        workload.addresses = vec![std::net::IpAddr::from([10, 0, 0, 2])];
        Change::Mesh(Update::Workload(workload.into()))
    };
    board.apply(&[also("c/other"), also("c/third")], true);
    board.apply(&[Change::Mesh(Update::RemoveWorkload("c/third".into()))], true);
    ask(&mut subscriber, &[], response.nonce);
    assert!(poll(&mut subscriber, &board).is_none(), "nothing of that was asked for");
    ask(&mut subscriber, &["/10.0.0.2"], String::new());
    let response = poll(&mut subscriber, &board).unwrap();
    assert_eq!(names(&response), ["c//Pod/shop/2", "c/other"]);
    assert!(response.removed_resources.is_empty());
}

#[test]
fn refusals_are_told_and_what_is_not_served_ends_the_stream() {
    let mut subscriber = Subscriber::default();
    let board = board([workload(1, 1)]);
    hear(&mut subscriber, request(Kind::Address), &board).unwrap();
    let nonce = poll(&mut subscriber, &board).unwrap().nonce;
    let nack = DeltaDiscoveryRequest {
        response_nonce: nonce,
        error_detail: Some(crate::wire::google::rpc::Status {
            message: "c//Pod/shop/1: no".into(),
            ..Default::default()
        }),
        ..request(Kind::Address)
    };
    let refusal = hear(&mut subscriber, nack, &board).unwrap().unwrap();
    assert_eq!((refusal.kind, &*refusal.why), (Kind::Address, "c//Pod/shop/1: no"));
    assert!(
        poll(&mut subscriber, &board).is_none(),
        "what was refused is not said again as it is"
    );
    let mut other = request(Kind::Address);
    other.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    assert!(matches!(hear(&mut subscriber, other, &board), Err(RequestError::Type(_))));
    let many = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=NAMES).map(|n| n.to_string()).collect(),
        ..request(Kind::Address)
    };
    assert!(matches!(hear(&mut subscriber, many, &board), Err(RequestError::Names)));
}

/// To begin anew, as of a client that is too far behind, would come to the same again.
#[test]
fn what_is_too_much_to_be_held_back_is_said_at_once() {
    let mut board = Board::default();
    let all: Vec<String> = (0..=NAMES).map(|n| format!("p{n}")).collect();
    let mut changes: Vec<Change> = all.iter().map(|name| policy(name, true)).collect();
    changes.push(listing(1, &["p0"]));
    board.apply(&changes, true);
    let mut client = Subscriber::default();
    for kind in [Kind::Address, Kind::Authorization] {
        hear(&mut client, request(kind), &board).unwrap();
    }
    while let Some(response) = poll(&mut client, &board) {
        let ack = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            ..request(Kind::of(&response.type_url).unwrap())
        };
        hear(&mut client, ack, &board).unwrap();
    }
    let mut changes: Vec<Change> = all.iter().map(|name| policy(name, false)).collect();
    changes.push(listing(1, &[]));
    board.apply(&changes, true);
    let gone = poll(&mut client, &board).unwrap();
    assert_eq!(Kind::of(&gone.type_url), Some(Kind::Authorization));
    assert_eq!(gone.removed_resources.len(), all.len());
}

/// What a client has refused it knows no version of, and goes by it until it hears that it is gone.
#[test]
fn what_was_refused_and_is_gone_is_taken_back_on_the_next_stream() {
    #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
    let now = Instant::now();
    let session = Session::new(all_of_it());
    let mut pair = Pair {
        session,
        subscriber: Subscriber::default(),
        mesh: Mesh::default(),
        now,
    };
    let before = board([workload(1, 1)]);
    pair.reopen();
    while pair.talk(&before) {}
    let unreadable = |kind: Kind, name: &str| crate::wire::envoy::service::discovery::v3::Resource {
        name: name.into(),
        version: "1".into(),
        resource: Some(prost_types::Any {
            type_url: kind.type_url().into(),
            value: vec![0xff; 3],
        }),
        ..Default::default()
    };
    for (kind, name) in [
        (Kind::Authorization, "shop/p"),
        (Kind::Authorization, "shop/stays"),
        (Kind::Address, "c//Pod/shop/2"),
    ] {
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: "n".into(),
            resources: vec![unreadable(kind, name)],
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(pair.session.handle_whole(now, response).refused.len(), 1);
    }
    assert_eq!(pair.session.faults().len(), 3);
    // Another process serves, which never heard of two of them, and has mended the third.
    let mut after = board([workload(1, 1)]);
    let mended = policy::Update::Set(Arc::new(Policy {
        key: "shop/stays".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: Vec::new(),
        dry_run: false,
    }));
    after.apply(&[Change::Policy(mended)], true);
    pair.reopen();
    let mut changes = Vec::new();
    while let Some(request) = pair.session.poll_request() {
        hear(&mut pair.subscriber, request, &after).unwrap();
    }
    while let Some(response) = poll(&mut pair.subscriber, &after) {
        let kind = Kind::of(&response.type_url).unwrap();
        let ack = DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            ..request(kind)
        };
        changes.extend(pair.session.handle_whole(pair.now, response).changes);
        hear(&mut pair.subscriber, ack, &after).unwrap();
    }
    assert!(pair.session.faults().is_empty(), "{:?}", pair.session.faults());
    let removed = |key: &str| {
        changes
            .iter()
            .any(|change| matches!(change, Change::Policy(policy::Update::Remove(of)) if of.as_str() == key))
    };
    assert!(removed("shop/p") && !removed("shop/stays"), "{changes:?}");
}

/// Whoever answers nothing is told nothing, and what it says meanwhile would be kept.
#[test]
fn what_is_given_back_and_not_seen_to_yet_has_a_bound() {
    let board = board([workload(1, 1)]);
    let longest = |n: usize| format!("{n:0LONGEST_NAME$}");
    let names: [(usize, &dyn Fn(usize) -> String); 2] = [(1000, &|n| n.to_string()), (100, &longest)];
    for (at_once, name) in names {
        let mut subscriber = Subscriber::default();
        hear(&mut subscriber, request(Kind::Address), &board).unwrap();
        poll(&mut subscriber, &board).expect("what it does not answer");
        let give_back = |n: usize| DeltaDiscoveryRequest {
            resource_names_unsubscribe: (n * at_once..(n + 1) * at_once).map(name).collect(),
            ..request(Kind::Address)
        };
        // The same again is no more than it was.
        for _ in 0..3 * NAMES / at_once {
            hear(&mut subscriber, give_back(0), &board).unwrap();
        }
        let refused = (1..2 * NAMES / at_once).find_map(|n| hear(&mut subscriber, give_back(n), &board).err());
        assert!(matches!(refused, Some(RequestError::Names)), "{refused:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Drop(usize),
    List(usize, Vec<usize>),
    Unlist(usize),
    Talk(usize),
    Break,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8usize, 0..4usize).prop_map(|(n, version)| Step::Put(n, version)),
        2 => (0..8usize).prop_map(Step::Drop),
        2 => (0..3usize, prop::collection::vec(0..8usize, 0..5)).prop_map(|(n, of)| Step::List(n, of)),
        1 => (0..3usize).prop_map(Step::Unlist),
        6 => (1..5usize).prop_map(Step::Talk),
        1 => Just(Step::Break),
        1 => (0..60u64).prop_map(Step::Wait),
    ]
}

/// Both ends, with nothing between them but messages that may be lost with a stream.
struct Pair {
    session: Session,
    subscriber: Subscriber,
    mesh: Mesh,
    now: Instant,
}

impl Pair {
    fn reopen(&mut self) {
        self.session.handle_closed();
        self.session.handle_opened(self.now);
        self.subscriber = Subscriber::new("here");
    }

    /// One message each way, so many times; `false` when there was nothing to say any more.
    fn talk(&mut self, board: &Board) -> bool {
        let mut said = false;
        while let Some(request) = self.session.poll_request() {
            hear(&mut self.subscriber, request, board).unwrap();
            said = true;
        }
        if let Some(response) = poll(&mut self.subscriber, board) {
            let received = self.session.handle_whole(self.now, response);
            assert!(received.refused.is_empty(), "{received:?}");
            self.take(received.changes);
            said = true;
        }
        said
    }

    fn take(&mut self, changes: Vec<Change>) {
        let updates = changes.into_iter().filter_map(|change| match change {
            Change::Mesh(update) => Some(update),
            _ => None,
        });
        self.mesh = self.mesh.apply(updates);
    }
}

/// The longest request, in bytes: nothing that is held fits, some of what may be held does, or all of it.
fn longest() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 50..400usize, Just(usize::MAX)]
}

fn all_of_it() -> Settings {
    Settings {
        node: Default::default(),
        on_demand: false,
        trust: false,
        policies: ambient_authz::wire::Settings::default(),
        settling: Duration::from_secs(10),
        grace: Duration::from_secs(30),
        longest_request: usize::MAX,
        remembers: true,
    }
}

proptest! {
    /// Whatever changes, wherever the stream breaks, and however little of what it has a client may name: in the end both know the
    /// same mesh.
    #[test]
    fn client_and_server_end_with_the_same_mesh(steps in prop::collection::vec(step(), 0..80), longest_request in longest()) {
        #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
        let now = Instant::now();
        let session = Session::new(Settings { longest_request, ..all_of_it() });
        let mut pair = Pair { session, subscriber: Subscriber::default(), mesh: Mesh::default(), now };
        let mut board = board([]);
        pair.reopen();
        for step in steps {
            let update = match step {
                Step::Put(n, version) => Some(workload(n, version)),
                Step::Drop(n) => Some(Update::RemoveWorkload(format!("c//Pod/shop/{n}").into())),
                Step::List(n, of) => Some(service(n, &of)),
                Step::Unlist(n) => Some(Update::RemoveService(ambient_core::NamespacedHostname::new("shop", &format!("s{n}.shop")))),
                Step::Talk(times) => {
                    for _ in 0..times {
                        pair.talk(&board);
                    }
                    None
                }
                Step::Break => {
                    // What was said last is lost.
                    poll(&mut pair.subscriber, &board);
                    pair.reopen();
                    None
                }
                Step::Wait(seconds) => {
                    pair.now += Duration::from_secs(seconds);
                    let changes = pair.session.handle_timeout(pair.now).changes;
                    pair.take(changes);
                    None
                }
            };
            board.apply(&update.map(Change::Mesh).into_iter().collect::<Vec<_>>(), true);
        }
        while pair.talk(&board) {}
        let changes = pair.session.handle_timeout(pair.now + Duration::from_secs(30)).changes;
        pair.take(changes);
        prop_assert!(pair.session.is_synced());
        let there = board.mesh();
        prop_assert_eq!(pair.mesh.workloads().count(), there.workloads().count());
        for workload in there.workloads() {
            let here = pair.mesh.workload(&workload.uid);
            prop_assert_eq!(here.map(|w| &w.canonical_revision), Some(&workload.canonical_revision));
        }
        prop_assert_eq!(pair.mesh.services().count(), there.services().count());
        for service in there.services() {
            let ends = |mesh: &Mesh| -> BTreeSet<String> {
                let all = mesh.endpoints(&service.name).into_iter().flat_map(|e| e.iter().map(|(uid, _)| uid.clone()));
                all.filter(|uid| mesh.workload(uid).is_some()).map(|uid| uid.to_string()).collect()
            };
            prop_assert_eq!(ends(&pair.mesh), ends(there));
        }
    }
}

fn asked_one_by_one() -> Settings {
    let here = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("here".into())),
    };
    Settings {
        node: crate::wire::envoy::config::core::v3::Node {
            metadata: Some(prost_types::Struct {
                fields: [("NODE_NAME".to_owned(), here)].into(),
            }),
            ..Default::default()
        },
        on_demand: true,
        trust: false,
        policies: ambient_authz::wire::Settings::default(),
        settling: Duration::from_secs(10),
        grace: Duration::from_secs(30),
        longest_request: usize::MAX,
        remembers: true,
    }
}

#[derive(Clone, Debug)]
enum Wish {
    Change(Step),
    Ask(usize),
    GiveBack(usize),
}

/// Workloads by address and by UID, services by name, and what is never there.
fn name(n: usize) -> String {
    match n {
        0..8 => format!("/10.0.0.{n}"),
        8..16 => format!("c//Pod/shop/{}", n - 8),
        16..19 => format!("shop/s{}.shop", n - 16),
        _ => format!("/192.0.2.{n}"),
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        6 => step().prop_map(Wish::Change),
        2 => (0..21usize).prop_map(Wish::Ask),
        1 => (0..21usize).prop_map(Wish::GiveBack),
    ]
}

proptest! {
    /// Asked one by one, over streams that break anywhere: in the end the client holds what it asks for, the endpoints of the
    /// services among it, and the workloads of its own node, each as the server has it; nothing else, and nothing is owed.
    #[test]
    fn who_asks_one_by_one_ends_with_what_is_asked_for(wishes in prop::collection::vec(wish(), 0..80), longest_request in longest()) {
        #[expect(clippy::disallowed_methods, reason = "some instant to begin with")]
        let now = Instant::now();
        let session = Session::new(Settings { longest_request, ..asked_one_by_one() });
        let mut pair = Pair { session, subscriber: Subscriber::new("here"), mesh: Mesh::default(), now };
        let (mut board, mut asked) = (board([]), BTreeSet::new());
        pair.reopen();
        for wish in wishes {
            let update = match wish {
                Wish::Ask(n) => {
                    pair.session.ask(&name(n));
                    asked.insert(name(n));
                    None
                }
                Wish::GiveBack(n) => {
                    let changes = pair.session.give_back(&[name(n)]).changes;
                    pair.take(changes);
                    asked.remove(&name(n));
                    None
                }
                Wish::Change(Step::Put(n, version)) => Some(workload(n, version)),
                Wish::Change(Step::Drop(n)) => Some(Update::RemoveWorkload(format!("c//Pod/shop/{n}").into())),
                Wish::Change(Step::List(n, of)) => Some(service(n, &of)),
                Wish::Change(Step::Unlist(n)) => Some(Update::RemoveService(name(16 + n).parse().unwrap())),
                Wish::Change(Step::Talk(times)) => {
                    for _ in 0..times {
                        pair.talk(&board);
                    }
                    None
                }
                Wish::Change(Step::Break) => {
                    poll(&mut pair.subscriber, &board);
                    pair.reopen();
                    None
                }
                Wish::Change(Step::Wait(seconds)) => {
                    pair.now += Duration::from_secs(seconds);
                    let changes = pair.session.handle_timeout(pair.now).changes;
                    pair.take(changes);
                    None
                }
            };
            board.apply(&update.map(Change::Mesh).into_iter().collect::<Vec<_>>(), true);
        }
        pair.session.ask("one more");
        while pair.talk(&board) {}
        let changes = pair.session.handle_timeout(pair.now + Duration::from_secs(30)).changes;
        pair.take(changes);
        let changes = pair.session.give_back(&["one more".into()]).changes;
        pair.take(changes);
        for name in &asked {
            prop_assert_eq!(pair.session.ask(name), crate::istiod::session::Ask::Answered, "{}", name);
        }

        let there = board.mesh();
        let services: BTreeSet<String> = there.services().map(|s| s.name.to_string()).filter(|name| asked.contains(name)).collect();
        let mut workloads = BTreeSet::new();
        for workload in there.workloads() {
            let by_address = workload.addresses.iter().any(|ip| asked.contains(&format!("/{ip}")));
            let by_service = board.services_of(workload).any(|service| services.contains(&service));
            if by_address || by_service || asked.contains(workload.uid.as_str()) || &*workload.node == "here" {
                workloads.insert((workload.uid.to_string(), workload.canonical_revision.to_string()));
            }
        }
        let held: BTreeSet<_> = pair.mesh.workloads().map(|w| (w.uid.to_string(), w.canonical_revision.to_string())).collect();
        prop_assert_eq!(held, workloads);
        let held: BTreeSet<_> = pair.mesh.services().map(|s| s.name.to_string()).collect();
        prop_assert_eq!(held, services);
    }
}
