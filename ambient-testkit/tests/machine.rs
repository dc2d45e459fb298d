//! The private world, seen from inside: its tests are run by its own harness.

use std::{
    cell::RefCell,
    env,
    error::Error,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use ambient_testkit::{
    Capture, End, Namespace, NoWorld, Output, Process, Program, Resolution, Signal, World,
    capture::Speech,
    exit_code,
    harness::{self, Outcome},
    kept::{self, Down, Kept, KeptError},
    link, world,
};
use ipnet::IpNet;

fn main() -> ExitCode {
    harness::main_with_actors(
        &[
            ("the_host_is_out_of_reach", the_host_is_out_of_reach),
            (
                "wires_carry_both_families_and_captures_see_it",
                wires_carry_both_families_and_captures_see_it,
            ),
            ("windows_of_a_capture", windows_of_a_capture),
            ("super_packets_are_captured_whole", super_packets_are_captured_whole),
            ("packets_are_routed", packets_are_routed),
            ("names_of_namespaces_show_everywhere", names_of_namespaces_show_everywhere),
            ("a_view_covers_name_resolution", a_view_covers_name_resolution),
            ("who_is_confined_writes_nothing", who_is_confined_writes_nothing),
            ("programs_end_as_told", programs_end_as_told),
            (
                "a_program_with_an_environment_of_its_own_has_nothing_of_the_callers",
                a_program_with_an_environment_of_its_own_has_nothing_of_the_callers,
            ),
            ("programs_die_with_the_world", programs_die_with_the_world),
            ("sysctls_are_the_namespaces_own", sysctls_are_the_namespaces_own),
            ("a_kept_lab_is_entered_and_ended", a_kept_lab_is_entered_and_ended),
            ("a_crashed_lab_is_cleaned_up", a_crashed_lab_is_cleaned_up),
            ("a_second_world_is_refused_to_threads", a_second_world_is_refused_to_threads),
            (
                "a_test_that_gets_no_world_is_skipped_unless_worlds_are_required",
                a_test_that_gets_no_world_is_skipped_unless_worlds_are_required,
            ),
        ],
        &[
            ("keeper", keeper),
            ("exec", exec),
            ("down", down),
            ("wait", wait),
            ("watch-names", watch_names),
            ("show-view", show_view),
        ],
    )
}

// ---- tests

fn the_host_is_out_of_reach(world: &World) -> Outcome {
    let outside = format!("/proc/{}", std::os::unix::process::parent_id());
    let mounts = || fs::read_to_string(format!("{outside}/mounts"));
    let before = mounts()?;
    let namespace = world.namespace("somewhere")?;
    namespace
        .spawn(&Program::new("true").view(&world.view("somewhere", &Resolution::default())?))?
        .wait(SOON)?;
    for kind in ["net", "mnt"] {
        // Without root it is not even to be looked at from inside.
        let there = fs::read_link(format!("{outside}/ns/{kind}"));
        assert!(world.is_rootless() && there.is_err() || there? != fs::read_link(format!("/proc/self/ns/{kind}"))?);
    }
    assert_eq!(mounts()?, before, "mounts outside changed");
    assert_eq!(fs::read_dir(world.netns_dir())?.count(), 1);
    assert!(world.namespace("somewhere").is_err(), "a name is given once");
    for name in ["", ".", "..", "a/b", "a\nb"] {
        assert!(world.namespace(name).is_err(), "{name:?}");
    }
    namespace.delete()?;
    assert_eq!(fs::read_dir(world.netns_dir())?.count(), 0);
    Ok(())
}

fn wires_carry_both_families_and_captures_see_it(world: &World) -> Outcome {
    let (client, server) = two_ends(world)?;
    let capture = Capture::start(&client, "eth0")?;
    for address in ["10.0.0.2:80", "[fd00::2]:80"] {
        let (mut near, mut far) = connect(&client, &server, address.parse()?)?;
        near.write_all(b"a marker in")?;
        thread::sleep(Duration::from_millis(20));
        near.write_all(b" two segments")?;
        far.write_all(b"and its answer")?;
        near.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        far.read_to_string(&mut text)?;
        assert_eq!(text, "a marker in two segments");
        let mut answer = [0; 14];
        near.read_exact(&mut answer)?;

        let seen = capture.seen()?;
        assert!(seen.contains(b"marker in two segments") && seen.contains(b"and its answer"));
        assert!(!seen.contains(b"never said"));
        let connection = seen
            .connections_of(address.parse::<SocketAddr>()?.ip())
            .next()
            .ok_or("no connection was seen")?;
        assert_eq!(connection.server, address.parse()?);
        assert_eq!(connection.client, near.local_addr()?);
        assert_eq!(connection.to_server, b"a marker in two segments");
        assert_eq!(connection.to_client, b"and its answer");
        assert!(connection.opened && !connection.reset);
        assert_eq!(connection.speech, Speech::Other);
    }
    let socket = client.run(|| UdpSocket::bind("10.0.0.1:0"))??;
    socket.send_to(b"a datagram", "10.0.0.2:53")?;
    let seen = capture.seen()?;
    assert!(seen.contains(b"a datagram"));
    assert_eq!(
        seen.datagrams
            .iter()
            .filter(|d| d.to == SocketAddr::from(([10, 0, 0, 2], 53)))
            .count(),
        1
    );
    assert!(Capture::start(&client, "eth1").is_err());
    Ok(())
}

fn windows_of_a_capture(world: &World) -> Outcome {
    let (client, server) = two_ends(world)?;
    let capture = Capture::start(&server, "eth0")?;
    let (mut near, mut far) = connect(&client, &server, "10.0.0.2:80".parse()?)?;
    // A TLS record of 4 bytes, then the first half of another one.
    near.write_all(b"\x16\x03\x01\x00\x04abcd\x17\x03\x03\x00\x06ef")?;
    far.read_exact(&mut [0; 16])?;
    assert_eq!(capture.seen()?.connections[0].speech, Speech::Tls);
    capture.clear()?;
    assert!(capture.seen()?.connections.is_empty());
    near.write_all(b"ghij")?;
    far.read_exact(&mut [0; 4])?;
    let seen = capture.seen()?;
    let connection = &seen.connections[0];
    assert_eq!(
        (connection.to_server.as_slice(), connection.opened, connection.speech),
        (&b"ghij"[..], false, Speech::Tls)
    );
    assert!(!seen.contains(b"abcd"), "it passed in the window before");
    near.write_all(b"GET / HTTP/1.1\r\n")?;
    far.read_exact(&mut [0; 16])?;
    assert_eq!(capture.seen()?.connections[0].speech, Speech::Other);
    Ok(())
}

fn super_packets_are_captured_whole(world: &World) -> Outcome {
    const LENGTH: usize = 8 << 20;
    let (client, server) = two_ends(world)?;
    let capture = Capture::start(&server, "eth0")?;
    let (mut near, mut far) = connect(&client, &server, "[fd00::2]:80".parse()?)?;
    let sent: Vec<u8> = (0..LENGTH as u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 7).to_le_bytes())
        .take(LENGTH)
        .collect();
    let got = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).map(|_| got)
        });
        near.write_all(&sent)
            .and_then(|()| near.shutdown(Shutdown::Write))
            .and_then(|()| reader.join().map_err(|_| io::ErrorKind::Other)?)
    })?;
    assert!(got == sent);
    let seen = capture.seen()?;
    assert!(
        seen.connections[0].to_server == sent,
        "{} of {LENGTH} bytes",
        seen.connections[0].to_server.len()
    );
    // Far fewer frames than segments of 1,500 bytes: super-packets did pass.
    assert!(seen.frames < 4_000, "{} frames", seen.frames);
    Ok(())
}

