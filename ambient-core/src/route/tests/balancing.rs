use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Who was chosen in many draws, by name and how often.
fn chosen(mesh: &Mesh, source: &Workload, to: &str, draws: u64) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for draw in 0..draws {
        let plan = match ask(
            mesh,
            source,
            to,
            &Hints {
                draw: draw.wrapping_mul(0x9e37_79b9),
                ..Hints::default()
            },
        ) {
            Route::Go(plan) => plan,
            other => panic!("{other:?}"),
        };
        let name = plan.destination().map_or_else(|| "nobody".into(), |w| w.name.to_string());
        *seen.entry(name).or_insert(0) += 1;
    }
    seen
}

fn names(seen: &BTreeMap<String, u64>) -> Vec<&str> {
    seen.keys().map(String::as_str).collect()
}

fn placed(name: &str, ip: &str, place: [&str; 3], node: &str, cluster: &str) -> Workload {
    Workload {
        locality: place.map(Into::into),
        node: node.into(),
        cluster: cluster.into(),
        ..captured(name, &[ip])
    }
}

fn balanced(mode: BalancerMode, preferences: &[Scope]) -> LoadBalancer {
    LoadBalancer {
        preferences: preferences.to_vec(),
        mode,
        health_policy: HealthPolicy::OnlyHealthy,
    }
}

#[test]
fn scopes_and_modes() {
    use BalancerMode::{Failover, Standard, Strict};
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let source = placed("client", "10.0.0.1", ["r1", "z1", "s1"], "n1", "c1");
    let all = [
        placed("same", "10.0.1.1", ["r1", "z1", "s1"], "n1", "c1"),
        placed("node", "10.0.1.2", ["r1", "z1", "s1"], "n2", "c1"),
        placed("zone", "10.0.1.3", ["r1", "z2", "s1"], "n3", "c1"),
        placed("region", "10.0.1.4", ["r2", "z1", "s1"], "n4", "c2"),
    ];
    let endpoints: Vec<(&Workload, &[(u16, u16)])> = all.iter().map(|w| (w, &[][..])).collect();
    for (mode, preferences, without, expected) in [
        (Standard, &[Region, Zone][..], 0, &["node", "region", "same", "zone"][..]),
        (Strict, &[], 0, &["node", "region", "same", "zone"]),
        (Strict, &[Region], 0, &["node", "same", "zone"]),
        (Strict, &[Region, Zone, Subzone], 0, &["node", "same"]),
        (Strict, &[Node], 0, &["same"]),
        (Strict, &[Cluster], 0, &["node", "same", "zone"]),
        (Strict, &[Network, Node], 0, &["same"]),
        (Strict, &[Node], 1, &[]),
        (Failover, &[], 0, &["node", "region", "same", "zone"]),
        (Failover, &[Region, Zone, Node], 0, &["same"]),
        (Failover, &[Region, Zone, Node], 1, &["node"]),
        (Failover, &[Region, Zone, Node], 2, &["zone"]),
        (Failover, &[Region, Zone, Node], 3, &["region"]),
        // A zone counts only within what stands before it.
        (Failover, &[Region, Subzone], 2, &["zone"]),
        (Failover, &[Network, Region, Zone], 2, &["zone"]),
    ] {
        let mut web = service("web", "10.96.0.1", &[(80, 80)], &endpoints[without..]);
        web.load_balancer = Some(balanced(mode, preferences));
        let mesh = mesh(&all.iter().collect::<Vec<_>>(), &[&web]);
        if expected.is_empty() {
            let refused = Route::Refuse(Refusal::NoEndpoint(web.name.clone()));
            assert_eq!(route(&mesh, &source, "10.96.0.1:80"), refused);
            continue;
        }
        let seen = chosen(&mesh, &source, "10.96.0.1:80", 200);
        assert_eq!(names(&seen), expected, "{mode:?} {preferences:?} without {without}");
    }
}

#[test]
fn passthrough_goes_where_it_was_meant_to() {
    let source = pod("client", &["10.0.0.1"]);
    let server = captured("server", &["10.0.0.2"]);
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[(&server, &[])]);
    web.load_balancer = Some(balanced(BalancerMode::Passthrough, &[]));
    let plan = Route::Go(Plan::Passthrough("10.96.0.1:80".parse().unwrap()));
    assert_eq!(route(&mesh(&[&server], &[&web]), &source, "10.96.0.1:80"), plan);
}

