//! All at once for a while: connections made and open, workloads that come and go, certificates and policies that change.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use ambient_core::{Endpoint, NetworkAddress, Service, Workload, mesh::Update};
use ambient_testkit::{World, harness::Outcome};

use crate::{
    mesh::{Family, LABELLED, Mesh, Way, until},
    successor::Load,
};

/// How long, unless `AMBIENT_SOAK_SECONDS` says otherwise; `AMBIENT_TEST_DEADLINE_SECONDS` must then be longer than that.
const SECONDS: u64 = 8;
/// Certificates are renewed at half of it.
const LIFE: Duration = Duration::from_secs(10);
/// Workloads that come and go.
const CHURN: usize = 500;
/// Between two changes.
const PACE: Duration = Duration::from_millis(20);
/// No connection that is held is held for longer: a tunnel ends with its certificate.
const HELD: Duration = Duration::from_secs(1);

pub(crate) fn nothing_is_lost_and_nothing_is_kept(world: &World) -> Outcome {
    let seconds = env::var("AMBIENT_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mesh = Mesh::start_with_certificates(world, LIFE, |_| {})?;
    let load = Load::start(&mesh);
    let begun = Instant::now();
    let mut held = hold(&mesh);
    let (mut since, mut before, mut n) = (Instant::now(), None, 0usize);
    while begun.elapsed() < end {
        change(&mesh, n);
        n += 1;
        for (way, pair) in &mut held {
            pair.converse()
                .map_err(|error| format!("{way}, after {:?}: {error}", begun.elapsed()))?;
        }
        if since.elapsed() > HELD {
            (held, since) = (hold(&mesh), Instant::now());
        }
        // Measured once all that is made once is made.
        if before.is_none() && begun.elapsed() > end / 3 {
            before = Some(used(&mesh));
        }
        thread::sleep(PACE);
    }
    load.goes_on();
    drop(held);
    assert_eq!(load.stop(), Vec::<String>::new(), "after {n} changes");
    let (memory, descriptors) = before.ok_or("it was over before it was measured")?;
    let served: u64 = ["source", "destination"]
        .iter()
        .map(|reporter| mesh.metric("istio_tcp_connections_opened_total", &[("reporter", reporter)]))
        .sum();
    assert!(served > 100, "{served}");
    until("what was opened to be closed", || {
        let now = used(&mesh).1;
        (now <= descriptors + 16).then_some(())
    });
    let now = used(&mesh).0;
    // By far less than one connection in a hundred could keep.
    assert!(
        now <= memory + memory / 4 + (16 << 20),
        "{} KiB before, {} KiB after",
        memory >> 10,
        now >> 10
    );
    assert_eq!(mesh.metric("ambient_tasks_restarted_total", &[]), 0);
    Ok(())
}

fn hold(mesh: &Mesh) -> [(Way, crate::mesh::Pair); 3] {
    Way::ALL.map(|way| (way, mesh.open(way, Family::V6)))
}

fn used(mesh: &Mesh) -> (u64, u64) {
    let of = |name| mesh.metric(name, &[]);
    (of("process_resident_memory_bytes"), of("process_open_fds"))
}

/// A workload and its service come or go, and at times a policy or the way to a service changes.
fn change(mesh: &Mesh, n: usize) {
    let at = n * 7919 % CHURN;
    let mut workload = Workload::new(&format!("Kubernetes//Pod/churn/{at}"), "churn", &format!("{at}"));
    workload.addresses = vec![[10, 9, (at / 250) as u8, (at % 250) as u8].into()];
    let mut service = Service::new("churn", &format!("{at}.churn.svc.cluster.local"));
    service.vips = vec![NetworkAddress::local([10, 97, (at / 250) as u8, (at % 250) as u8].into())];
    service.endpoints = std::sync::Arc::new([(workload.uid.clone(), Endpoint::default())].into());
    mesh.tell(match n / CHURN % 2 {
        0 => vec![Update::Workload(workload.into()), Update::Service(service.into())],
        _ => vec![Update::RemoveService(service.name), Update::RemoveWorkload(workload.uid)],
    });
    if n.is_multiple_of(10) {
        let text = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: changing, namespace: {LABELLED}}},
              spec: {{action: DENY, rules: [{{from: [{{source: {{namespaces: [nobody-{n}]}}}}]}}]}}}}"
        );
        mesh.apply("changing", &text);
    }
}
