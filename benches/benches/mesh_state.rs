//! What the state of a mesh costs: taken in from nothing, one endpoint changed, looked up, routed, and in memory; in meshes of
//! 1,000, 10,000 and 100,000 workloads with a service to every ten.

use std::{
    collections::HashMap,
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_benches::state::{OF_ONE_SERVICE, name_of, pod_ip, service, updates, vip, workload};
use ambient_core::{
    BalancerMode, Health, HealthPolicy, LoadBalancer, Mesh, Network, NetworkAddress, NetworkBlock, Scope, Workload,
    mesh::{Sharing, Update},
    route::{self, Hints, Outbound},
};
use ambient_testkit::allocations::{self, Counting};
use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Endpoints of the one very large service.
const LARGE: usize = 10_000;

fn mesh(size: usize) -> (Mesh, Sharing) {
    let mut sharing = Sharing::default();
    let mesh = Mesh::default().apply(updates(size).into_iter().map(|update| sharing.share(update)));
    (mesh, sharing)
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn all_at_once(_: &mut Criterion) {
    for size in SIZES {
        let before = allocations::held();
        let updates = updates(size);
        let told = allocations::held() - before;
        allocations::forget_peak();
        let (start, on_cpu) = (Instant::now(), on_cpu());
        let mut sharing = Sharing::default();
        let mesh = Mesh::default().apply(updates.into_iter().map(|update| sharing.share(update)));
        let (took, worked) = (start.elapsed(), self::on_cpu() - on_cpu);
        let (settled, peak) = (allocations::held() - before, allocations::peak() - before);
        println!(
            "apply/{size}: {took:.2?}, of it {worked:.2?} on a processor; told {} KiB, at the peak {} KiB, settled {} KiB",
            told >> 10,
            peak >> 10,
            settled >> 10
        );
        drop((mesh, sharing));
    }
}

/// How long this thread has been on a processor.
fn on_cpu() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

/// One workload turns unhealthy and healthy again, until its snapshot can be asked; the one before is let go.
fn one_endpoint(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    group.measurement_time(Duration::from_secs(2));
    for size in SIZES {
        let (mut mesh, mut sharing) = mesh(size);
        let mut n = 0;
        group.bench_function(format!("endpoint/{size}"), |bench| {
            bench.iter_batched(
                || turned(workload((n * 7919) % size), &mut n),
                |update| mesh = mesh.apply([sharing.share(update)]),
                BatchSize::PerIteration,
            );
        });
    }
    let large = |n: usize| {
        let mut workload = workload(n);
        workload.services[0].service = name_of(0);
        workload
    };
    let all = (0..LARGE).map(|n| Update::Workload(large(n).into()));
    let mut mesh = Mesh::default().apply(all.chain([Update::Service(service(0).into())]));
    let mut n = 0;
    group.bench_function(format!("endpoint_of_{LARGE}"), |bench| {
        bench.iter_batched(
            || turned(large((n * 7919) % LARGE), &mut n),
            |update| mesh = mesh.apply([update]),
            BatchSize::PerIteration,
        );
    });
}

fn turned(mut workload: Workload, n: &mut usize) -> Update {
    *n += 1;
    workload.health = if n.is_multiple_of(2) { Health::Healthy } else { Health::Unhealthy };
    Update::Workload(Arc::new(workload))
}

/// Keys made right before, as a connection brings them: what is asked is new, and where it lies in the mesh is far away. Beside
/// each a plain map of the same keys in the same run, with the hash that the standard library's maps have: what a look-up costs on this
/// machine whoever makes nothing of it.
fn look_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("look_up");
    group.measurement_time(Duration::from_secs(2));
    for size in SIZES {
        let (mesh, _sharing) = mesh(size);
        let address = |n| NetworkAddress::local(pod_ip(n));
        let vip = |n| NetworkAddress::local(vip(n / OF_ONE_SERVICE));
        let hostname = |n| name_of(n / OF_ONE_SERVICE).hostname;
        let uid = |n| workload(n).uid;
        asked(&mut group, &format!("address/{size}"), size, address, |key| {
            mesh.workload_by_address(key).is_some()
        });
        asked(&mut group, &format!("vip/{size}"), size, vip, |key| {
            mesh.service_by_vip(key, "namespace-1").is_some()
        });
        let with_blocks = mesh.apply((0..size / OF_ONE_SERVICE).map(|n| {
            let mut service = service(n);
            service.vip_blocks = NetworkBlock::new(Network::default(), in_block(n), 24).into_iter().collect();
            Update::Service(service.into())
        }));
        let inside = |n| NetworkAddress::local(in_block(n / OF_ONE_SERVICE));
        asked(&mut group, &format!("block/{size}"), size, inside, |key| {
            with_blocks.service_by_vip(key, "namespace-1").is_some()
        });
        drop(with_blocks);
        asked(&mut group, &format!("hostname/{size}"), size, hostname, |key| {
            mesh.service_by_hostname(key, "namespace-1").is_some()
        });
        asked(&mut group, &format!("uid/{size}"), size, uid, |key| mesh.workload(key).is_some());
        let plain: HashMap<_, _> = mesh.workloads().map(|w| (address_of(w), w.clone())).collect();
        asked(&mut group, &format!("address/{size}/plain_map"), size, address, |key| {
            plain.contains_key(key)
        });
        let plain: HashMap<_, _> = mesh.workloads().map(|w| (w.uid.clone(), w.clone())).collect();
        asked(&mut group, &format!("uid/{size}/plain_map"), size, uid, |key| {
            plain.contains_key(key)
        });
    }
}

/// An address in the block of the service of a number.
fn in_block(service: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x6400_0000 + (service as u32) * 256 + 7).into()
}