#[test]
fn health_counts_unless_the_service_says_otherwise() {
    let source = pod("client", &["10.0.0.1"]);
    let web = service("web", "10.96.0.1", &[(80, 80)], &[]);
    let named = |name, ip, health| Workload {
        services: vec![Membership {
            service: web.name.clone(),
            ports: PortMap::default(),
        }],
        health,
        ..captured(name, &[ip])
    };
    let (well, sick) = (
        named("well", "10.0.0.2", Health::Healthy),
        named("sick", "10.0.0.3", Health::Unhealthy),
    );
    let seen = chosen(&mesh(&[&well, &sick], &[&web]), &source, "10.96.0.1:80", 100);
    assert_eq!(names(&seen), ["well"]);
    let mut open = web.clone();
    open.load_balancer = Some(LoadBalancer {
        health_policy: HealthPolicy::AllowAll,
        ..LoadBalancer::default()
    });
    // Also where the service came before it was said, and the endpoints before that.
    let mesh = mesh(&[&well, &sick], &[&web]).apply([Update::Service(Arc::new(open))]);
    assert_eq!(names(&chosen(&mesh, &source, "10.96.0.1:80", 100)), ["sick", "well"]);
}

#[test]
fn capacity_is_a_weight() {
    let source = pod("client", &["10.0.0.1"]);
    let web = service("web", "10.96.0.1", &[(80, 80)], &[]);
    let of = |name: &str, ip: &str, capacity| Workload {
        services: vec![Membership {
            service: web.name.clone(),
            ports: PortMap::default(),
        }],
        capacity,
        ..captured(name, &[ip])
    };
    let (one, three, none) = (of("one", "10.0.0.2", 1), of("three", "10.0.0.3", 3), of("none", "10.0.0.4", 0));
    let seen = chosen(&mesh(&[&one, &three, &none], &[&web]), &source, "10.96.0.1:80", 4000);
    assert_eq!(names(&seen), ["one", "three"]);
    assert!((850..1150).contains(&seen["one"]), "{seen:?}");
    let refused = Route::Refuse(Refusal::NoEndpoint(web.name.clone()));
    assert_eq!(route(&mesh(&[&none], &[&web]), &source, "10.96.0.1:80"), refused);
}

/// Of very many endpoints one is drawn without looking at all: each is as likely as another, and none that may not be is.
#[test]
fn one_of_very_many() {
    let source = pod("client", &["10.0.0.1"]);
    let many: Vec<Workload> = (0..200u8)
        .map(|n| Workload {
            health: if n % 4 == 0 { Health::Healthy } else { Health::Unhealthy },
            services: vec![Membership {
                service: NamespacedHostname::new("shop", "web.shop.svc.cluster.local"),
                ports: PortMap::default(),
            }],
            ..captured(&n.to_string(), &[&format!("10.0.1.{n}")])
        })
        .collect();
    let web = service("web", "10.96.0.1", &[(80, 80)], &[]);
    let mesh = mesh(&many.iter().collect::<Vec<_>>(), &[&web]);
    let seen = chosen(&mesh, &source, "10.96.0.1:80", 10_000);
    assert_eq!(seen.len(), 50);
    assert!(seen.values().all(|count| (120..290).contains(count)), "{seen:?}");
    // All but one were found dead.
    let avoid = many.iter().filter(|w| *w.name != *"8").map(|w| w.uid.clone()).collect();
    let hints = Hints { avoid, ..Hints::default() };
    assert_eq!(&*tunnel(ask(&mesh, &source, "10.96.0.1:80", &hints)).destination.name, "8");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is chosen is what a plain reading of the rules allows, and all of it is chosen at times.
    #[test]
    fn choices_are_those_of_a_plain_reading(
        endpoints in proptest::collection::vec((0..3u8, 0..3u8, any::<bool>(), 0..3u32, any::<bool>()), 0..12),
        mode in prop_oneof![Just(BalancerMode::Standard), Just(BalancerMode::Strict), Just(BalancerMode::Failover)],
        preferences in proptest::sample::subsequence(vec![Scope::Network, Scope::Region, Scope::Zone], 0..4),
        sick_too in any::<bool>(),
    ) {
        let source = placed("client", "10.0.0.1", ["r0", "z0", ""], "n", "c");
        let mut web = service("web", "10.96.0.1", &[(80, 80)], &[]);
        web.load_balancer = Some(LoadBalancer {
            health_policy: if sick_too { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy },
            ..balanced(mode, &preferences)
        });
        let workloads: Vec<Workload> = endpoints.iter().enumerate().map(|(n, (region, zone, sick, capacity, addressed))| {
            let mut workload = placed(&n.to_string(), &format!("10.0.1.{n}"), [&format!("r{region}"), &format!("z{zone}"), ""], "n", "c");
            workload.health = if *sick { Health::Unhealthy } else { Health::Healthy };
            workload.capacity = *capacity;
            workload.services.push(Membership { service: web.name.clone(), ports: PortMap::default() });
            if !addressed {
                workload.addresses.clear();
            }
            workload
        }).collect();
        let mesh = mesh(&workloads.iter().collect::<Vec<_>>(), &[&web]);
        let may: Vec<(u32, &Workload)> = endpoints.iter().zip(&workloads).filter_map(|((region, zone, sick, capacity, addressed), workload)| {
            let matched: Vec<bool> = preferences.iter().map(|scope| match scope {
                Scope::Region => *region == 0,
                Scope::Zone => *zone == 0,
                _ => true,
            }).collect();
            let leading = matched.iter().take_while(|matched| **matched).count() as u32;
            let rank = match mode {
                BalancerMode::Strict if leading < matched.len() as u32 => return None,
                BalancerMode::Failover => leading,
                _ => 0,
            };
            (*addressed && *capacity > 0 && (sick_too || !sick)).then_some((rank, workload))
        }).collect();
        let best = may.iter().map(|(rank, _)| *rank).max();
        let mut expected: Vec<&str> = may.iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, w)| &*w.name).collect();
        expected.sort_unstable();
        if expected.is_empty() {
            prop_assert_eq!(route(&mesh, &source, "10.96.0.1:80"), Route::Refuse(Refusal::NoEndpoint(web.name.clone())));
        } else {
            let seen = chosen(&mesh, &source, "10.96.0.1:80", 400);
            prop_assert_eq!(names(&seen), expected);
        }
    }
}

