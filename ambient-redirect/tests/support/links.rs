//! Whom either end of a connection lets in, and what becomes of its socket and of the descriptors that it carries.

use std::{
    collections::BTreeSet,
    fs::File,
    os::{fd::AsFd, unix::fs::PermissionsExt},
};

use ambient_redirect::{
    linux::{SeqPacket, SeqPacketListener},
    plan::Options,
    zds::{Allowed, Client, ClientConfig, Server, ServerConfig, wire::Hello, workloads::Readiness},
};
use ambient_testkit::{World, harness::Outcome};

use crate::{Recorder, closes, expect, mesh::Log, node::Node, path, until};

pub(crate) fn strangers_are_refused_at_both_ends(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.run(async {
        let nobody = Allowed(BTreeSet::from([4242]));
        let mut config = ServerConfig::new(path(world), Options::default());
        config.allowed = nobody.clone();
        let server = Server::bind(config).unwrap();
        let running = server.clone();
        let serving = tokio::spawn(async move { running.run().await });
        expect(&server, &[]);
        let link = SeqPacket::connect(&path(world)).unwrap();
        let _ = link.send(&Hello { version: 1 }.encode(), None).await;
        closes(&link).await;
        assert!(server.proxies().borrow().is_empty());
        serving.abort();

        let mut config = ClientConfig::new(path(world));
        config.allowed = nobody;
        let client = Client::new(config);
        let state = client.state();
        let log = Log::default();
        let proxy = tokio::spawn(client.run(Recorder::new("p", &log)));
        until("a complaint", || {
            state.borrow().trouble.as_ref().is_some_and(|t| t.contains("is not believed"))
        })
        .await;
        assert_eq!(state.borrow().readiness, Readiness::Alone);
        proxy.abort();
    })
}

pub(crate) fn only_a_dead_socket_of_ours_is_replaced(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.run(async {
        let path = path(world);
        std::fs::write(&path, "something").unwrap();
        let bind = || Server::bind(ServerConfig::new(&path, Options::default()));
        let error = bind().unwrap_err().to_string();
        assert!(
            error.contains("no socket") && error.contains(&path.display().to_string()),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(bind().unwrap_err().to_string().contains("no socket"));
        assert!(path.is_dir());
        std::fs::remove_dir(&path).unwrap();
        // A link is not followed, wherever it leads.
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(bind().unwrap_err().to_string().contains("no socket"));
        std::fs::remove_file(&path).unwrap();

        let first = bind().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = bind().unwrap_err().to_string();
        assert!(error.contains("somebody listens there"), "{error}");
        // A dead one, as a killed process leaves it.
        let dead = path.with_file_name("dead.sock");
        std::fs::rename(&path, &dead).unwrap();
        drop(first);
        std::fs::rename(&dead, &path).unwrap();
        let second = bind().unwrap();
        drop(second);
        assert!(!path.exists(), "it takes its path along");
    })
}

pub(crate) fn a_packets_descriptors_are_never_lost_or_leaked(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.run(async {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let path = path(world);
        let listener = SeqPacketListener::bind(&path).unwrap();
        let ours = SeqPacket::connect(&path).unwrap();
        let theirs = listener.accept().await.unwrap();
        let file = File::open("/dev/null").unwrap();
        let before = open();
        for bytes in [10, 2000] {
            ours.send(&vec![1; bytes], Some(file.as_fd())).await.unwrap();
            let received = theirs.receive(1024).await;
            match bytes {
                10 => {
                    let packet = received.unwrap().unwrap();
                    assert_eq!((packet.bytes.len(), packet.descriptors.len()), (10, 1));
                    let flags = closes_on_exec(&packet.descriptors[0]);
                    assert!(flags, "closed on exec");
                }
                _ => assert!(received.unwrap_err().to_string().contains("more than 1024 bytes")),
            }
        }
        assert_eq!(open(), before, "also those of a packet that was cut off are closed");
    })
}

/// Whether a descriptor is closed on exec.
fn closes_on_exec(fd: &impl AsFd) -> bool {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0
}