fn packets_are_routed(world: &World) -> Outcome {
    let (a, router, b) = (world.namespace("a")?, world.namespace("router")?, world.namespace("b")?);
    router.forward()?;
    let net = |text: &str| text.parse::<IpNet>();
    // As a node joins its pods: a host address, and routes of one address each.
    for (pod, wire, v4, v6) in [
        (&a, "to-a", "10.1.0.2/32", "fd01::2/128"),
        (&b, "to-b", "10.2.0.2/32", "fd02::2/128"),
    ] {
        link(
            &End::new(pod, "eth0").address(net(v4)?).address(net(v6)?),
            &End::new(&router, wire).address(net("169.254.1.1/32")?),
        )?;
        router.add_address(wire, net("fd00::1/128")?)?;
        router.add_route(net(v4)?, None, wire)?;
        router.add_route(net(v6)?, None, wire)?;
        pod.add_route(net("0.0.0.0/0")?, Some("169.254.1.1".parse()?), "eth0")?;
        pod.add_route(net("::/0")?, Some("fd00::1".parse()?), "eth0")?;
    }
    for address in ["10.2.0.2:80", "[fd02::2]:80"] {
        let (near, far) = connect(&a, &b, address.parse()?)?;
        assert_eq!(near.local_addr()?, far.peer_addr()?);
    }
    router.delete_interface("to-b")?;
    assert!(
        b.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??
            .lines()
            .all(|line| !line.contains("eth0"))
    );
    Ok(())
}