/// Somewhere, of a kind that is common, so that many share it.
fn somewhere() -> impl Strategy<Value = [u8; 5]> {
    [0..2u8, 0..3u8, 0..2u8, 0..8u8, 0..2u8]
}

/// A workload of a large service: where, whether it is sick, and its weight.
type Member = ([u8; 5], bool, u32);

fn member() -> impl Strategy<Value = Member> {
    (
        somewhere(),
        proptest::bool::weighted(0.2),
        prop_oneof![4 => Just(1u32), 1 => 0..4u32],
    )
}

fn member_at(n: usize, ([network, region, zone, node, cluster], sick, capacity): &Member, service: &NamespacedHostname) -> Workload {
    let place = [format!("r{region}"), format!("z{zone}"), String::new()];
    let mut workload = placed(
        &n.to_string(),
        &format!("10.0.{}.{}", n / 250, n % 250),
        [&place[0], &place[1], &place[2]],
        &format!("n{node}"),
        &format!("c{cluster}"),
    );
    workload.network = format!("w{network}").as_str().into();
    workload.health = if *sick { Health::Unhealthy } else { Health::Healthy };
    workload.capacity = *capacity;
    workload.services.push(Membership {
        service: service.clone(),
        ports: PortMap::default(),
    });
    // Reached without a gateway from wherever.
    workload.network_gateway = Some(GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::new("w0".into(), "192.0.2.1".parse().unwrap())),
        hbone_port: 15008,
    });
    workload
}

