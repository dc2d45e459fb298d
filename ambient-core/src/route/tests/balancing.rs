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
