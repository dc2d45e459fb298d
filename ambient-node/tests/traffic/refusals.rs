//! What a client sees of a connection that may not be, or may not be any longer.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{ALLOW_NOTHING, Family, Mesh, Pair, Way, ending, until};

pub(crate) fn a_refusal_by_policy_is_an_empty_reply(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply("policy", ALLOW_NOTHING);
    for way in [Way::Tunnel, Way::Inbound] {
        let (from, to) = mesh.ends(way);
        let listener = to.listen(Family::V4);
        // The policy is in force once a connection ends without having arrived.
        until("the policy to be in force", || {
            let mut probe = from.connect(listener.address()).unwrap();
            listener.accept_unless(|| has_ended(&mut probe)).is_none().then_some(())
        });
        for sent in [0, 10_000] {
            for shut in [false, true] {
                let mut client = from.connect(listener.address())?;
                client.write_all(&vec![7; sent])?;
                if shut {
                    client.shutdown(Shutdown::Write)?;
                }
                assert_eq!(ending(&mut client), "end", "{way}, {sent} bytes sent, shut: {shut}");
                // Nor does a reset come after the end, once the node has let go.
                thread::sleep(Duration::from_millis(if shut { 50 } else { 1200 }));
                assert!(client.take_error()?.is_none(), "{way}, {sent} bytes sent, shut: {shut}");
                assert_eq!(ending(&mut client), "end", "{way}, {sent} bytes sent, shut: {shut}");
            }
        }
        assert!(listener.is_lonely(), "{way}: the application was connected to");
    }
    // What leaves the mesh is no business of the policies of the mesh.
    mesh.open(Way::Outbound, Family::V4).converse()?;
    Ok(())
}

pub(crate) fn where_nobody_listens_is_a_reset(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for way in Way::ALL {
        for family in [Family::V4, Family::V6] {
            let (from, to) = mesh.ends(way);
            assert_eq!(from.attempt(to.deserted(family)), "reset", "{way}, {family:?}");
            // Whoever writes may be told of it by the connecting or the writing already.
            let eager = from.connect(to.deserted(family)).and_then(|mut client| {
                client.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
                client.read(&mut [0])
            });
            assert!(matches!(&eager, Err(error) if is_reset(error)), "{way}, {family:?}: {eager:?}");
        }
    }
    Ok(())
}

pub(crate) fn a_new_policy_cuts_what_is_open(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut concerned = [Way::Tunnel, Way::Inbound].map(|way| (way, mesh.open(way, Family::V4)));
    let mut free = mesh.open(Way::Outbound, Family::V4);
    for (_, pair) in &mut concerned {
        pair.converse()?;
    }
    // Readers that have stopped must not hold up the cut.
    let mut stalled = [Way::Tunnel, Way::Inbound].map(|way| (way, mesh.open(way, Family::V4)));
    for (_, pair) in &mut stalled {
        pair.stall();
    }
    let mut moved = mesh.open(Way::Tunnel, Family::V4);
    let changed = Instant::now();
    mesh.apply("policy", ALLOW_NOTHING);
    // One that carries data at that moment; its reader keeps up, so that hardly anything is unread.
    let carried = busy(&mut moved);
    assert!(carried > 0);
    for (way, pair) in &mut concerned {
        assert_eq!(ending(&mut pair.client), "reset", "the client, {way}");
        assert_eq!(ending(&mut pair.server), "reset", "the server, {way}");
    }
    for (way, pair) in &mut stalled {
        assert_eq!(ending(&mut pair.client), "reset", "the client, stalled {way}");
    }
    let took = changed.elapsed();
    assert!(took < Duration::from_secs(1), "cut after {took:?}");
    for (way, pair) in &mut stalled {
        assert_eq!(pair.ending_of_stalled(), "reset", "the server, stalled {way}");
    }
    free.converse()?;
    Ok(())
}

/// Whether an end has come by now.
fn has_ended(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    ending(stream) == "end"
}

/// Converses until it is cut; says how often that went well.
fn busy(pair: &mut Pair) -> usize {
    let mut times = 0;
    loop {
        match pair.converse() {
            Ok(()) => times += 1,
            Err(error) => {
                assert!(is_reset(&error), "after {times} times: {error}");
                return times;
            }
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    // Who writes after the reset was told to a reader sees a broken pipe.
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
