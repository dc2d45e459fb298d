//! What the fuzz target runs, and what the replay of its corpus runs too.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ambient_redirect::{
    linux::NetnsId,
    zds::{
        agent::{self, Agent},
        wire::{Ack, Hello, LONGEST_PACKET, Request, WorkloadInfo},
        workloads::{self, Given, Workloads},
    },
};

/// Any bytes: a length, then a packet of that many bytes, and so on. Each is read as every message, and all of them in a row
/// are what an agent sends to a proxy, and a proxy to an agent.
pub(crate) fn zds(data: &[u8]) {
    let packets: Vec<&[u8]> = packets(data).collect();
    for packet in &packets {
        read(packet);
    }
    obeys(&packets);
    asks(&packets);
}

/// What is understood is understood again once it is written.
fn read(packet: &[u8]) {
    if let Ok(request) = Request::decode(packet) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    if let Ok(ack) = Ack::decode(packet) {
        assert_eq!(Ack::decode(&ack.encode()), Ok(ack.clone()));
        assert!(Ack::refusal(&ack.error).encode().len() <= LONGEST_PACKET);
    }
    if let Ok(hello) = Hello::decode(packet) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
}

/// A proxy answers each request once, and what it is to serve ends when its agent ends it.
fn obeys(packets: &[&[u8]]) {
    let mut now = start();
    let mut workloads: Workloads<u64> = Workloads::new(workloads::Timing::default());
    workloads.handle_connected();
    let mut answers = 0usize;
    for (n, packet) in packets.iter().enumerate() {
        let given = match packet.len() % 8 {
            0 => Given::Nothing,
            1 => Given::Other("a file".into()),
            2 => Given::Many(2),
            3 => Given::Own(NetnsId { dev: 4, ino: 1 }),
            _ => Given::Namespace(NetnsId { dev: 4, ino: n as u64 % 3 }, n as u64),
        };
        workloads.handle_packet(now, packet, given);
        let closed = run(&mut workloads, now, n % 5 != 0, &mut answers);
        now += Duration::from_millis(1500);
        run(&mut workloads, now, true, &mut answers);
        assert!(answers <= n + 2, "more answers than requests, and a greeting");
        if closed {
            return;
        }
    }
    // A whole snapshot of nothing ends all.
    workloads.handle_closed();
    workloads.handle_connected();
    run(&mut workloads, now, true, &mut answers);
    workloads.handle_packet(now, &Request::SnapshotSent.encode(), Given::Nothing);
    run(&mut workloads, now, true, &mut answers);
    assert_eq!(workloads.served(), 0);
}

fn run(workloads: &mut Workloads<u64>, now: Instant, well: bool, answers: &mut usize) -> bool {
    let mut closed = false;
    while let Some(output) = workloads.poll(now) {
        match output {
            workloads::Output::Send(packet) => {
                assert!(packet.len() <= LONGEST_PACKET);
                *answers += 1;
            }
            workloads::Output::Close(_) => closed = true,
            workloads::Output::Serve { uid, .. } => {
                let result = if well { Ok(()) } else { Err("the port is taken".into()) };
                workloads.handle_served(now, &uid, result);
            }
            workloads::Output::End { uid } => workloads.handle_ended(now, &uid),
        }
    }
    closed
}

/// Whatever a proxy says, an agent never has two requests under way, and never waits for ever.
fn asks(packets: &[&[u8]]) {
    let mut now = start();
    let mut agent: Agent<u64> = Agent::new(agent::Timing::default());
    agent.expect(now, BTreeSet::from(["a".into(), "b".into()]));
    agent.want(now, "a".into(), WorkloadInfo::default(), NetnsId { dev: 4, ino: 1 }, 1, false);
    let proxy = agent.handle_connected(now);
    let mut under_way = false;
    for packet in packets {
        agent.handle_packet(now, proxy, packet, usize::from(packet.len() == 7));
        under_way = false;
        while let Some(output) = agent.poll(now) {
            match output {
                agent::Output::Send { packet, .. } => {
                    assert!(!under_way && packet.len() <= LONGEST_PACKET);
                    under_way = true;
                }
                agent::Output::Close { .. } => return,
                agent::Output::Answer { .. } => (),
            }
        }
        now += Duration::from_millis(10);
    }
    assert!(!under_way || agent.timeout().is_some());
}

#[allow(clippy::disallowed_methods, reason = "some instant to begin with")]
fn start() -> Instant {
    Instant::now()
}

fn packets(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first()?;
        let (packet, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        Some(packet)
    })
}
