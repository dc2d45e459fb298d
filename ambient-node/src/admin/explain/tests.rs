use std::{sync::mpsc, time::Duration};

use ambient_core::mesh::Update;
use tokio::{runtime, sync::oneshot};

use super::*;

/// The most that anything may take.
const LONGEST: Duration = Duration::from_secs(30);

#[test]
fn what_is_waited_for_elsewhere_outlasts_the_runtime_of_pages() {
    // Whether the other one ends before it says something.
    for (ends, said) in [(false, Some(7)), (true, None)] {
        let pages = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let home = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ((answer, answered), (begin, begun)) = (oneshot::channel(), oneshot::channel());
        let (tell, told) = mpsc::channel();
        let handle = home.handle().clone();
        pages.spawn_blocking(move || {
            let task = handle.spawn(async {
                let _ = begin.send(());
                // As what is looked up does.
                tokio::time::timeout(2 * LONGEST, answered).await.unwrap().unwrap()
            });
            tell.send(awaited(task)).unwrap();
        });
        begun.blocking_recv().unwrap();
        pages.shutdown_background();
        match ends {
            true => home.shutdown_background(),
            false => answer.send(7).unwrap(),
        }
        assert_eq!(told.recv_timeout(LONGEST), Ok(said));
    }
}

#[test]
fn where_the_address_of_a_name_is_to_be_had_is_told() {
    for (hostname, why) in [
        ("db.shop.svc.mesh.example", "no endpoint with an address now; ask for ADDRESS:PORT"),
        ("db.shop.svc.cluster.local", "the name's own nameservers; ask for ADDRESS:PORT"),
        ("db.example.com", "the name's own nameservers; ask for ADDRESS:PORT"),
    ] {
        let told = no_address(&Service::new("shop", hostname), "mesh.example");
        assert!(told.contains(hostname) && told.contains(why), "{told}");
    }
}

#[test]
fn of_pods_that_are_called_alike_this_clusters_is_meant() {
    let config = Config {
        cluster_id: "near".into(),
        ..Config::new("node-1", "/nowhere")
    };
    let of = |uid: &str, cluster: &str, node: &str| {
        let mut workload = Workload::new(uid, "shop", "db-0");
        (workload.cluster, workload.node) = (cluster.into(), node.into());
        Arc::new(workload)
    };
    let far = of("a", "far", "node-1");
    let all = [
        far.clone(),
        of("b", "near", "node-2"),
        of("c", "near", "node-1"),
        of("d", "near", "node-1"),
    ];
    let found = |all: &[Arc<Workload>]| {
        let mesh = Mesh::default().apply(all.iter().cloned().map(Update::Workload));
        pod(&mesh, &config, "shop/db-0").unwrap().uid.as_str().to_owned()
    };
    for n in 0..all.len() {
        let mut all = all.clone();
        all.rotate_left(n);
        assert_eq!(found(&all), "c");
    }
    assert_eq!(found(&all[..2]), "b");
    assert_eq!(found(&[far]), "a");
}
