use std::sync::Mutex;

use ambient_core::{Service, Workload};

use super::*;
use crate::telemetry::log::{Format, kept};

/// The lines that some work logs, without their times.
fn logged(work: impl FnOnce()) -> Vec<String> {
    let text = kept::logged(Format::Text, work);
    text.lines().map(|line| line.split_once('\t').unwrap().1.to_owned()).collect()
}

/// The keys of a line, in their order.
fn keys(line: &str) -> Vec<&str> {
    let fields = line.rsplit('\t').next().unwrap();
    fields.split(' ').filter_map(|field| Some(field.split_once('=')?.0)).collect()
}

fn workload(name: &str) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
    workload.cluster = "c".into();
    Arc::new(workload)
}

fn ends(direction: Direction) -> Ends {
    let identity = |account: &str| Some(format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap());
    Ends {
        direction,
        source: "10.0.0.1:40000".parse().unwrap(),
        source_workload: Some(workload("a-0")),
        source_identity: identity("a"),
        application: "10.96.0.1:80".parse().unwrap(),
        destination: "10.0.0.2:15008".parse().unwrap(),
        hbone: Some("10.0.0.2:8080".parse().unwrap()),
        service: Some(Arc::new(Service::new("shop", "web.shop.svc.cluster.local"))),
        destination_workload: Some(workload("b-0")),
        destination_identity: identity("b"),
        waypoint: false,
        double: false,
        mutual_tls: true,
        local: false,
        retries: 0,
        avoided: 0,
        guessed: false,
    }
}

#[test]
fn a_line_has_what_ztunnels_has_in_its_order() {
    let metrics = Arc::new(Metrics::default());
    let lines = logged(|| {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let account = Account::open(&metrics, ends(direction), clock::steady());
            account.close(&Outcome::orderly());
        }
        let account = Account::open(&metrics, ends(Direction::Inbound), clock::steady());
        let denied = "connection closed due to policy rejection: explicitly denied by: shop/no";
        account.close(&Outcome::failed(Flag::Deny, denied));
        drop(Account::open(&metrics, ends(Direction::Inbound), clock::steady()));
        let from = "10.0.0.1:1".parse().unwrap();
        refused_early(
            &metrics,
            Reason::UnknownWorkload,
            Direction::Outbound,
            from,
            from,
            None,
            &"nobody knows it",
        );
    });
    let of = |word: &str| -> Vec<&String> { lines.iter().filter(|line| line.contains(&format!("\taccess\t{word}"))).collect() };
    let ended = of("connection complete");
    let both = [
        "src.addr",
        "src.workload",
        "src.namespace",
        "src.identity",
        "src.cluster",
        "dst.addr",
        "dst.hbone_addr",
        "dst.service",
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "dst.cluster",
        "direction",
    ];
    let ours = ["conn.id", "waypoint"];
    let theirs = |line| -> Vec<_> { keys(line).into_iter().filter(|key| !ours.contains(key)).collect() };
    for line in &ended[..2] {
        assert!(line.starts_with("info\t"), "{line}");
        assert_eq!(theirs(line), [&both[..], &["bytes_sent", "bytes_recv", "duration"]].concat());
        for value in [
            "src.addr=10.0.0.1:40000 src.workload=\"a-0\" src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/a\"",
            "dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 dst.service=\"web.shop.svc.cluster.local\" dst.workload=\"b-0\"",
            "bytes_sent=0 bytes_recv=0 duration=\"",
        ] {
            assert!(line.contains(value), "{line}");
        }
    }
    assert!(ended[0].contains("direction=\"outbound\"") && ended[1].contains("direction=\"inbound\""));
    let denied = "error=\"connection closed due to policy rejection: explicitly denied by: shop/no\"";
    assert!(ended[2].starts_with("error\t") && ended[2].ends_with(denied), "{}", ended[2]);
    let dropped = "error=\"connection closed due to connection drain\"";
    assert!(ended[3].starts_with("error\t") && ended[3].ends_with(dropped), "{}", ended[3]);
    let opened = of("connection opened");
    assert_eq!(opened.len(), 4);
    assert!(
        opened.iter().all(|line| line.starts_with("debug\t") && theirs(line) == both),
        "{opened:?}"
    );
    let failed = of("connection failed");
    assert_eq!(
        (failed.len(), keys(failed[0])),
        (1, vec!["src.addr", "dst.addr", "direction", "reason", "error"])
    );
    assert!(
        failed[0].starts_with("warn\t") && failed[0].ends_with(" error=\"nobody knows it\""),
        "{}",
        failed[0]
    );
}

#[test]
fn what_nobody_knows_is_not_said() {
    let metrics = Arc::new(Metrics::default());
    let nameless = Workload {
        cluster: "".into(),
        canonical_name: "web".into(),
        ..Workload::new("u", "shop", "")
    };
    let bare = Ends {
        source_workload: None,
        source_identity: None,
        hbone: None,
        service: None,
        destination_workload: Some(Arc::new(nameless)),
        destination_identity: None,
        ..ends(Direction::Inbound)
    };
    let lines = logged(|| Account::open(&metrics, bare, clock::steady()).close(&Outcome::orderly()));
    let line = lines.last().unwrap();
    let said: Vec<_> = keys(line)
        .into_iter()
        .filter(|key| key.starts_with("src") || key.starts_with("dst"))
        .collect();
    assert_eq!(said, ["src.addr", "dst.addr", "dst.workload", "dst.namespace"]);
    assert!(line.contains("dst.workload=\"web\""), "{line}");
}

/// In plaintext: who was meant is in Istio's label, and nowhere said to have proven it.
#[test]
fn who_was_meant_has_proven_nothing() {
    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<Option<Identity>>>);
    impl ambient_core::Observer for Heard {
        fn observe(&self, event: &Event<'_>) {
            if let Event::ConnectionEnded { destination_identity, .. } = event {
                self.0.lock().unwrap().push(destination_identity.cloned());
            }
        }
    }
    let (metrics, heard) = (Arc::new(Metrics::default()), Arc::<Heard>::default());
    metrics.tell(heard.clone());
    for mutual_tls in [false, true] {
        let ends = Ends {
            mutual_tls,
            ..ends(Direction::Inbound)
        };
        let identity = ends.destination_identity.clone().unwrap();
        let lines = logged(|| Account::open(&metrics, ends, clock::steady()).close(&Outcome::orderly()));
        assert_eq!(lines.last().unwrap().contains(" dst.identity="), mutual_tls, "{lines:?}");
        assert_eq!(
            heard.0.lock().unwrap().pop().unwrap(),
            mutual_tls.then_some(identity),
            "mutual TLS {mutual_tls}"
        );
    }
    let text = metrics.text().unwrap();
    for security in ["unknown", "mutual_tls"] {
        let security = format!("connection_security_policy=\"{security}\"");
        let of_it = text
            .lines()
            .filter(|line| line.starts_with("istio_tcp_connections_opened_total{") && line.contains(&security));
        let meant = "destination_principal=\"spiffe://cluster.local/ns/shop/sa/b\"";
        assert!(
            of_it.clone().count() == 1 && of_it.clone().all(|line| line.contains(meant)),
            "{security}: {text}"
        );
    }
}