fn names_of_namespaces_show_everywhere(world: &World) -> Outcome {
    let namespace = world.namespace("watcher")?;
    let program = Program::actor("watch-names")
        .arg(world.netns_dir())
        .stdout(Output::Pipe)
        .stdin_piped();
    let mut watcher = namespace.spawn(&program)?;
    let (mut ask, mut answers) = (watcher.take_stdin().ok_or("no stdin")?, lines(&mut watcher)?);
    let mut names = || -> Result<String, Box<dyn Error>> {
        ask.write_all(b"\n")?;
        Ok(answers.next().ok_or("the watcher has ended")??)
    };
    assert_eq!(names()?, format!("watcher={} ", namespace.id().inode));
    let pod = world.namespace("pod")?;
    assert_eq!(names()?, format!("pod={} watcher={} ", pod.id().inode, namespace.id().inode));
    pod.delete()?;
    assert_eq!(names()?, format!("watcher={} ", namespace.id().inode));
    Ok(())
}

fn a_view_covers_name_resolution(world: &World) -> Outcome {
    let resolution = Resolution {
        resolv_conf: "nameserver 10.96.0.10\nsearch shop.svc.cluster.local\n".into(),
        hosts: "10.0.0.9 cart\n".into(),
    };
    let view = world.view("pod", &resolution)?;
    let namespace = world.namespace("pod")?;
    let own = || -> io::Result<String> {
        Ok(["resolv.conf", "hosts", "nsswitch.conf"]
            .map(|f| fs::read_to_string(Path::new("/etc").join(f)).unwrap_or_default())
            .concat())
    };
    let before = own()?;
    let program = Program::actor("show-view").view(&view).stdout(Output::Pipe).env("LAB", "yes");
    let mut shown = String::new();
    let mut process = namespace.spawn(&program)?;
    process.take_stdout().ok_or("no stdout")?.read_to_string(&mut shown)?;
    assert!(
        shown.starts_with("nameserver 10.96.0.10\nsearch shop.svc.cluster.local\n127.0.0.1 localhost\n"),
        "{shown}"
    );
    assert!(
        shown.contains("10.0.0.9 cart\n") && shown.contains("hosts: files dns\n") && shown.ends_with("LAB=yes\n"),
        "{shown}"
    );
    assert_eq!(own()?, before, "the view is the program's alone");
    Ok(())
}

fn who_is_confined_writes_nothing(world: &World) -> Outcome {
    const NET_ADMIN: u64 = 1 << 12;
    let namespace = world.namespace("here")?;
    let writes = |program: Program, to: &Path| -> Result<String, Box<dyn Error>> {
        let script = "echo 1 > \"$0\" || echo refused; grep CapEff /proc/self/status";
        let program = program.args(["-c", script]).arg(to).stdout(Output::Pipe);
        let mut process = namespace.spawn(&program)?;
        let mut said = String::new();
        process.take_stdout().ok_or("no stdout")?.read_to_string(&mut said)?;
        Ok(said)
    };
    let scratch = world.scratch_dir().join("written");
    let sysctl = Path::new("/proc/sys/net/ipv4/ip_forward");
    for to in [&scratch, sysctl] {
        let said = writes(Program::new("sh").confined(NET_ADMIN), to)?;
        assert_eq!(said, format!("refused\nCapEff:\t{NET_ADMIN:016x}\n"), "{}", to.display());
        // It is not the path that refuses.
        let said = writes(Program::new("sh"), to)?;
        assert!(said.starts_with("CapEff:"), "{}: {said}", to.display());
    }
    Ok(())
}