fn address_of(workload: &Workload) -> NetworkAddress {
    NetworkAddress::local(workload.addresses[0])
}

fn asked<K>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, size: usize, key: impl Fn(usize) -> K, look: impl Fn(&K) -> bool) {
    let mut n = 0;
    group.bench_function(name, |bench| {
        let next = || {
            n = (n + 7919) % size;
            key(n)
        };
        bench.iter_batched_ref(next, |key| black_box(look(key)), BatchSize::NumIterations(256));
    });
}

/// From a connection to a service's address to the plan of its tunnel.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    group.measurement_time(Duration::from_secs(2));
    let mut route = |name: String, mesh: &Mesh, services: usize| {
        let source = workload(0);
        let mut n = 0_usize;
        group.bench_function(name, |bench| {
            bench.iter(|| {
                n = n.wrapping_add(7919);
                let asked = Outbound {
                    source: &source,
                    destination: SocketAddr::new(vip(n % services), 80),
                };
                let hints = Hints {
                    draw: n as u64,
                    ..Hints::default()
                };
                black_box(route::outbound(mesh, &asked, &hints))
            });
        });
    };
    for size in SIZES {
        route(format!("service/{size}"), &mesh(size).0, size / OF_ONE_SERVICE);
    }
    let all = (0..LARGE).map(|n| {
        let mut workload = workload(n);
        workload.services[0].service = name_of(0);
        Update::Workload(workload.into())
    });
    let all: Vec<_> = all.collect();
    let large = Mesh::default().apply(all.iter().cloned().chain([Update::Service(service(0).into())]));
    route(format!("service_of_{LARGE}"), &large, 1);
    for (name, mode, preferences) in [
        (
            "failover",
            BalancerMode::Failover,
            &[Scope::Network, Scope::Region, Scope::Zone][..],
        ),
        (
            "failover_by_node",
            BalancerMode::Failover,
            &[Scope::Region, Scope::Zone, Scope::Node],
        ),
        ("strict", BalancerMode::Strict, &[Scope::Region, Scope::Zone]),
    ] {
        let mut near = service(0);
        near.load_balancer = Some(LoadBalancer {
            preferences: preferences.to_vec(),
            mode,
            health_policy: HealthPolicy::OnlyHealthy,
        });
        let large = Mesh::default().apply(all.iter().cloned().chain([Update::Service(near.into())]));
        route(format!("service_of_{LARGE}/{name}"), &large, 1);
    }
}

criterion_group!(benches, all_at_once, one_endpoint, look_up, routes);
criterion_main!(benches);
