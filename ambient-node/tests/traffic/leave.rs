//! How a pod leaves the mesh.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, Way, ending, until};

/// What is open is reset on both sides, also where nothing is said; nothing of it leaves the pod as it is.
pub(crate) fn a_pod_that_leaves_is_cut(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut idle: Vec<_> = Way::ALL
        .into_iter()
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, mesh.open(way, family))))
        .collect();
    for (_, pair) in &mut idle {
        pair.converse()?;
    }
    let busy: Vec<_> = Way::ALL.map(|way| (way, mesh.open(way, Family::V4))).into();
    mesh.apply("namespace", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    thread::scope(|scope| {
        for (way, pair) in &busy {
            scope.spawn(move || {
                let begun = Instant::now();
                while (&pair.client).write_all(&[7; 100]).is_ok() {
                    assert!(begun.elapsed() < Duration::from_secs(5), "{way} goes on");
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
    for (way, pair) in &mut idle {
        assert_eq!(ending(&mut pair.client), "reset", "the client, {way}");
        assert_eq!(ending(&mut pair.server), "reset", "the server, {way}");
    }
    // From then on it is outside, after nothing worse than a refusal.
    let listener = mesh.c.listen(Family::V4);
    until("plaintext", || match mesh.a.connect(listener.address()) {
        Ok(mut client) => {
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            listener.accept_unless(|| ending(&mut client) == "reset").map(drop)
        }
        Err(error) => {
            let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
            assert!(kinds.contains(&error.kind()), "{error}");
            None
        }
    });
    Ok(())
}
