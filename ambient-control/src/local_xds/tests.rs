use std::{collections::BTreeMap, time::Duration};

use ambient_authz::{Policies, policy::Fallback};
use ambient_core::{Health, Mesh, NamespacedHostname, NetworkAddress, TunnelProtocol};

use tokio::time;

use super::*;
use crate::Change;

/// A file, and what its changes add up to.
struct Fixture {
    scratch: tempfile::TempDir,
    file: Watched,
    mesh: Mesh,
    policies: Policies,
    faults: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let file = Watched::new(Config::new(scratch.path().join("local.yaml")));
        Self {
            scratch,
            file,
            mesh: Mesh::default(),
            policies: Policies::default(),
            faults: Vec::new(),
        }
    }

    /// Writes the file, looks twice, and tells how many changes that brought.
    fn write(&mut self, content: &str) -> usize {
        // Another file each time, so that no two look alike.
        let draft = self.scratch.path().join("draft");
        fs::write(&draft, content).unwrap();
        fs::rename(&draft, self.scratch.path().join("local.yaml")).unwrap();
        self.looks()
    }

    fn looks(&mut self) -> usize {
        self.file.look();
        self.file.look();
        let Some(batch) = self.file.news() else { return 0 };
        assert!(batch.synced);
        self.faults = batch.faults.iter().map(ToString::to_string).collect();
        let count = batch.changes.len();
        for change in batch.changes {
            match change {
                Change::Mesh(update) => self.mesh = self.mesh.apply([update]),
                Change::Policy(update) => self.policies = self.policies.apply([update]),
                Change::Trust(_) => panic!("never said"),
            }
        }
        count
    }
}

