//! What one pod may hold, and that it takes nothing from another.

use std::net::TcpStream;

use ambient_node::Config;
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Listener, Mesh, Pair, Place, Way, until};

const MOST: usize = 8;

fn few(config: &mut Config) {
    config.connections_per_pod = MOST;
}

pub(crate) fn a_greedy_client_is_bounded(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, few)?;
    let (greedy, outside) = (&mesh.a, mesh.c.listen(Family::V4));
    await_room(greedy, &outside);
    let mut open: Vec<Pair> = (0..MOST).map(|_| pair(greedy, &outside)).collect();
    for to in [&outside, &mesh.b.listen(Family::V4)] {
        assert_eq!(greedy.attempt(to.address()), "reset");
        assert!(to.is_lonely());
    }
    // Others go on, its own and those of others; and it is still served itself.
    for pair in &mut open {
        pair.converse()?;
    }
    let mut others = [pair(&mesh.b, &outside), pair(&mesh.c, &greedy.listen(Family::V4))];
    for pair in &mut others {
        pair.converse()?;
    }
    drop(open.pop());
    open.push(until("a place to be free again", || try_pair(greedy, &outside)));
    for pair in &mut open {
        pair.converse()?;
    }
    assert_eq!(greedy.attempt(outside.address()), "reset", "one place was given back, and not two");
    Ok(())
}

pub(crate) fn a_crowded_server_is_bounded(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, few)?;
    let (crowded, other) = (mesh.b.listen(Family::V4), mesh.a.listen(Family::V4));
    await_room(&mesh.a, &crowded);
    // Streams of tunnels and connections in plaintext count alike.
    let mut open: Vec<Pair> = (0..MOST)
        .map(|index| pair(if index % 2 == 0 { &mesh.a } else { &mesh.c }, &crowded))
        .collect();
    for way in [Way::Tunnel, Way::Inbound] {
        assert_eq!(mesh.ends(way).0.attempt(crowded.address()), "reset", "{way}");
    }
    assert!(crowded.is_lonely());
    for pair in &mut open {
        pair.converse()?;
    }
    let mut others = [pair(&mesh.c, &other), pair(&mesh.b, &other)];
    for pair in &mut others {
        pair.converse()?;
    }
    drop(open.pop());
    open.push(until("a place to be free again", || try_pair(&mesh.a, &crowded)));
    for pair in &mut open {
        pair.converse()?;
    }
    Ok(())
}

/// What was opened to see whether the mesh is up may be closing still.
fn await_room(from: &Place, to: &Listener) {
    until("every place to be free", || {
        let open: Vec<Pair> = (0..MOST).map_while(|_| try_pair(from, to)).collect();
        (open.len() == MOST).then_some(())
    });
}

fn pair(from: &Place, to: &Listener) -> Pair {
    until("a connection that is taken", || try_pair(from, to))
}

/// A connection that stands, unless it is reset.
fn try_pair(from: &Place, to: &Listener) -> Option<Pair> {
    let client = from.connect(to.address()).ok()?;
    let server = to.accept_unless(|| is_reset(&client))?;
    Some(Pair { client, server })
}

fn is_reset(client: &TcpStream) -> bool {
    client.take_error().unwrap().is_some()
}
