//! How a node ends.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, PATIENCE, Way, ending, until};

/// So long that what is done meanwhile is over by then also where the machine is busy.
const DRAIN: Duration = Duration::from_secs(4);

pub(crate) fn a_node_that_stops_drains(world: &World) -> Outcome {
    let mut mesh = Mesh::start_with(world, |config| config.drain = DRAIN)?;
    let mut open: Vec<_> = Way::ALL.into_iter().map(|way| (way, mesh.open(way, Family::V4))).collect();
    for (_, pair) in &mut open {
        pair.converse()?;
    }
    let mut stalled = Way::ALL.map(|way| (way, mesh.open(way, Family::V6)));
    for (_, pair) in &mut stalled {
        pair.stall();
    }
    let told = Instant::now();
    let stopping = mesh.stop();
    // Nothing new is taken, in either direction; what is open goes on meanwhile.
    for way in Way::ALL {
        let (from, to) = mesh.ends(way);
        let listener = to.listen(Family::V4);
        until("new connections to be refused", || match from.connect(listener.address()) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Some(()),
            Err(error) => {
                // It had come a moment before the end of who listens, who had not taken it.
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{way}");
                None
            }
            Ok(_) => {
                assert!(told.elapsed() < DRAIN, "{way}, after {:?}", told.elapsed());
                None
            }
        });
    }
    while told.elapsed() < DRAIN * 3 / 4 {
        open.retain_mut(|(way, pair)| {
            let Err(error) = pair.converse() else { return true };
            // Whoever has his turn so late has talked across the end.
            assert!(told.elapsed() >= DRAIN, "{way}, after {:?}: {error}", told.elapsed());
            false
        });
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!stopping.is_over() || told.elapsed() >= DRAIN);
    for (way, pair) in &mut open {
        assert_eq!(ending(&mut pair.client), "reset", "the client, {way}");
        assert_eq!(ending(&mut pair.server), "reset", "the server, {way}");
    }
    for (way, pair) in &mut stalled {
        assert_eq!(ending(&mut pair.client), "reset", "the client, stalled {way}");
    }
    let cut = told.elapsed();
    assert!(cut >= DRAIN && cut < DRAIN * 3, "cut after {cut:?}");
    until("the node to end", || stopping.is_over().then_some(()));
    let ended = told.elapsed();
    assert!(ended < DRAIN * 4, "ended after {ended:?}");
    for (way, pair) in &mut stalled {
        assert_eq!(pair.ending_of_stalled(), "reset", "the server, stalled {way}");
    }
    Ok(stopping.result()?)
}

pub(crate) fn an_idle_node_stops_at_once(world: &World) -> Outcome {
    let mut mesh = Mesh::start_with(world, |config| config.drain = Duration::from_secs(60))?;
    let mut pair = mesh.open(Way::Tunnel, Family::V4);
    pair.converse()?;
    drop(pair);
    // The tunnel between the pods stands, but carries nothing.
    let told = Instant::now();
    let stopping = mesh.stop();
    until("the node to end", || stopping.is_over().then_some(()));
    assert!(told.elapsed() < PATIENCE, "ended after {:?}", told.elapsed());
    stopping.result()?;
    // The rules stay: what a pod sends is refused, and does not leave in plaintext.
    let listener = mesh.c.listen(Family::V4);
    let refused = mesh.a.connect(listener.address());
    assert!(
        matches!(&refused, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused),
        "{refused:?}"
    );
    assert!(listener.is_lonely());
    Ok(())
}
