//! What single objects say and cannot say, with the place where it stands.

use super::*;

#[test]
fn the_config_map_says_what_the_mesh_is() {
    let map = |mesh: &str, networks: &str| {
        let indented = |text: &str| text.lines().fold(String::new(), |all, line| format!("{all}    {line}\n"));
        format!(
            "# settings\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |\n{}  meshNetworks: |\n{}",
            indented(mesh),
            indented(networks)
        )
    };
    let mesh = "trustDomain: td.example\ntrustDomainAliases: [old.example]\nrootNamespace: mesh\ndefaultConfig: {discoveryAddress: x}";
    let networks =
        "networks:\n  n1: {endpoints: [{fromRegistry: other}]}\n  n2: {endpoints: [{fromCidr: 10.0.0.0/8}, {fromRegistry: Kubernetes}]}";
    let mut f = Fixture::new();
    assert_eq!(MeshConfig::read(f.path(), "Kubernetes").unwrap(), MeshConfig::default());
    f.write("a.yaml", "kind: [");
    f.write("b.yaml", &map("", ""));
    assert_eq!(MeshConfig::read(f.path(), "Kubernetes").unwrap(), MeshConfig::default());
    f.write("b.yaml", &map(mesh, networks));
    let read = MeshConfig::read(f.path(), "Kubernetes").unwrap();
    let wanted = MeshConfig {
        trust_domain: Some("td.example".parse().unwrap()),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        root_namespace: Some("mesh".into()),
        network: Some("n2".into()),
    };
    assert_eq!(read, wanted);
    for (mesh, place) in [
        ("trustDomain: a/b", "b.yaml:9: data.mesh: trustDomain: "),
        ("trustDomain: [a]", "b.yaml:9: data.mesh: trustDomain: a text is wanted"),
        ("trustDomainAliases: a", "data.mesh: trustDomainAliases: "),
        ("trustDomain: [", "data.mesh: "),
    ] {
        f.write("b.yaml", &map(mesh, networks));
        let error = MeshConfig::read(f.path(), "Kubernetes").unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
    }
    // What it says later takes effect with the next start, and is told until then.
    fs::remove_file(f.path().join("a.yaml")).unwrap();
    f.directory.expect(Some(wanted));
    f.write("b.yaml", &map(mesh, networks));
    f.looks();
    assert!(f.faults.is_empty(), "{:?}", f.faults);
    f.write("b.yaml", &map("trustDomain: new.example", networks));
    f.looks();
    let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
    assert!(fault.contains("b.yaml:") && fault.contains("takes effect with the next"), "{fault}");
    f.write("b.yaml", &map("trustDomain: a/b", networks));
    f.looks();
    assert!(f.faults[0].contains("what it said at the start stays in force"), "{:?}", f.faults);
    f.write("c.yaml", "# nothing\n");
    fs::remove_file(f.path().join("b.yaml")).unwrap();
    f.looks();
    assert!(f.faults.is_empty(), "{:?}", f.faults);
}

#[test]
fn an_object_that_cannot_be_is_its_own_matter() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  ports:\n  - port: 80\n";
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec:\n  hosts: [a.example]\n  \
                 resolution: STATIC\n  endpoints:\n  - address: 192.0.2.1\n";
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\nspec:\n  \
                   gatewayClassName: istio-waypoint\n  listeners:\n  - {name: m, port: 15008, protocol: HBONE}\n";
    let all = [
        pod("cart", "u1", "10.0.0.1"),
        deny("no", "10.9.0.0/16"),
        service.into(),
        entry.into(),
        gateway.into(),
    ]
    .join("---\n");
    for (from, to, place) in [
        ("port: 80\n", "port: 70000\n", "37: spec.ports[0].port: "),
        ("port: 80\n", "port: -1\n", "37: spec.ports[0].port: "),
        ("resolution: STATIC", "resolution: MAYBE", "44: spec.resolution: "),
        ("192.0.2.1", "192.0.2.256", "46: spec.endpoints[0].address: "),
        ("port: 15008", "port: 65536", "54: spec.listeners[0].port: "),
        ("networking.istio.io/v1", "networking.istio.io/v9", "39: apiVersion: "),
    ] {
        // From the start: what it is of does not count, and everything else does.
        let mut f = Fixture::new();
        let bad = all.replacen(from, to, 1);
        f.write("a.yaml", &bad);
        f.looks();
        let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
        assert!(fault.contains(&format!("a.yaml:{place}")), "{fault}");
        assert!(
            fault.ends_with("it does not count until it is mended, and nothing else is affected"),
            "{fault}"
        );
        assert!(f.pod("cart").is_some() && f.policies.len() == 1);
        // Later: its last good version stays.
        f.write("a.yaml", &all);
        f.looks();
        let counts = |f: &Fixture| (f.mesh.workloads().count(), f.mesh.services().count());
        assert!(f.faults.is_empty() && counts(&f) == (2, 2), "{:?}", f.faults);
        f.write("a.yaml", &bad);
        assert_eq!(f.looks(), 0);
        assert!(
            f.faults[0].contains("shop/") && f.faults[0].contains("its last good version stays in force"),
            "{:?}",
            f.faults
        );
        assert_eq!(counts(&f), (2, 2));
        // What is no longer there at all is gone, broken or not.
        f.write("a.yaml", &pod("cart", "u1", "10.0.0.1"));
        f.looks();
        assert!(f.faults.is_empty() && counts(&f) == (1, 0));
    }
}

