use ambient_authz::{Action, Policy, Scope};
use ambient_core::{Endpoint, PolicyKey, Service};

use super::{super::tests::TIGHT, *};

#[cfg(feature = "manifests")]
mod refused;

fn workload(name: &str) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
    workload.addresses = vec!["10.0.0.1".parse().unwrap()];
    workload.into()
}

fn service(endpoints: &[(&str, Health)]) -> Arc<Service> {
    let mut service = Service::new("shop", "web.shop");
    let endpoint = |(name, health): &(&str, Health)| {
        let endpoint = Endpoint {
            health: *health,
            ..Endpoint::default()
        };
        (WorkloadUid::from(format!("c//Pod/shop/{name}")), endpoint)
    };
    service.endpoints = Arc::new(endpoints.iter().map(endpoint).collect());
    service.into()
}

/// What of a resource is not xDS.
fn body(resource: &Resource) -> Vec<u8> {
    response::tests::resource(&resource.field).resource.unwrap().value
}

fn names(board: &Board, from: u64) -> Vec<String> {
    board.since(from).unwrap().map(|(_, name)| name.to_string()).collect()
}

#[test]
fn endpoints_that_a_service_lists_are_said_by_the_workloads() {
    let mut board = Board::within(TIGHT);
    let update = |board: &mut Board, update| {
        let from = board.generation();
        board.apply(&[Change::Mesh(update)], true);
        names(board, from)
    };
    assert_eq!(update(&mut board, Update::Workload(workload("a"))), ["c//Pod/shop/a"]);
    update(&mut board, Update::Workload(workload("b")));
    let listed = service(&[("a", Health::Healthy), ("b", Health::Unhealthy), ("c", Health::Healthy)]);
    // One that is not known yet is nobody's news, and one that may not be chosen is none either.
    assert_eq!(update(&mut board, Update::Service(listed)), ["shop/web.shop", "c//Pod/shop/a"]);
    assert_eq!(update(&mut board, Update::Workload(workload("c"))), ["c//Pod/shop/c"]);
    let services = |board: &Board, name: &str| board.with_services(&workload(name)).services.len();
    assert_eq!(["a", "b", "c"].map(|name| services(&board, name)), [1, 0, 1]);
    assert_eq!(
        update(&mut board, Update::Service(service(&[("a", Health::Healthy)]))),
        ["c//Pod/shop/c"]
    );
    let name = service(&[]).name.clone();
    assert_eq!(update(&mut board, Update::RemoveService(name)), ["shop/web.shop", "c//Pod/shop/a"]);
    assert!(board.listing.is_empty() && board.listed.is_empty());
    // What is as it was is no news.
    assert!(update(&mut board, Update::Workload(workload("a"))).is_empty());
}

/// Whichever of them came first, and whichever goes: who asks for the address must not hear that nobody has it.
#[test]
fn an_address_means_all_who_have_it_now() {
    let mut board = Board::within(TIGHT);
    let mut elsewhere = Workload::clone(&workload("b"));
    elsewhere.addresses = vec!["10.0.0.2".parse().unwrap()];
    let mut had = |update| {
        board.apply(&[Change::Mesh(update)], true);
        let all = board.meant(Kind::Address, "/10.0.0.1").map(|(name, _)| &name[name.len() - 1..]);
        let all = all.collect::<BTreeSet<_>>().into_iter().collect::<String>();
        let one = board.get(Kind::Address, "/10.0.0.1");
        assert_eq!(one.is_none(), all.is_empty());
        all
    };
    let gone = |name: &str| Update::RemoveWorkload(format!("c//Pod/shop/{name}").into());
    let there = |name: &str| Update::Workload(workload(name));
    for (update, wanted) in [
        (there("a"), "a"),
        (there("b"), "ab"),
        (there("c"), "abc"),
        (gone("c"), "ab"),
        (there("c"), "abc"),
        (gone("a"), "bc"),
        (Update::Workload(elsewhere.into()), "c"),
        (there("b"), "bc"),
        (gone("c"), "b"),
        (gone("b"), ""),
    ] {
        assert_eq!(had(update.clone()), wanted, "{update:?}");
    }
    let resources = &board.kinds[Kind::Address as usize];
    assert!(resources.aliases.len() + resources.shared.len() == 0, "{resources:?}");
}

