use super::*;
use crate::{Membership, NetworkAddress, PortMap, WeightedWaypoint};

fn at(ip: &str) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Address(NetworkAddress::local(ip.parse().unwrap())),
        hbone_port: 15008,
    }
}

fn by(name: &str) -> GatewayAddress {
    GatewayAddress {
        target: GatewayTarget::Hostname(host(name)),
        hbone_port: 15008,
    }
}

fn host(name: &str) -> NamespacedHostname {
    NamespacedHostname::new("shop", &format!("{name}.mesh"))
}

fn workload(name: &str, ip: &str, waypoint: Option<GatewayAddress>, of: &[&str]) -> Update {
    let mut workload = Workload::new(name, "shop", name);
    workload.addresses = vec![ip.parse().unwrap()];
    workload.waypoint = waypoint;
    workload.services = of
        .iter()
        .map(|name| Membership {
            service: host(name),
            ports: PortMap::default(),
        })
        .collect();
    Update::Workload(workload.into())
}

fn service(name: &str, vip: &str, waypoint: Option<GatewayAddress>) -> Update {
    let mut service = Service::new("shop", &host(name).hostname);
    service.vips = vec![NetworkAddress::local(vip.parse().unwrap())];
    service.waypoint = waypoint;
    Update::Service(service.into())
}

fn circle(mesh: &Mesh, update: &Update) -> Option<Vec<String>> {
    let user = match update {
        Update::Workload(workload) => WaypointUser::Workload(workload.uid.clone()),
        Update::Service(service) => WaypointUser::Service(service.name.clone()),
        _ => panic!("nobody"),
    };
    let circle = mesh.waypoint_circle(&user)?;
    Some(circle.iter().map(ToString::to_string).collect())
}

#[test]
fn whoever_is_its_own_waypoint_is_told_by_whatever_name_it_is_meant() {
    let mut named = Workload::new("named", "shop", "named");
    named.hostname = host("named").hostname;
    named.waypoint = Some(by("named"));
    let all = [
        workload("by-address", "10.0.0.1", Some(at("10.0.0.1")), &[]),
        Update::Workload(named.into()),
        service("by-name", "10.9.0.1", Some(by("by-name"))),
        service("by-vip", "10.9.0.2", Some(at("10.9.0.2"))),
        // A waypoint that was made by hand in a namespace whose label names it.
        workload("instance", "10.0.0.2", Some(by("waypoint")), &["waypoint"]),
        service("waypoint", "10.9.0.3", None),
    ];
    let mesh = Mesh::default().apply(all.clone());
    for own in &all[..5] {
        assert_eq!(circle(&mesh, own).map(|names| names.len()), Some(1), "{own:?}");
    }
    assert_eq!(circle(&mesh, &all[5]), None, "it names none");
}

#[test]
fn longer_ways_are_told_from_whoever_stands_on_them_and_from_nobody_else() {
    let a = workload("a", "10.0.0.1", Some(at("10.0.0.2")), &[]);
    let b = workload("b", "10.0.0.2", Some(by("c")), &[]);
    let c = service("c", "10.9.0.3", None);
    let pod = workload("c-1", "10.0.0.3", Some(at("10.0.0.1")), &["c"]);
    let user = workload("user", "10.0.0.9", Some(at("10.0.0.1")), &[]);
    let straight = workload("straight", "10.0.0.8", Some(by("plain")), &[]);
    let plain = service("plain", "10.9.0.8", None);
    let mesh = Mesh::default().apply([&a, &b, &c, &pod, &user, &straight, &plain].map(Clone::clone));
    let names = |of: &[&str]| Some(of.iter().map(ToString::to_string).collect());
    assert_eq!(circle(&mesh, &a), names(&["a", "b", "c-1"]));
    assert_eq!(circle(&mesh, &b), names(&["b", "c-1", "a"]));
    assert_eq!(circle(&mesh, &pod), names(&["c-1", "a", "b"]));
    for other in [&c, &user, &straight, &plain] {
        assert_eq!(circle(&mesh, other), None, "{other:?}");
    }
    // Who names none any more ends it for all.
    let mesh = mesh.apply([workload("b", "10.0.0.2", None, &[])]);
    for of in [&a, &b, &pod] {
        assert_eq!(circle(&mesh, of), None);
    }
}

#[test]
fn one_of_several_waypoints_will_do() {
    let mut service = Service::new("shop", &host("web").hostname);
    let weighted = |name| WeightedWaypoint {
        destination: by(name),
        weight: 1,
    };
    service.weighted_waypoints = vec![weighted("good"), weighted("back")];
    let web = Update::Service(service.into());
    let back = self::service("back", "10.9.0.1", Some(by("web")));
    let mesh = Mesh::default().apply([&web, &back, &self::service("good", "10.9.0.2", None)].map(Clone::clone));
    assert_eq!(circle(&mesh, &web).map(|names| names.len()), Some(2));
    assert_eq!(circle(&mesh, &back).map(|names| names.len()), Some(2));
}

/// The last that comes closes it, whichever that is: by what it concerns a circle is found.
#[test]
fn in_whatever_order_they_come_the_last_concerns_somebody_on_it() {
    let parts = [
        workload("a", "10.0.0.1", Some(at("10.9.0.2")), &[]),
        service("b", "10.9.0.2", None),
        workload("b-1", "10.0.0.2", Some(at("10.0.0.1")), &["b"]),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut mesh = Mesh::default();
        let mut found = false;
        for at in order {
            mesh.update([parts[at].clone()]);
            found = mesh.concerned(&parts[at]).iter().any(|user| mesh.waypoint_circle(user).is_some());
        }
        assert!(found, "{order:?}");
    }
}

#[test]
fn a_way_without_end_and_a_gateway_of_very_many_are_not_followed_for_ever() {
    let ip = |n: usize| std::net::Ipv4Addr::from(0x0a00_0000 + n as u32).to_string();
    let chain: Vec<_> = (0..1000)
        .map(|n| workload(&format!("w{n}"), &ip(n), Some(at(&ip((n + 1) % 1000))), &[]))
        .collect();
    let mesh = Mesh::default().apply(chain.clone());
    assert_eq!(circle(&mesh, &chain[0]), None, "it is given up");
    let mut crowd: Vec<_> = (0..5000)
        .map(|n| workload(&format!("p{n}"), &ip(n), Some(by("crowd")), &["crowd"]))
        .collect();
    crowd.push(service("crowd", "10.9.0.1", None));
    let mesh = Mesh::default().apply(crowd.clone());
    assert!(mesh.concerned(&crowd[5000]).len() <= LOOKED_AT);
    assert_eq!(
        circle(&mesh, &crowd[4999]).map(|names| names.len()),
        Some(1),
        "itself is always known"
    );
}