fn programs_end_as_told(world: &World) -> Outcome {
    let namespace = world.namespace("here")?;
    let shell = |script: &str| namespace.spawn(&Program::new("sh").arg("-c").arg(script));
    let code = |mut process: Process| process.wait(SOON).map(|status| status.map(exit_code));
    assert_eq!(code(shell("exit 7")?)?, Some(7));
    assert_eq!(code(shell("kill -KILL $$")?)?, Some(137));
    let mut slow = shell("sleep 60")?;
    assert_eq!(slow.wait(Duration::from_millis(50))?, None);
    assert!(slow.is_running()?);
    assert_eq!(exit_code(slow.stop(SOON)?), 143);
    assert!(!slow.is_running()?);
    slow.signal(Signal::HUP)?;
    // What a program left running in its process group goes with it.
    let mut parent = namespace.spawn(&Program::new("sh").args(["-c", "sleep 60 & echo $!; wait"]).stdout(Output::Pipe))?;
    let child: u32 = lines(&mut parent)?.next().ok_or("no line")??.parse()?;
    parent.kill()?;
    assert!(is_gone(child), "{child} lives on");
    // Also what one has left that has ended itself.
    let mut parent = namespace.spawn(
        &Program::new("sh")
            .args(["-c", "sleep 60 >&- & echo $!; exit 3"])
            .stdout(Output::Pipe),
    )?;
    let child: u32 = lines(&mut parent)?.next().ok_or("no line")??.parse()?;
    assert_eq!(parent.wait(SOON)?.map(exit_code), Some(3));
    assert!(!is_dead(child), "waited for is not killed");
    assert_eq!(exit_code(parent.kill()?), 3);
    assert!(is_gone(child), "{child} lives on");
    assert!(!parent.is_running()? && exit_code(parent.kill()?) == 3);
    // Dropped is killed and reaped.
    let pid = { shell("sleep 60")?.pid() };
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let file = world.scratch_dir().join("output");
    for _ in 0..2 {
        let output = Output::File(file.clone());
        namespace
            .spawn(
                &Program::new("sh")
                    .args(["-c", "echo out; echo err >&2"])
                    .stdout(output.clone())
                    .stderr(output),
            )?
            .wait(SOON)?;
    }
    assert_eq!(fs::read_to_string(file)?, "out\nerr\nout\nerr\n");
    let error = namespace
        .spawn(&Program::new("/no/such/program"))
        .err()
        .ok_or("it started")?
        .to_string();
    assert!(error.contains("/no/such/program") && error.contains("\"here\""), "{error}");
    Ok(())
}

fn a_program_with_an_environment_of_its_own_has_nothing_of_the_callers(world: &World) -> Outcome {
    let namespace = world.namespace("here")?;
    let said = |program: Program| {
        let mut process = namespace.spawn(&program.args(["-c", "env"]).env("OWN", "1").stdout(Output::Pipe))?;
        Ok::<_, Box<dyn Error>>(lines(&mut process)?.collect::<Result<Vec<_>, _>>()?)
    };
    // What the harness tells the process of a test.
    let of_caller = |line: &String| line.starts_with("AMBIENT_TEST_REASON=");
    let usual = said(Program::new("sh"))?;
    assert!(usual.iter().any(of_caller), "{usual:?}");
    let own = said(Program::new("sh").own_environment())?;
    assert!(!own.iter().any(of_caller), "{own:?}");
    assert!(
        own.contains(&"OWN=1".to_owned()) && own.iter().any(|line| line.starts_with("PATH=")),
        "{own:?}"
    );
    Ok(())
}

fn programs_die_with_the_world(world: &World) -> Outcome {
    let namespace = world.namespace("outer")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut keeper = namespace.spawn(&Program::actor("keeper").arg("no").stdout(Output::Pipe).stderr(Output::Inherit))?;
    let pids: Vec<u32> = lines(&mut keeper)?
        .next()
        .ok_or("it did not start")??
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists()));
    keeper.signal(Signal::KILL)?;
    for pid in pids {
        assert!(is_gone(pid), "{pid} outlived its world");
    }
    assert_eq!(fs::read_to_string("/proc/self/mounts")?, mounts);
    Ok(())
}