#[test]
fn a_policy_that_cannot_be_read_stays_or_refuses_its_scope() {
    let mut board = Board::within(TIGHT);
    let key = PolicyKey::from("shop/p");
    let unreadable_in = |dry_run| {
        Change::Policy(policy::Update::Unreadable(Arc::new(policy::Unreadable {
            key: "shop/p".into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            only_new: false,
            dry_run,
            error: "spec".into(),
        })))
    };
    let unreadable = || unreadable_in(false);
    board.apply(&[unreadable_in(true)], true);
    assert!(board.get(Kind::Authorization, "shop/p").is_none(), "in dry run it refuses nothing");
    assert!(board.apply(&[unreadable()], true));
    let body = body(board.get(Kind::Authorization, "shop/p").unwrap().1);
    let read = crate::istiod::read::authorization("shop/p", &body, &ambient_authz::wire::Settings::default()).unwrap();
    let (Change::Policy(read), Change::Policy(told)) = (read.change, unreadable()) else {
        panic!()
    };
    assert_eq!(read, told);
    let good = Policy {
        key: key.clone(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: Vec::new(),
        dry_run: false,
    };
    assert!(board.apply(&[Change::Policy(policy::Update::Set(good.into()))], true));
    assert!(!board.apply(&[unreadable()], true), "the last good version stays");
    assert!(board.apply(&[Change::Policy(policy::Update::Remove(key))], true));
    assert!(board.get(Kind::Authorization, "shop/p").is_none());
}

#[test]
fn who_is_too_far_behind_is_told_so() {
    let mut board = Board::within(TIGHT);
    for n in 0..TIGHT.remembered + 10 {
        board.apply(&[Change::Mesh(Update::Workload(workload(&n.to_string())))], false);
    }
    assert!(board.since(9).is_none() && board.since(10).is_some());
    assert_eq!(board.since(board.generation()).unwrap().count(), 0);
    assert!(board.since(board.generation() + 1).is_none());
}

#[test]
fn removals_are_remembered_those_of_the_last_change_all() {
    let mut board = Board::within(TIGHT);
    let many = || (0..2 * TIGHT.remembered).map(|n| n.to_string());
    let put: Vec<_> = many().map(|n| Change::Mesh(Update::Workload(workload(&n)))).collect();
    let take: Vec<_> = many()
        .map(|n| Change::Mesh(Update::RemoveWorkload(format!("c//Pod/shop/{n}").as_str().into())))
        .collect();
    board.apply(&put, true);
    let before = board.generation();
    board.apply(&take, true);
    let removed = |board: &Board, since| {
        let names = board.removed_since(Kind::Address, since)?;
        Some(names.map(ToString::to_string).collect::<BTreeSet<_>>())
    };
    assert_eq!(
        removed(&board, before).unwrap().len(),
        2 * TIGHT.remembered,
        "whoever kept up hears of all"
    );
    // What is back is not gone, and what is not remembered is not told wrongly.
    let after = board.generation();
    board.apply(&put[..1], true);
    assert!(removed(&board, before).is_none());
    assert_eq!(removed(&board, after), Some(BTreeSet::new()));
    let last: Vec<_> = removed(&board, after - 2).unwrap().into_iter().collect();
    assert_eq!(last.len(), 2);
    let back = last[0].rsplit('/').next().unwrap();
    board.apply(&[Change::Mesh(Update::Workload(workload(back)))], true);
    assert_eq!(
        removed(&board, after - 2),
        Some(BTreeSet::from([last[1].clone()])),
        "the other is there again"
    );
}

#[cfg(feature = "objects")]
mod from_objects {
    use std::collections::BTreeMap;

    use ambient_core::Service;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        istiod::read,
        objects::{
            Objects, Settings,
            tests::{Step, object, report, steps},
        },
    };

    /// The mesh as a client reads it.
    fn read(board: &Board) -> (Mesh, usize) {
        let all: Vec<_> = board.all(Kind::Address).iter().collect();
        let updates = all
            .iter()
            .map(|(name, resource)| match read::address(name, &body(resource)).unwrap().change {
                Change::Mesh(update) => update,
                other => panic!("{other:?}"),
            });
        (Mesh::default().apply(updates.collect::<Vec<_>>()), all.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// What objects mean, said and read, is what they mean: waypoints, networks, localities, weights and all.
        #[test]
        fn what_objects_mean_is_read_as_it_was_meant(steps in steps()) {
            let mut objects = Objects::new(Settings::default());
            let (mut board, mut meant) = (Board::within(TIGHT), Mesh::default());
            for step in steps.into_iter().chain([Step::Tell]) {
                match step {
                    Step::Set(value) => objects.set(object(value)),
                    Step::Remove(key) => objects.remove(&key),
                    Step::Report(node, pods) => objects.report(node, report(&pods)),
                    Step::Tell => {
                        let changes = objects.changes();
                        board.apply(&changes, true);
                        let updates = changes.into_iter().filter_map(|change| match change {
                            Change::Mesh(update) => Some(update),
                            _ => None,
                        });
                        meant = meant.apply(updates);
                    }
                }
            }
            let (heard, count) = read(&board);
            prop_assert_eq!(count, meant.workloads().count() + meant.services().count());
            for workload in meant.workloads() {
                prop_assert_eq!(heard.workload(&workload.uid), Some(workload));
            }
            for service in meant.services() {
                let mut wanted = Service::clone(service);
                wanted.resource = service.short_name().into();
                prop_assert_eq!(heard.service(&service.name).map(AsRef::as_ref), Some(&wanted));
                let (here, there) = (meant.endpoints(&service.name), heard.endpoints(&service.name));
                let members = |all: Option<&Shards<WorkloadUid, Endpoint>>| -> BTreeMap<WorkloadUid, Endpoint> {
                    let all = all.into_iter().flat_map(|all| all.iter());
                    all.map(|(uid, endpoint)| (uid.clone(), endpoint.clone())).collect()
                };
                prop_assert_eq!(members(here), members(there));
            }
        }
    }
}