/// Those that come and go at the bound do not make the places anew each time.
#[test]
fn places_are_made_for_many_and_kept_for_half_of_them() {
    let mut web = service("web", "10.96.0.1", &[(80, 80)], &[]);
    web.load_balancer = Some(balanced(BalancerMode::Failover, &[Scope::Node]));
    let here = ([0; 5], false, 1);
    let mut state = Mesh::default().apply([Update::Service(web.clone().into())]);
    let by_place = |state: &mut Mesh, n: usize, comes: bool| {
        let update = match comes {
            true => Update::Workload(member_at(n, &here, &web.name).into()),
            false => Update::RemoveWorkload(captured(&n.to_string(), &[]).uid),
        };
        *state = state.apply([update]);
        state.members(&web.name).is_some_and(|all| all.places().is_some())
    };
    for n in 0..64 {
        assert!(!by_place(&mut state, n, true), "{n}");
    }
    assert!(by_place(&mut state, 64, true));
    for n in (33..=64).rev() {
        assert!(by_place(&mut state, n, false), "{n}");
    }
    assert!(!by_place(&mut state, 32, false));
    for n in 32..64 {
        assert!(!by_place(&mut state, n, true), "{n}");
    }
    assert!(by_place(&mut state, 64, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Of a service so large that it has its endpoints by place, what is chosen is what a look at each of them allows; also after
    /// some have moved, fallen sick, come and gone, and after the service prefers otherwise.
    #[test]
    fn choices_among_very_many_are_those_of_a_plain_reading(
        first in proptest::collection::vec(member(), 60..160),
        later in proptest::collection::vec((0..200usize, proptest::option::of(member())), 0..60),
        client in somewhere(),
        mode in prop_oneof![Just(BalancerMode::Strict), Just(BalancerMode::Failover)],
        preferences in proptest::sample::subsequence(vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Node, Scope::Cluster], 1..5),
        before in proptest::sample::subsequence(vec![Scope::Region, Scope::Node], 0..3),
        found_dead in proptest::collection::vec(0..160usize, 0..4),
    ) {
        let mut web = service("web", "10.96.0.1", &[(80, 80)], &[]);
        web.load_balancer = Some(balanced(BalancerMode::Failover, &before));
        let mut present: BTreeMap<usize, Member> = first.into_iter().enumerate().collect();
        let told = |n: &usize, member: &Member| Update::Workload(member_at(*n, member, &web.name).into());
        let mut state = Mesh::default().apply([Update::Service(web.clone().into())]);
        let mut by_place = !before.is_empty() && present.len() > 64;
        state = state.apply(present.iter().map(|(n, member)| told(n, member)).collect::<Vec<_>>());
        for (n, member) in later {
            let update = match member {
                Some(member) => {
                    present.insert(n, member);
                    told(&n, &member)
                }
                None => {
                    present.remove(&n);
                    Update::RemoveWorkload(captured(&n.to_string(), &[]).uid)
                }
            };
            state = state.apply([update]);
            // Made above 64, and kept until there are 32.
            by_place = !before.is_empty() && (present.len() > 64 || by_place && present.len() > 32);
        }
        let mut now = web.clone();
        now.load_balancer = Some(balanced(mode, &preferences));
        state = state.apply([Update::Service(now.into())]);
        by_place = present.len() > 64 || by_place && preferences == before;
        prop_assert_eq!(state.members(&web.name).is_some_and(|all| all.places().is_some()), by_place);

        let source = member_at(9_999, &(client, false, 1), &NamespacedHostname::new("shop", "other"));
        let source = Workload { services: Vec::new(), ..source };
        let avoid: Vec<_> = found_dead.iter().map(|n| captured(&n.to_string(), &[]).uid).collect();
        let may = |fresh: bool| -> BTreeSet<usize> {
            let may = present.iter().filter(|(n, (_, sick, capacity))| !sick && *capacity > 0 && !(fresh && found_dead.contains(n)));
            let ranked = may.filter_map(|(n, (at, ..))| {
                let shares = |scope: &Scope| match scope {
                    Scope::Network => at[0] == client[0],
                    Scope::Region => at[1] == client[1],
                    Scope::Zone => at[2] == client[2],
                    Scope::Node => at[3] == client[3],
                    _ => at[4] == client[4],
                };
                let rank = match (mode, &preferences[..]) {
                    (BalancerMode::Strict, all) => return all.iter().all(shares).then_some((0, *n)),
                    (_, [Scope::Network, rest @ ..]) => {
                        usize::from(shares(&Scope::Network)) * 100 + rest.iter().take_while(|scope| shares(scope)).count()
                    }
                    (_, all) => all.iter().take_while(|scope| shares(scope)).count(),
                };
                Some((rank, *n))
            });
            let ranked: Vec<_> = ranked.collect();
            let best = ranked.iter().map(|(rank, _)| *rank).max();
            ranked.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, n)| n).collect()
        };
        let expected = Some(may(true)).filter(|fresh| !fresh.is_empty()).unwrap_or_else(|| may(false));
        let mut seen = BTreeSet::new();
        for draw in 0..1000u64 {
            let hints = Hints { draw: draw.wrapping_mul(0x9e37_79b9), avoid: avoid.clone(), ..Hints::default() };
            let service = state.service(&web.name).unwrap();
            let chosen = Choice::of(&Way { mesh: &state, source: &source, to: "10.96.0.1:80".parse().unwrap(), hints: &hints }, service).pick(|_, _| true);
            let Some((workload, _)) = chosen else { continue };
            seen.insert(workload.name.parse::<usize>().unwrap());
        }
        prop_assert!(seen.is_subset(&expected), "{:?} are not among {:?}", seen, expected);
        prop_assert_eq!(seen.is_empty(), expected.is_empty());
        // Few enough for each to have its turn, whatever the weights.
        if expected.len() <= 10 {
            prop_assert_eq!(seen, expected);
        }
    }
}
