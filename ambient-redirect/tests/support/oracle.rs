//! What is printed for people, held against what `nft` makes of it.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

use ambient_core::Capture;
use ambient_redirect::{
    linux::{Inside, Mark, Netns, NodeSide},
    netlink::Routing,
    plan::{Options, Plan},
    probes,
};
use ambient_testkit::{World, harness::Outcome};

use crate::node::{NAME, Node};

/// Runs `nft` in a namespace; `None` where it is not installed.
fn nft(at: &Arc<Netns>, args: &[&str], input: &str) -> Option<String> {
    at.run(|| {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "nft {args:?}: {}\n{input}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(String::from_utf8(output.stdout).unwrap())
    })
    .unwrap()
}

/// What is in force, without counts and without the marks of who put it there.
fn ruleset(at: &Arc<Netns>) -> String {
    let text = nft(at, &["-s", "list", "ruleset"], "").unwrap();
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("comment \"ambient"));
    lines.map(str::trim_end).collect::<Vec<_>>().join("\n")
}

pub(crate) fn what_is_printed_is_what_is_put_in_force(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let scratch = Arc::new(Netns::open(world.namespace("scratch")?.path())?);
    if nft(&scratch, &["--version"], "").is_none() {
        println!("skipped: nft is not installed");
        return Ok(());
    }
    let asks: [&[(&str, &str)]; 4] = [
        &[],
        &[("ambient.istio.io/bypass-inbound-capture", "true")],
        &[("istio.io/reroute-virtual-interfaces", "tap0,br-1.2,veth@x")],
        &[("ambient.istio.io/dns-capture", "false")],
    ];
    for annotations in asks {
        let capture = Capture::read(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value));
        for (ipv6, probes) in [(true, true), (false, false)] {
            let node = Options {
                ipv6,
                probes,
                ..Options::default()
            };
            let plan = Plan::new(&node.of(&capture));
            let mut inside = Inside::open(&pod).unwrap();
            inside.apply(&plan, &Mark::new(NAME, &"a".into())).unwrap();
            nft(&scratch, &["-f", "-"], &plan.to_string());
            assert_eq!(ruleset(&pod), ruleset(&scratch), "{annotations:?}");
            nft(&scratch, &["flush", "ruleset"], "");
            inside.clear().unwrap();
        }
    }
    for addresses in [&[][..], &["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]] {
        for ipv6 in [true, false] {
            let table = probes::table(addresses.iter().copied(), ipv6);
            let mut side = NodeSide::open(&pod, NAME).unwrap();
            side.apply(&table).unwrap();
            nft(&scratch, &["-f", "-"], &table.to_string());
            assert_eq!(ruleset(&pod), ruleset(&scratch));
            nft(&scratch, &["flush", "ruleset"], "");
            side.clear().unwrap();
        }
    }
    assert!(pod.run(|| Routing::open().unwrap().routes(100).unwrap()).unwrap().is_empty());
    Ok(())
}