fn sysctls_are_the_namespaces_own(world: &World) -> Outcome {
    let (a, b) = (world.namespace("a")?, world.namespace("b")?);
    a.sysctl("net/ipv4/ip_forward", "1")?;
    b.sysctl("net/ipv4/ip_forward", "0")?;
    let value = |namespace: &Namespace| namespace.run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward"));
    assert_eq!((value(&a)??.trim(), value(&b)??.trim()), ("1", "0"));
    for name in ["kernel/hostname", "net/../kernel/hostname", "net//ipv4/ip_forward", "net/no/such"] {
        assert!(a.sysctl(name, "1").is_err(), "{name}");
    }
    Ok(())
}

fn a_kept_lab_is_entered_and_ended(world: &World) -> Outcome {
    let lab = KeptLab::start(world)?;
    let run = |script: &str| lab.run(&["pod", "sh", "-c", script]);
    assert_eq!(run("exit 7")?, (7, String::new()));
    assert_eq!(run("kill -TERM $$")?.0, 143);
    assert_eq!(
        run("cat /etc/resolv.conf; echo $http_proxy")?,
        (0, "nameserver 10.96.0.10\n\n".into())
    );
    assert_eq!(
        run("ls /proc/self/ns >/dev/null && readlink /proc/self/ns/net")?.1.trim(),
        format!("net:[{}]", lab.inode)
    );
    assert_eq!(lab.run(&["pod", "/no/such/program"])?.0, 127);
    assert_eq!(lab.run(&["pod", "/etc/passwd"])?.0, 126);
    assert_eq!(lab.run(&["nowhere", "true"])?.0, 125);
    // A second one is refused while the first is up.
    let mut second = lab
        .outer
        .spawn(&lab.program("keeper").arg("yes").stdout(Output::Null).stderr(Output::Pipe))?;
    let mut says = String::new();
    second.take_stderr().ok_or("no stderr")?.read_to_string(&mut says)?;
    assert!(says.contains("a kept lab of yours is running"), "{says}");
    // What was left running does not keep `exec` (nor its pipe), and ends with the lab.
    let (code, left) = run("sleep 3600 >/dev/null & echo left")?;
    assert_eq!((code, left.as_str()), (0, "left\n"));
    // One whose caller is killed ends with it.
    let before = in_namespace(lab.inode)?.len();
    let mut killed = lab.outer.spawn(&lab.program("exec").args(["pod", "sleep", "3600"]))?;
    wait_until(|| Ok(in_namespace(lab.inode)?.len() >= before + 3))?;
    killed.kill()?;
    wait_until(|| Ok(in_namespace(lab.inode)?.len() == before))?;
    // One that is at work when the lab ends.
    let mut busy = lab
        .outer
        .spawn(&lab.program("exec").args(["pod", "sleep", "3600"]).stderr(Output::Pipe))?;
    let sleeping = || in_namespace(lab.inode).map(|found| found.len());
    wait_until(|| Ok(sleeping()? >= before + 3))?;
    let mut down = lab.outer.spawn(&lab.program("down").stdout(Output::Pipe))?;
    assert_eq!(down.wait(SOON)?.map(exit_code), Some(0));
    let mut said = String::new();
    down.take_stdout().ok_or("no stdout")?.read_to_string(&mut said)?;
    assert_eq!(said, format!("{:?}\n", Down::Ended));
    assert_eq!(busy.wait(SOON)?.map(exit_code), Some(125));
    assert_eq!(in_namespace(lab.inode)?, Vec::<u32>::new());
    assert!(!lab.directory.exists());
    assert_eq!(lab.run(&["pod", "true"])?.0, 125);
    Ok(())
}

fn a_crashed_lab_is_cleaned_up(world: &World) -> Outcome {
    let mut lab = KeptLab::start(world)?;
    lab.run(&["pod", "sh", "-c", "sleep 3600 >/dev/null &"])?;
    lab.keeper.signal(Signal::KILL)?;
    lab.keeper.wait(SOON)?;
    wait_until(|| Ok(in_namespace(lab.inode)?.is_empty()))?;
    assert!(lab.directory.exists());
    // Its number may mean another process by now: that one lives on.
    let mut innocent = lab.outer.spawn(&Program::actor("wait"))?;
    let record = lab.directory.join("record.json");
    fs::write(
        &record,
        fs::read_to_string(&record)?.replacen(&lab.keeper.pid().to_string(), &innocent.pid().to_string(), 1),
    )?;
    assert_eq!(lab.run(&["pod", "true"])?.0, 125);
    let mut down = lab.outer.spawn(&lab.program("down").stdout(Output::Pipe))?;
    let mut said = String::new();
    down.take_stdout().ok_or("no stdout")?.read_to_string(&mut said)?;
    assert_eq!(said, format!("{:?}\n", Down::Cleaned));
    assert!(innocent.is_running()? && !lab.directory.exists());
    // A new one takes over what a crash left, but not what is unsafe.
    fs::create_dir(&lab.directory)?;
    fs::set_permissions(&lab.directory, fs::Permissions::from_mode(0o777))?;
    let refused = lab.outer.spawn(&lab.program("keeper").arg("yes"))?.wait(SOON)?;
    assert_eq!(refused.map(exit_code), Some(2));
    fs::remove_dir(&lab.directory)?;
    std::os::unix::fs::symlink("/tmp", &lab.directory)?;
    assert_eq!(
        lab.outer.spawn(&lab.program("keeper").arg("yes"))?.wait(SOON)?.map(exit_code),
        Some(2)
    );
    Ok(())
}