#[test]
fn a_waypoint_that_cannot_be_used_is_told_with_its_place() {
    let mut f = Fixture::new();
    let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: wp\n  namespace: shop\n  labels:\n    app: x\n    istio.io/use-waypoint: wp\n\
                   spec: {clusterIP: 10.96.0.1}\n";
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: shop}\nspec: {gatewayClassName: istio-waypoint}\n\
                   status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}\n";
    f.write("a.yaml", service);
    f.looks();
    assert!(
        f.faults[0].contains("a.yaml:8: metadata.labels[istio.io/use-waypoint]: there is no Gateway shop/wp"),
        "{:?}",
        f.faults
    );
    f.write("b.yaml", gateway);
    f.looks();
    assert!(
        f.faults[0].contains("a.yaml:8: ") && f.faults[0].contains("in a circle"),
        "{:?}",
        f.faults
    );
    f.write("a.yaml", &service.replace("    istio.io/use-waypoint: wp\n", ""));
    f.looks();
    assert!(f.faults.is_empty(), "{:?}", f.faults);
}

#[test]
fn an_annotation_says_nothing_of_captures() {
    let annotated =
        pod("cart", "u1", "10.0.0.1").replace("  labels:", "  annotations:\n    ambient.istio.io/redirection: enabled\n  labels:");
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: vm\n  namespace: shop\n  annotations:\n    \
                 ambient.istio.io/redirection: enabled\nspec: {address: 10.0.0.2}\n";
    let content = format!("{annotated}---\n{entry}");
    let read = document::read(content.as_bytes()).unwrap().unwrap();
    let lines: Vec<_> = read.ignored.iter().map(|ignored| ignored.what.line).collect();
    assert_eq!(lines.len(), 2, "each is told");
    let mut f = Fixture::new();
    f.write("a.yaml", &content);
    f.looks();
    assert!(f.mesh.workloads().count() == 2 && f.mesh.workloads().all(|w| w.tunnel == TunnelProtocol::None));
}

#[test]
fn on_the_nodes_of_a_ztunnel_the_annotation_says_what_is_captured() {
    let annotated = |name: &str, uid: &str, ip: &str, node: &str, value: &str| {
        let annotation = format!("  annotations:\n    ambient.istio.io/redirection: {value}\n  labels:");
        pod(name, uid, ip).replace("  labels:", &annotation).replace("node-1", node)
    };
    let mut f = Fixture::configured(|config| config.ztunnel_nodes = ["node-z".into()].into());
    f.write("a.yaml", &annotated("cart", "u1", "10.0.0.1", "node-z", "enabled"));
    f.write("b.yaml", &annotated("odd", "u2", "10.0.0.2", "node-z", "disabled"));
    f.write("c.yaml", &annotated("ours", "u3", "10.0.0.3", "node-1", "enabled"));
    f.looks();
    assert_eq!(["cart", "odd", "ours"].map(|name| f.captured(name)), [true, false, false]);
    // Taken back by whoever has set it; and one may be reported all the same.
    f.write("a.yaml", &pod("cart", "u1", "10.0.0.1").replace("node-1", "node-z"));
    fs::create_dir(f.path().join("status")).unwrap();
    f.write("status/node-z.json", r#"{"node": "node-z", "pods": {"u2": {}}, "withdrawn": []}"#);
    f.looks();
    assert_eq!(["cart", "odd", "ours"].map(|name| f.captured(name)), [false, true, false]);
    // A pod that shares its node's address is never found by it, captured or not.
    f.write(
        "a.yaml",
        &annotated("cart", "u1", "10.0.0.1", "node-z", "enabled").replace("spec:\n", "spec:\n  hostNetwork: true\n"),
    );
    f.looks();
    assert!(!f.captured("cart"));
}

#[test]
fn where_an_annotation_counts_nobody_is_warned_of_it() {
    let annotated =
        pod("cart", "u1", "10.0.0.1").replace("  labels:", "  annotations:\n    ambient.istio.io/redirection: enabled\n  labels:");
    let read = document::read(annotated.as_bytes()).unwrap().unwrap();
    assert_eq!(read.ignored[0].node.as_deref(), Some("node-1"));
}
