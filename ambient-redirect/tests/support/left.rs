//! What a process leaves behind when it is killed, and who takes its place.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use ambient_redirect::{
    linux::{Inside, Mark},
    plan::Plan,
    pods::State,
};
use ambient_testkit::{World, harness::Outcome};
use socket2::{Domain, Socket, Type};

use crate::{
    ADDRESSES, UID, give_back, kept_of,
    mesh::{Log, Running, is_in},
    node::{NAME, Node, spec},
    peers::{ask, echo, open_all, until},
    usurp,
};

/// It was refused as its capture could not be proven, and cannot be proven now either.
pub(crate) fn what_was_refused_stays_refused_until_it_is_proven(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let log = Log::default();
        let mut running = Running::start(node.config(), &log);
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        usurp(&pod);
        running.until("refusal", |states| states[0].closed).await;
        running.kill().await;
        give_back(&pod);
        let mut running = Running::start(node.config(), &log);
        running.proxy.hang(true);
        running.want(&[spec(UID, &ADDRESSES)]);
        running
            .until("that it cannot be proven", |states| {
                states.iter().any(|s| matches!(s.state, State::Refused { .. }))
            })
            .await;
        for (from, to) in [(&pod, "10.0.0.1:8081"), (&pod, "[fd00::1]:8081"), (&node.netns, "10.0.0.2:8081")] {
            let kind = ask(from, to).await.map_err(|e| e.kind());
            assert_eq!(kind, Err(io::ErrorKind::ConnectionRefused), "{to}");
        }
        assert!(running.states.borrow()[0].closed);
        running.proxy.hang(false);
        running.until("capture", |states| is_in(states, UID) && !states[0].closed).await;
        assert_eq!(ask(&pod, "10.0.0.1:8081").await.unwrap(), "out 10.0.0.1:8081 from 10.0.0.2");
        running.stop().await;
    })
}

/// It was killed after it had begun to track, and before anything captured: nothing has gone around anything.
pub(crate) fn what_is_open_goes_on_where_a_process_was_killed_while_its_pod_joined(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut before = open_all(&node, &pod);
        let mark = Mark::new(NAME, &UID.into());
        Inside::open(&pod).unwrap().apply(&Plan::tracking(), &mark).unwrap();
        let mut meanwhile = open_all(&node, &pod);
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        for pair in before.iter_mut().chain(&mut meanwhile) {
            pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
        }
        let states = running.states.borrow().clone();
        assert_eq!((kept_of(&states), states[0].strays), (before.len() + meanwhile.len(), 0));
        running.stop().await;
    })
}

/// The proxy is away, and a process of the pod listens where that did: what is redirected there is not for it.
pub(crate) fn who_takes_the_place_of_a_proxy_that_is_away_is_given_nothing(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        running.proxy.stay_dead();
        let mut usurper = None;
        until("its port", || {
            usurper = pod.run(|| TcpListener::bind("[::]:15006")).unwrap().ok();
            usurper.is_some()
        })
        .await;
        running.until("refusal", |states| states[0].closed).await;
        let kind = ask(&node.netns, "10.0.0.2:8081").await.map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::ConnectionRefused));
        let state = running.states.borrow()[0].state.clone();
        assert!(
            matches!(&state, State::Refused { error } if error.code() == "port-taken"),
            "{state:?}"
        );
        drop(usurper);
        running.proxy.live();
        running.until("capture", |states| is_in(states, UID) && !states[0].closed).await;
        running.stop().await;
    })
}

/// The proxy shares its ports with its successor, and a process of the pod that has its user as well: some of what is redirected there is
/// given to that one, until it is found.
pub(crate) fn who_shares_a_port_with_the_proxy_is_given_nothing_once_he_is_found(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start_sharing(node.config(), &Log::default());
        running.want(&[spec(UID, &ADDRESSES)]);
        running.until_in(&[UID]).await;
        for (port, kind) in [
            (15001, Type::STREAM),
            (15006, Type::STREAM),
            (15008, Type::STREAM),
            (15053, Type::DGRAM),
        ] {
            let sharer = pod.run(|| {
                let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
                socket.set_reuse_port(true).unwrap();
                let ip = if kind == Type::DGRAM { [127, 0, 0, 1] } else { [0; 4] };
                socket.bind(&SocketAddr::from((ip, port)).into()).unwrap();
                if kind == Type::STREAM {
                    socket.listen(16).unwrap();
                }
                socket
            });
            running.until("refusal", |states| states[0].closed).await;
            let kind = ask(&node.netns, "10.0.0.2:8081").await.map_err(|e| e.kind());
            assert_eq!(kind, Err(io::ErrorKind::ConnectionRefused), "{port}");
            let told = |state: &State| matches!(state, State::Refused { error } if error.code() == "port-taken");
            running.until("the reason", |states| told(&states[0].state)).await;
            drop(sharer);
            running.until("capture", |states| is_in(states, UID) && !states[0].closed).await;
        }
        running.stop().await;
    })
}