const WORKLOAD: &str = "- uid: c1//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  trustDomain: td.example
  serviceAccount: cart
  network: net1
  node: node-a
  clusterId: c1
  workloadIps: [10.1.0.4, \"fd00::4\"]
  protocol: HBONE
  networkMode: Standard
  status: Healthy
  capacity: 2
  workloadName: cart
  workloadType: deployment
  canonicalName: cart
  canonicalRevision: v1
  nativeTunnel: false
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [shop/cart-allow]
  locality: {region: r1, zone: z1, subzone: ''}
  waypoint: {destination: istio-system/wp.istio-system.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: net1/10.9.0.1, hboneMtlsPort: 15443}
  services:
    shop/cart.shop.svc.cluster.local: {80: 8080}
";

const SERVICE: &str = "- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: [net1/10.96.0.7, /10.96.0.8]
  cidrVips: [{network: net1, cidr: 192.0.2.0/24}]
  ports: {80: 0, \"81\": 8081}
  subjectAltNames: [spiffe://cluster.local/ns/shop/sa/cart]
  weightedWaypoints:
  - {destination: {destination: net1/10.96.0.9, hboneMtlsPort: 15008}, weight: 10}
  loadBalancer: {routingPreferences: [Network, Region, Zone], mode: Failover, healthPolicy: OnlyHealthy}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
";

const POLICY: &str = "- name: cart-allow
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - namespaces: [!Exact shop, !Prefix web-]
        notPrincipals: [!Suffix /sa/evil]
        serviceAccounts: [{namespace: shop, serviceAccount: front}]
        sourceIps: [10.0.0.0/8]
    - - destinationPorts: [8080]
";

fn whole() -> String {
    format!("workloads:\n{WORKLOAD}services:\n{SERVICE}policies:\n{POLICY}")
}

#[test]
fn everything_that_can_be_written_is_read() {
    let mut f = Fixture::new();
    assert_eq!(f.write(&whole()), 3);
    assert!(f.faults.is_empty(), "{:?}", f.faults);
    let workload = f.mesh.workload(&"c1//Pod/shop/cart-0".into()).unwrap();
    assert_eq!(workload.identity().unwrap().as_str(), "spiffe://td.example/ns/shop/sa/cart");
    assert_eq!(workload.addresses.len(), 2);
    assert!(workload.tunnel == TunnelProtocol::Hbone && workload.ambient && workload.health == Health::Healthy);
    assert_eq!(
        (&*workload.node, workload.capacity, workload.kind.as_str()),
        ("node-a", 2, "deployment")
    );
    assert_eq!(workload.application_tunnel.unwrap().port, Some(15088));
    let gateway = |gateway: &Option<ambient_core::GatewayAddress>| gateway.as_ref().map(|g| (g.target.to_string(), g.hbone_port));
    let waypoint = "istio-system/wp.istio-system.svc.cluster.local";
    assert_eq!(gateway(&workload.waypoint), Some((waypoint.into(), 15008)));
    assert_eq!(gateway(&workload.network_gateway), Some(("net1/10.9.0.1".into(), 15443)));
    let name = NamespacedHostname::new("shop", "cart.shop.svc.cluster.local");
    assert_eq!(f.mesh.endpoint(&name, &workload.uid).unwrap().ports.get(80), Some(8080));
    let vip = NetworkAddress::new("net1".into(), "192.0.2.9".parse().unwrap());
    let service = f.mesh.service_by_vip(&vip, "shop").unwrap();
    assert_eq!(
        service.ports.iter().map(|p| (p.port, p.target)).collect::<BTreeMap<_, _>>(),
        [(80, 0), (81, 8081)].into()
    );
    assert_eq!(
        (
            service.vips.len(),
            service.weighted_waypoints.len(),
            service.subject_alt_names.len()
        ),
        (2, 1, 1)
    );
    assert!(
        service.canonical && f.mesh.service_by_vip(&vip, "bank").is_none(),
        "its own namespace alone sees it"
    );
    assert!(f.policies.policy(&"shop/cart-allow".into()).is_some());
}

#[test]
fn texts_stand_behind_tags_or_in_maps() {
    let matches = |text: &str| {
        let rules = format!("rules: [[[{{principals: [{text}]}}]]]");
        let head = "policies: [{name: p, namespace: shop, scope: Namespace, action: Deny, dryRun: false, ";
        let mut f = Fixture::new();
        f.write(&format!("{head}{rules}}}]"));
        assert!(f.faults.is_empty(), "{:?}", f.faults);
        f.policies.policy(&"shop/p".into()).unwrap().rules.clone()
    };
    for (tag, map) in [
        ("!Exact a/b", "{Exact: a/b}"),
        ("!Prefix a", "{prefix: a}"),
        ("!Suffix b", "{Suffix: b}"),
        ("!Presence []", "{presence: null}"),
    ] {
        assert_eq!(matches(tag), matches(map));
        assert_ne!(matches(tag), matches("!Exact other"));
    }
}

#[test]
fn differences_alone_are_told_and_a_broken_file_changes_nothing() {
    let mut f = Fixture::new();
    f.write(&whole());
    assert_eq!(f.write(&format!("# the same\n{}", whole())), 0);
    assert_eq!(f.write(&whole().replace("capacity: 2", "capacity: 3")), 1);
    for (broken, place) in [
        (whole().replace("policies:", "polices:"), "polices: is not known"),
        ("workloads: [".to_owned(), "is neither YAML nor JSON"),
        ("workloads: 1".to_owned(), "workloads: a list is wanted"),
        (String::new(), "became empty"),
        (format!("{}---\n{}", whole(), whole()), "one document is wanted"),
    ] {
        assert_eq!(f.write(&broken), 0, "{broken}");
        let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
        assert!(fault.contains("local.yaml:") && fault.contains(place), "{fault}");
        assert!(fault.ends_with("its last good content stays in force"), "{fault}");
        assert_eq!(f.mesh.workloads().count(), 1);
    }
    fs::remove_file(f.scratch.path().join("local.yaml")).unwrap();
    assert_eq!(f.looks(), 0);
    assert!(
        f.faults[0].contains("No such file") && f.mesh.workloads().count() == 1,
        "{:?}",
        f.faults
    );
    assert_eq!(f.write("workloads: []"), 3);
    assert!(f.faults.is_empty() && f.mesh.workloads().count() == 0 && f.mesh.services().count() == 0 && f.policies.is_empty());
}

#[test]
fn an_entry_that_cannot_be_read_is_its_own_matter() {
    let mut f = Fixture::new();
    f.write(&whole());
    for (from, to, place) in [
        ("10.1.0.4", "10.1.0.400", "local.yaml:10: workloads[0].workloadIps[0]: "),
        ("protocol: HBONE", "protocol: QUIC", "local.yaml:11: workloads[0].protocol: "),
        ("capacity: 2", "capacity: many", "workloads[0].capacity: "),
        ("port: 15088", "port: 70000", "workloads[0].applicationTunnel.port: "),
        (
            "{80: 8080}",
            "{70000: 80}",
            "workloads[0].services[shop/cart.shop.svc.cluster.local]: ",
        ),
        ("nativeTunnel", "nativeTonnel", "workloads[0].nativeTonnel: "),
        ("net1/10.9.0.1", "nowhere", "workloads[0].networkGateway.destination: "),
        ("net1/10.96.0.7", "net1/x", "services[0].vips[0]: "),
        ("192.0.2.0/24", "192.0.2.0/33", "services[0].cidrVips[0].cidr: "),
        ("mode: Failover", "mode: Random", "services[0].loadBalancer.mode: "),
        (
            "spiffe://cluster.local/ns",
            "https://cluster.local/ns",
            "services[0].subjectAltNames[0]: ",
        ),
        ("10.0.0.0/8", "10.0.0.0/99", "policies[0].rules[0][0][0].sourceIps[0]: "),
        ("!Exact shop", "!Exakt shop", "policies[0].rules[0][0][0].namespaces[0]: "),
        (
            "destinationPorts",
            "destinationPort",
            "policies[0].rules[0][1][0].destinationPort: ",
        ),
    ] {
        let text = whole().replacen(from, to, 1);
        assert_ne!(text, whole(), "{from}");
        f.write(&text);
        let [fault] = &f.faults[..] else { panic!("{:?}", f.faults) };
        assert!(fault.contains(place), "{fault}");
        assert!(
            fault.contains("its last good version stays in force, and nothing else is affected"),
            "{fault}"
        );
        assert_eq!((f.mesh.workloads().count(), f.mesh.services().count()), (1, 1), "{from}");
        assert!(f.policies.policy(&"shop/cart-allow".into()).is_some(), "{from}");
        f.write(&whole());
        assert!(f.faults.is_empty());
        assert_eq!(f.policies.fallback(&"shop/cart-allow".into()), None);
    }
    // However often it is broken anew.
    for broken in ["!Exakt shop", "!Exactly shop", "{Exact: 1, Prefix: 2}"] {
        f.write(&whole().replacen("!Exact shop", broken, 1));
        assert!(
            f.faults[0].contains("its last good version stays in force"),
            "{broken}: {:?}",
            f.faults
        );
        assert_eq!(f.policies.fallback(&"shop/cart-allow".into()), Some(Fallback::LastGood), "{broken}");
    }
    // One that was gone has no last good version.
    f.write(&whole().replacen("- name: cart-allow", "- name: other", 1));
    f.write(&whole().replacen("!Exact shop", "!Exakt shop", 1));
    assert!(f.faults[0].contains("everything in its scope is refused"), "{:?}", f.faults);
    assert_eq!(f.policies.fallback(&"shop/cart-allow".into()), Some(Fallback::Refusal));
    // Of what was never good nothing counts; a policy refuses all in its scope.
    let mut f = Fixture::new();
    let text = whole()
        .replace("HBONE", "QUIC")
        .replace("Failover", "Random")
        .replace("10.0.0.0/8", "x");
    assert_eq!(f.write(&text), 1);
    assert_eq!((f.mesh.workloads().count(), f.mesh.services().count(), f.faults.len()), (0, 0, 3));
    assert_eq!(f.policies.fallback(&"shop/cart-allow".into()), Some(Fallback::Refusal));
    // The same twice is one, and told.
    let mut f = Fixture::new();
    f.write(&format!("workloads:\n{WORKLOAD}{WORKLOAD}"));
    assert_eq!(f.mesh.workloads().count(), 1);
    assert!(
        f.faults[0].contains("local.yaml:27: workloads[1].uid: c1//Pod/shop/cart-0 stands further up"),
        "{:?}",
        f.faults
    );
}

/// What one that cannot be read would have refused is not let by for the sake of another of its name.
#[test]
fn of_two_of_a_name_the_first_counts_also_where_it_cannot_be_read() {
    let mut fixture = Fixture::new();
    let unreadable = POLICY.replace("WorkloadSelector", "Nowhere");
    let text = format!("policies:\n{unreadable}{POLICY}");
    assert_eq!(fixture.write(&text), 1);
    let told = |words: &str| fixture.faults.iter().filter(|fault| fault.contains(words)).count();
    assert_eq!(
        (
            told("everything in its scope is refused"),
            told("shop/cart-allow stands further up already")
        ),
        (1, 1),
        "{:?}",
        fixture.faults
    );
    let before = fixture.faults.clone();
    assert_eq!(fixture.write(&text), 0, "the same again is nothing new");
    assert_eq!(fixture.faults, before);
}

#[tokio::test]
async fn a_file_is_read_and_then_watched() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("local.yaml");
    let error = LocalXds::open(Config::new(&path)).await.unwrap_err();
    assert!(error.to_string().contains("local.yaml"), "{error}");
    fs::write(&path, "workloads: 1").unwrap();
    let error = LocalXds::open(Config::new(&path)).await.unwrap_err();
    assert!(error.to_string().contains("local.yaml:1: workloads: a list is wanted"), "{error}");
    fs::write(&path, whole()).unwrap();
    let mut source = LocalXds::open(Config::new(&path)).await.unwrap();
    let first = source.next().await.unwrap();
    assert!(first.synced && first.changes.len() == 3 && first.faults.is_empty());
    // A wait that is dropped loses nothing.
    assert!(time::timeout(Duration::from_millis(1), source.next()).await.is_err());
    fs::write(&path, format!("services:\n{SERVICE}policies:\n{POLICY}")).unwrap();
    let next = time::timeout(Duration::from_secs(30), source.next()).await.unwrap().unwrap();
    assert!(matches!(
        &next.changes[..],
        [Change::Mesh(ambient_core::mesh::Update::RemoveWorkload(_))]
    ));
}

#[tokio::test]
async fn a_text_that_is_given_itself_is_read_alike_and_told_once() {
    let text = format!("workloads:\n{WORKLOAD}policies:\n- {{name: odd, namespace: shop}}\n");
    let mut source = LocalXds::open(Config::of(Place::Inline(text))).await.unwrap();
    let first = source.next().await.unwrap();
    assert!(
        first.synced
            && matches!(
                &first.changes[..],
                [Change::Mesh(_), Change::Policy(_)] | [Change::Policy(_), Change::Mesh(_)]
            )
    );
    assert!(first.faults[0].what.starts_with("LOCAL_XDS:"), "{first:?}");
    assert_eq!(first.faults[0].policy.as_ref().unwrap().as_str(), "shop/odd");
    let more = time::timeout(Duration::from_millis(300), source.next()).await;
    assert!(more.is_err(), "it does not change: {more:?}");
    for (text, why) in [
        ("workloads: {", "LOCAL_XDS:"),
        ("pods: []", "LOCAL_XDS:1: pods: is not known"),
        ("[]", "a map of workloads"),
    ] {
        let error = LocalXds::open(Config::of(Place::Inline(text.into())))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
    let mut nothing = LocalXds::open(Config::of(Place::Inline("workloads: []".into()))).await.unwrap();
    assert!(nothing.next().await.unwrap().synced);
}

/// A pipe in the file's place is not waited for, and takes nothing away.
#[test]
fn a_pipe_is_told_and_not_waited_for() {
    let mut fixture = Fixture::new();
    let workloads = format!("workloads:\n{WORKLOAD}");
    assert_eq!(fixture.write(&workloads), 1);
    let path = fixture.scratch.path().join("local.yaml");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(fixture.looks(), 0);
    let [fault] = &fixture.faults[..] else {
        panic!("{:?}", fixture.faults)
    };
    assert!(fault.contains("local.yaml: it is a pipe"), "{fault}");
    assert_eq!(fixture.mesh.workloads().count(), 1);
    fs::remove_file(&path).unwrap();
    fixture.write(&workloads);
    assert!(fixture.faults.is_empty());
}

#[test]
fn what_others_may_write_to_is_told_and_not_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut fixture = Fixture::new();
    assert_eq!(fixture.write(&format!("workloads:\n{WORKLOAD}")), 1);
    let path = fixture.scratch.path().join("local.yaml");
    let mut chmod = |mode| {
        fs::write(&path, "workloads: []\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        fixture.looks();
        (fixture.faults.clone(), fixture.mesh.workloads().count())
    };
    let (faults, held) = chmod(0o660);
    assert!(
        faults.len() == 1 && faults[0].contains("local.yaml: ") && faults[0].contains("chmod go-w"),
        "{faults:?}"
    );
    assert_eq!(held, 1);
    assert_eq!(chmod(0o640), (vec![], 0));
}