fn a_second_world_is_refused_to_threads(_: &World) -> Outcome {
    let error = world::enter().err().ok_or("it was not refused")?;
    assert!(matches!(error, NoWorld::Failed(_)), "that is no fault of the machine: {error}");
    let text = error.to_string();
    assert!(text.contains("thread") && !text.contains('\n'), "{text}");
    Ok(())
}

/// Without capabilities nobody has a world, whatever the machine.
fn a_test_that_gets_no_world_is_skipped_unless_worlds_are_required(world: &World) -> Outcome {
    let outer = world.namespace("outer")?;
    let run = |worlds: &str| {
        let printed = world.scratch_dir().join(worlds);
        let apart = Program::this().args(["--ambient-run", "programs_end_as_told"]).confined(0);
        let apart = apart.env("AMBIENT_WORLDS", worlds).stderr(Output::File(printed.clone()));
        let ended = outer.spawn(&apart)?.wait(SOON)?;
        Ok::<_, Box<dyn Error>>((ended.map(exit_code), fs::read_to_string(&printed)?))
    };
    assert_eq!(run("refusable")?, (Some(77), String::new()));
    let (code, said) = run("required")?;
    assert!(code == Some(101) && said.contains("required here"), "{code:?}: {said}");
    Ok(())
}

// ---- what they share

fn two_ends(world: &World) -> Result<(Namespace, Namespace), Box<dyn Error>> {
    let (client, server) = (world.namespace("client")?, world.namespace("server")?);
    let end = |namespace, v4: &str, v6: &str| -> Result<End<'_>, Box<dyn Error>> {
        Ok(End::new(namespace, "eth0")
            .address(v4.parse::<IpNet>()?)
            .address(v6.parse::<IpNet>()?))
    };
    link(
        &end(&client, "10.0.0.1/24", "fd00::1/64")?,
        &end(&server, "10.0.0.2/24", "fd00::2/64")?,
    )?;
    Ok((client, server))
}

fn connect(client: &Namespace, server: &Namespace, address: SocketAddr) -> Result<(TcpStream, TcpStream), Box<dyn Error>> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let listener = server.run(|| TcpListener::bind((any, address.port())))??;
    let near = client.run(|| TcpStream::connect_timeout(&address, SOON))??;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
    }
    Ok((near, far))
}

struct KeptLab {
    outer: Namespace,
    keeper: Process,
    runtime: PathBuf,
    directory: PathBuf,
    inode: u64,
    /// As long as they are held, what they have left running is not killed by whoever started them.
    ended: RefCell<Vec<Process>>,
}

impl KeptLab {
    fn start(world: &World) -> Result<Self, Box<dyn Error>> {
        let outer = world.namespace("outer")?;
        let runtime = world.scratch_dir().join("runtime");
        fs::create_dir(&runtime)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700))?;
        let program = Program::actor("keeper")
            .arg("yes")
            .env("XDG_RUNTIME_DIR", &runtime)
            .stdout(Output::Pipe)
            .stderr(Output::Inherit);
        let mut keeper = outer.spawn(&program)?;
        let mut lines = lines(&mut keeper)?;
        lines.next().ok_or("the lab did not start")??;
        let inode = lines.next().ok_or("the lab did not start")??.parse()?;
        let directory = runtime.join("ambient-lab");
        Ok(Self {
            outer,
            keeper,
            runtime,
            directory,
            inode,
            ended: RefCell::default(),
        })
    }

    fn program(&self, actor: &str) -> Program {
        Program::actor(actor)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .env("http_proxy", "http://proxy.example:3128")
    }

    fn run(&self, args: &[&str]) -> Result<(u8, String), Box<dyn Error>> {
        let mut process = self.outer.spawn(&self.program("exec").args(args).stdout(Output::Pipe))?;
        let mut output = String::new();
        process.take_stdout().ok_or("no stdout")?.read_to_string(&mut output)?;
        let status = process.wait(SOON)?.ok_or("it does not end")?;
        self.ended.borrow_mut().push(process);
        Ok((exit_code(status), output))
    }
}

