//! What is printed for people, held against what `nft` makes of it.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

use ambient_core::Capture;
use ambient_redirect::{
    linux::{Change, Inside, Mark, Netns, NodeSide, Watcher},
    netlink::{Batch, Expr, Family, Nftables, Routing, Verdict},
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
        ambient_testkit::skipped("rules as they are printed, put in force: nft is not installed");
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

/// What a dry run says would change is what does, and it changes nothing.
pub(crate) fn a_dry_run_says_what_would_change(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let mark = Mark::new(NAME, &"a".into());
    let plan = Plan::new(&Options::default());
    node.run(async {
        let mut inside = Inside::open(&pod).unwrap();
        let before = inside.dry_run(&plan, &mark).unwrap();
        assert!(before.lines.iter().all(|l| l.change == Change::Added), "{before}");
        assert_eq!(inside.owner().unwrap(), None, "nothing was changed");
        for text in [
            "+ table inet ambient-nat\n",
            "redirect to :15001\n",
            "+ routing rule, IPv4\n",
            "+ route to the proxy, IPv6\n",
        ] {
            assert!(before.to_string().contains(text), "{text} in {before}");
        }
        let mut watcher = Watcher::new(&pod).unwrap();
        inside.apply(&plan, &mark).unwrap();
        watcher.changed().await.unwrap();
        let after = inside.dry_run(&plan, &mark).unwrap();
        assert!(after.is_nothing(), "{after}");
        assert_eq!(after.lines.len(), before.lines.len());

        // Without DNS a table and some rules go, and the others stay.
        let without = Plan::new(&Options {
            dns: false,
            ..Options::default()
        });
        let text = inside.dry_run(&without, &mark).unwrap().to_string();
        assert!(
            text.contains("- table inet ambient-raw\n") && text.contains("  table inet ambient-nat\n"),
            "{text}"
        );
        let removed: Vec<&str> = text.lines().filter(|l| l.starts_with("- rule")).collect();
        assert!(removed.len() == 5 && removed.iter().all(|l| l.contains("53 ")), "{text}");
        assert!(!text.contains("\n+"), "{text}");

        // A stranger's rule among ours.
        let mut batch = Batch::default();
        let accept = [Expr::Counter, Expr::Verdict(Verdict::Accept)];
        batch.add_rule(Family::Inet, "ambient-nat", "output", &accept);
        pod.run(|| Nftables::open().unwrap().commit(batch, None).unwrap()).unwrap();
        let text = inside.dry_run(&plan, &mark).unwrap().to_string();
        assert!(
            text.contains("- rule ambient-nat output: (no rule of ours, handle") && text.contains("counter, immediate)"),
            "{text}"
        );

        // A table of ours under a name that is not known here.
        pod.run(|| {
            let mut nftables = Nftables::open().unwrap();
            let ours = nftables.table(Family::Inet, "ambient-nat").unwrap().unwrap().userdata;
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "ambient-later", &ours);
            batch.add_table(Family::Inet, "ambient-elsewhere", b"");
            nftables.commit(batch, None).unwrap();
        })
        .unwrap();
        let dry = inside.dry_run(&plan, &mark).unwrap();
        let text = dry.to_string();
        assert!(!dry.is_nothing() && text.contains("- table inet ambient-later\n"), "{text}");
        assert!(!text.contains("elsewhere"), "somebody else's: {text}");
        inside.clear().unwrap();
    })
}
