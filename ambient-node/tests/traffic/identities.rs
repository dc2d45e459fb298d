//! Pods whose certificates come from SPIRE.

use ambient_core::ports;
use ambient_testkit::{World, harness::Outcome, spire};

use crate::mesh::{Family, Mesh, Way, ending, until};

pub(crate) fn spire_says_who_is_who(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("admin.sock");
    let server = spire::Server::new();
    let agent = server.start(&socket);
    let mesh = Mesh::start_with_spire(world, &socket)?;
    let tunnelled = || mesh.open(Way::Tunnel, Family::V4).converse();
    tunnelled()?;
    let of_a = ["k8s:ns:shop", "k8s:sa:a", "k8s:pod-uid:uid-of-a"];
    assert!(server.asked().iter().any(|selectors| *selectors == of_a));

    // What is taken back counts at once, also where a tunnel stands, and ends what is open.
    let mut open = mesh.open(Way::Tunnel, Family::V4);
    server.withdraw("a");
    assert_eq!(
        (ending(&mut open.client), ending(&mut open.server)),
        ("reset".into(), "reset".into())
    );
    let listener = mesh.b.listen(Family::V4);
    let readiness = || {
        mesh.page(ports::READINESS, "/healthz/ready")
            .map(|(_, text)| text)
            .unwrap_or_default()
    };
    until("readiness to name it", || {
        readiness().contains("spiffe://cluster.local/ns/shop/sa/a").then_some(())
    });
    assert_eq!(mesh.a.attempt(listener.address()), "reset");
    assert!(listener.is_lonely(), "the application was connected to");
    // And what is given again.
    server.give("a");
    until("it to be back", || (!readiness().contains("sa/a")).then_some(()));
    tunnelled()?;

    // An agent that dies, and one that denies, take nothing away.
    drop(agent);
    tunnelled()?;
    server.deny();
    let denying = server.start(&socket);
    until("the node to be denied", || (server.denied() > 0).then_some(()));
    tunnelled()?;
    drop(denying);
    assert!(!readiness().contains("spiffe://"), "{}", readiness());
    Ok(())
}