fn lines(process: &mut Process) -> Result<io::Lines<impl BufRead + use<>>, Box<dyn Error>> {
    Ok(BufReader::new(process.take_stdout().ok_or("no stdout")?).lines())
}

/// The processes in a network namespace.
fn in_namespace(inode: u64) -> io::Result<Vec<u32>> {
    let link = PathBuf::from(format!("net:[{inode}]"));
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|l| l == link))
        .collect())
}

/// Whether a process goes away soon; as a zombie it has.
fn is_gone(pid: u32) -> bool {
    wait_until(|| Ok(is_dead(pid))).is_ok()
}

fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn wait_until(mut done: impl FnMut() -> io::Result<bool>) -> Result<(), Box<dyn Error>> {
    for _ in 0..500 {
        if done()? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("it did not come to pass within 5 s".into())
}

const SOON: Duration = Duration::from_secs(10);

// ---- actors

/// A lab: prints the numbers of its programs, and the inode of its pod's namespace; kept if its argument is `yes`.
fn keeper(args: Vec<OsString>) -> ExitCode {
    let run = || -> Result<(), Box<dyn Error>> {
        let world = world::enter()?;
        let pod = world.namespace("pod")?;
        let view = world.view(
            "pod",
            &Resolution {
                resolv_conf: "nameserver 10.96.0.10\n".into(),
                ..Resolution::default()
            },
        )?;
        let mut kept = if args[0] == "yes" { Some(Kept::claim(&world)?) } else { None };
        if let Some(kept) = &mut kept {
            kept.publish([("pod", &pod, &view)])?;
        }
        // Started from a thread that ends at once: it is the world's thread that counts.
        let spawn = || {
            (0..3)
                .map(|_| pod.spawn(&Program::actor("wait").view(&view)))
                .collect::<Result<Vec<_>, _>>()
        };
        let programs = thread::scope(|scope| scope.spawn(spawn).join()).map_err(|_| "a panic")??;
        println!("{}", programs.iter().map(|p| p.pid().to_string()).collect::<Vec<_>>().join(" "));
        println!("{}", pod.id().inode);
        loop {
            thread::park();
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

fn exec(args: Vec<OsString>) -> ExitCode {
    let code = kept::exec(&args[0].to_string_lossy(), &args[1], &args[2..]).unwrap_or_else(|e: KeptError| {
        eprintln!("{e}");
        e.exit_code()
    });
    ExitCode::from(code)
}

fn down(_: Vec<OsString>) -> ExitCode {
    match kept::down(Duration::from_secs(5)) {
        Ok(down) => {
            println!("{down:?}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn wait(_: Vec<OsString>) -> ExitCode {
    loop {
        thread::park();
    }
}

fn watch_names(args: Vec<OsString>) -> ExitCode {
    for _ in io::stdin().lines() {
        let entries = fs::read_dir(&args[0])
            .map(|entries| entries.flatten().collect::<Vec<_>>())
            .unwrap_or_default();
        let mut names: Vec<String> = entries
            .iter()
            .map(|e| {
                let inode = fs::metadata(e.path()).map_or(0, |m| std::os::unix::fs::MetadataExt::ino(&m));
                format!("{}={inode} ", e.file_name().display())
            })
            .collect();
        names.sort();
        println!("{}", names.concat());
    }
    ExitCode::SUCCESS
}

fn show_view(_: Vec<OsString>) -> ExitCode {
    for file in ["resolv.conf", "hosts", "nsswitch.conf"] {
        print!("{}", fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default());
    }
    for (name, value) in env::vars() {
        if name.to_lowercase().ends_with("_proxy") || name == "LAB" {
            println!("{name}={value}");
        }
    }
    ExitCode::SUCCESS
}
