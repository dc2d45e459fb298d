//! A node whose pods another's agent enrols: told over ZDS, by an agent that shares no line with this project.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    plan::{Options, Plan},
};
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, Way, until};

const ADMIN: u16 = ambient_core::ports::ADMIN;
const READINESS: u16 = ambient_core::ports::READINESS;

/// The agent's process.
struct Agent {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    /// `None`, and a line that says so, where there is no Python.
    fn start(socket: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traffic/agent.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut process) = command.spawn() else {
            println!("SKIPPED: told by another's agent: python3 is not here: install Python 3.9 or later");
            return None;
        };
        let (commands, answers) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        let mut agent = Self {
            process,
            commands,
            answers,
        };
        assert_eq!(agent.answer(), "listening");
        Some(agent)
    }

    fn say(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn add(&mut self, world: &World, pod: &str, place: &str) -> String {
        let place = world.netns_dir().join(place);
        self.say(&format!("add uid-of-{pod} shop {pod} {pod} {}", place.display()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rules as an agent makes them before it tells of a pod.
fn make_rules(world: &World, pod: &str) {
    let namespace = Netns::open(world.netns_dir().join(pod)).unwrap();
    let plan = Plan::new(&Options {
        dns: false,
        ..Options::default()
    });
    let mark = Mark::new("an-agent", &format!("uid-of-{pod}").as_str().into());
    Inside::open(&namespace).unwrap().apply(&plan, &mark).unwrap();
}

pub(crate) fn an_agent_of_others_is_obeyed(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let Some(agent) = Agent::start(&socket) else { return Ok(()) };
    let agent = RefCell::new(agent);
    let mesh = Mesh::start_told(
        world,
        |config| {
            config.zds = Some(socket);
            // It is not looked at.
            config.netns_dir = "/nowhere".into();
            make_rules(world, "a");
            make_rules(world, "b");
        },
        |mesh| {
            let mut agent = agent.borrow_mut();
            let (status, text) = mesh.page_patiently(READINESS, "/healthz/ready");
            assert!(
                status == 500 && text.contains("no node agent") || text.contains("not named all pods"),
                "{text}"
            );
            assert_eq!(agent.say("accept"), "ok");
            assert_eq!(agent.add(world, "a", "a"), "ok");
            assert_eq!(agent.add(world, "b", "b"), "ok");
            let (status, text) = mesh.page_patiently(READINESS, "/healthz/ready");
            assert!(status == 500 && text.contains("not named all pods"), "{text}");
            assert_eq!(agent.say("snapshot"), "ok");
        },
    )?;
    let mut agent = agent.into_inner();
    until("readiness", || {
        (mesh.page(READINESS, "/healthz/ready").ok()?.0 == 200).then_some(())
    });
    let mut open = Way::ALL.map(|way| (way, mesh.open(way, Family::V4)));
    let mut converse = |when: &str| {
        for (way, pair) in &mut open {
            pair.converse().unwrap_or_else(|error| panic!("{way}, {when}: {error}"));
        }
    };
    converse("at first");
    assert_eq!(agent.add(world, "a", "a"), "ok");
    converse("told again");

    // Whatever it says that is no message costs it its connection, and no pod anything; what is no network namespace is one
    // pod's affair.
    let (none, file) = ("", " /dev/null");
    let two = format!(" {0} {0}", world.netns_dir().join("c").display());
    let refused = agent.say(&format!("add uid-of-c shop c c{file}"));
    assert!(refused.contains("no network namespace"), "{refused}");
    converse("beside a pod that is nowhere");
    // Whoever asks is told that it was named, and why it is not served.
    assert!(agent.say(&format!("add uid-of-b shop b b{file}")).contains("no network namespace"));
    let (_, text) = mesh.page(ADMIN, "/pods?pod=b").unwrap();
    assert!(
        text.contains("wrong: the node agent has named it") && text.contains("no network namespace"),
        "{text}"
    );
    converse("beside one that is served elsewhere");
    assert_eq!(agent.add(world, "b", "b"), "ok");
    let (_, text) = mesh.page(ADMIN, "/pods?pod=b").unwrap();
    assert!(text.contains("nothing is wrong"), "{text}");
    assert_eq!(agent.say("del uid-of-c"), "ok");
    for (what, says) in [
        (format!("add uid-of-c shop c c{none}"), "no network namespace for pod"),
        (format!("add uid-of-c shop c c{two}"), "2 descriptors"),
        ("raw 0aff".into(), "not understood"),
        ("raw 4200".into(), "not understood"),
        ("snapshot".into(), "after the snapshot's end"),
        ("keep uid-of-a".into(), "after the snapshot's end"),
    ] {
        let refused = agent.say(&what);
        assert!(refused.contains(says), "{what}: {refused}");
        assert_eq!(agent.say("next"), "closed", "{what}");
        converse(&what);
        // It comes back by itself, and is told all anew.
        assert_eq!(agent.say("accept"), "ok", "{what}");
        assert_eq!(agent.add(world, "a", "a"), "ok");
        assert_eq!(agent.say("keep uid-of-b"), "ok");
        assert_eq!(agent.say("snapshot"), "ok");
    }
    converse("after all that");

    // The agent is away for a moment.
    assert_eq!(agent.say("close"), "ok");
    converse("without an agent");
    assert_eq!(agent.say("accept"), "ok");
    let refused = agent.add(world, "c", "b");
    assert!(refused.contains("that of pod uid-of-b"), "{refused}");
    assert_eq!(agent.say("del uid-of-c"), "ok");
    assert_eq!(agent.say("keep uid-of-a"), "ok");
    assert_eq!(agent.say("keep uid-of-b"), "ok");
    assert_eq!(agent.say("snapshot"), "ok");
    converse("and with the next");
    until("readiness", || {
        (mesh.page(READINESS, "/healthz/ready").ok()?.0 == 200).then_some(())
    });

    // A pod that goes is served no more; its rules are the agent's.
    assert_eq!(agent.say("del uid-of-b"), "ok");
    let listener = mesh.b.listen(Family::V4);
    assert_ne!(mesh.c.attempt(listener.address()), "end");
    assert!(listener.is_lonely());
    Ok(())
}
