//! Very many connections of pods to others at once: each is carried by both nodes, goes on while all stand, and leaves no
//! descriptor behind.

use std::{
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{ChildStdin, ChildStdout, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_testkit::{Output, Process, Program, World, harness::Outcome};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    ground::{Failure, Ground, NODES, until},
    peer::{self, FIRST_PORT},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 7002;
/// How many, unless `AMBIENT_CROWD` says otherwise.
const MANY: usize = 1_000;
const PAIRS: usize = 4;
/// In a tunnel, at most.
const STREAMS: usize = 10;
/// That are begun, or spoken on, at a time.
const AT_ONCE: usize = 64;

pub(crate) fn a_crowd_of_connections_is_carried_and_leaves_nothing(world: &World) -> Outcome {
    crowd(world, true)
}

/// Who calls is not in the mesh: each connection is one on the wire, and one of the proxy's to the application from the caller's
/// address. No two of them may be taken for one another.
pub(crate) fn a_crowd_from_outside_is_carried_and_leaves_nothing(world: &World) -> Outcome {
    crowd(world, false)
}

fn crowd(world: &World, callers_meant: bool) -> Outcome {
    // Tunnels are as many as that takes, few as the streams of each may be.
    let mut ground = Ground::on_control(world, &[], &["--pool-streams", &STREAMS.to_string()])?;
    let carried = carry(&mut ground, callers_meant);
    if carried.is_err() {
        println!("{}", ground.logs());
    }
    carried
}

fn carry(ground: &mut Ground, callers_meant: bool) -> Outcome {
    let many = std::env::var("AMBIENT_CROWD").ok().map_or(Ok(MANY), |many| many.parse())?;
    // A pod may have a quarter of what its node may.
    let each = many / PAIRS;
    let (mut servers, mut ways) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (front, back) = (format!("front-{pair}"), format!("back-{pair}"));
        ground.idle("node-1", &front, callers_meant)?;
        ground.idle("node-2", &back, true)?;
        let at = SocketAddr::from((ground.address(&back)?, FIRST_PORT));
        let ask = |name: &str| -> Result<Result<String, String>, Failure> {
            let name = name.to_owned();
            let heard = ground.pod_namespace(&name)?.run(move || peer::ask(at, &name))?;
            Ok(heard.map_err(|error| error.to_string()))
        };
        until(PATIENCE, || ask(&front))?;
        let to = SocketAddr::new(at.ip(), PORT).to_string();
        servers.push(Speaker::begin(ground, &back, &["serve", &to])?);
        ways.push((front, to));
    }
    for server in &mut servers {
        server.hears("serves")?;
    }
    let before = stand(ground)?;
    let begun = Instant::now();
    let clients = ways
        .iter()
        .map(|(pod, to)| Speaker::begin(ground, pod, &["call", to, &each.to_string()]));
    let mut clients: Vec<Speaker> = clients.collect::<Result<_, _>>()?;
    all_have(&mut clients, each)?;
    let opened = begun.elapsed();
    let open = stand(ground)?;
    let nodes = NODES.iter().zip(before.iter().zip(&open)).skip(usize::from(!callers_meant));
    for (node, (before, open)) in nodes {
        // Besides the tunnels.
        assert!(
            open.descriptors >= before.descriptors + each * PAIRS,
            "{node}: {before:?}, {open:?}"
        );
        // Some KiB each in a release, and a bound in any build.
        let kib = open.kib.saturating_sub(before.kib) / (each * PAIRS) as u64;
        eprintln!("{node}: {kib} KiB for each of {} connections", each * PAIRS);
        assert!(kib <= 64, "{node}: {before:?}, {open:?}");
    }
    let begun = Instant::now();
    for client in &mut clients {
        client.says("again")?;
    }
    all_have(&mut clients, each)?;
    eprintln!("opened in {opened:?}, spoken on again in {:?}", begun.elapsed());
    for mut client in clients {
        client.process.kill()?;
    }
    // Tunnels stay for the next of them.
    let tunnels = each * PAIRS / STREAMS * 3 / 2 + 16 * PAIRS;
    until(PATIENCE, || {
        let after = stand(ground)?;
        let mut both = before.iter().zip(&after);
        Ok(match both.any(|(before, after)| after.descriptors > before.descriptors + tunnels) {
            true => Err(format!("{before:?}, and afterwards {after:?}")),
            false => Ok(()),
        })
    })
}

fn all_have(clients: &mut [Speaker], each: usize) -> Outcome {
    for client in clients {
        client.hears(&format!("{each} of {each}"))?;
    }
    Ok(())
}

/// What a node's process has.
#[derive(Debug)]
struct Stand {
    descriptors: usize,
    /// Of memory, mapped files included.
    kib: u64,
}

fn stand(ground: &mut Ground) -> Result<Vec<Stand>, Failure> {
    let mut all = Vec::new();
    for node in NODES {
        let pid = ground.pid(node)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        all.push(Stand {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            kib: kib.ok_or("no memory is told")?.trim().parse()?,
        });
    }
    Ok(all)
}

/// A process in a pod's namespace that says line by line how it goes.
struct Speaker {
    process: Process,
    said: BufReader<ChildStdout>,
    told: ChildStdin,
}

impl Speaker {
    fn begin(ground: &Ground, pod: &str, args: &[&str]) -> Result<Self, Failure> {
        let program = Program::actor("crowd").args(args).stdin_piped().stdout(Output::Pipe);
        let mut process = ground.pod_namespace(pod)?.spawn(&program.stderr(Output::Inherit))?;
        let said = BufReader::new(process.take_stdout().ok_or("no output")?);
        let told = process.take_stdin().ok_or("no input")?;
        Ok(Self { process, said, told })
    }

    /// What it says next, which begins so; gives the rest. It gives up by itself.
    fn hears(&mut self, beginning: &str) -> Result<String, Failure> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let rest = line
            .trim_end()
            .strip_prefix(beginning)
            .ok_or_else(|| format!("{line:?}, and not {beginning:?}"))?;
        Ok(rest.trim().to_owned())
    }

    fn says(&mut self, line: &str) -> Outcome {
        Ok(writeln!(self.told, "{line}")?)
    }
}

/// `serve ADDRESS` gives back what it hears; `call ADDRESS MANY` holds so many connections, and speaks on each whenever it is told a
/// line.
pub(crate) fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().filter_map(|arg| arg.into_string().ok()).collect();
    let mut most = getrlimit(Resource::Nofile);
    most.current = most.maximum;
    setrlimit(Resource::Nofile, most).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let acted = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", at] => runtime.block_on(serve(at.parse().unwrap())),
        ["call", to, many] => runtime.block_on(hold(to.parse().unwrap(), many.parse().unwrap())),
        _ => return ExitCode::FAILURE,
    };
    acted.unwrap();
    ExitCode::SUCCESS
}

async fn serve(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at).await?;
    println!("serves");
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

async fn hold(to: SocketAddr, many: usize) -> io::Result<()> {
    let mut open: Vec<Option<TcpStream>> = (0..many).map(|_| None).collect();
    loop {
        let begun = Instant::now();
        let (mut going, room) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
        for stream in open.drain(..) {
            let room = room.clone();
            going.spawn(async move {
                let _turn = room.acquire_owned().await;
                timeout(PATIENCE, speak(to, stream)).await.unwrap_or_else(|late| Err(late.into()))
            });
        }
        let (mut failed, mut why) = (0, String::new());
        while let Some(spoken) = going.join_next().await {
            match spoken.map_err(io::Error::other).flatten() {
                Ok(stream) => open.push(Some(stream)),
                Err(error) => (failed, why) = (failed + 1, error.to_string()),
            }
        }
        println!("{} of {many} in {:?}; {failed} failed {why}", open.len(), begun.elapsed());
        // Until there is more to do, or nobody to tell it.
        if io::stdin().lock().read_line(&mut String::new())? == 0 {
            return Ok(());
        }
    }
}

async fn speak(to: SocketAddr, stream: Option<TcpStream>) -> io::Result<TcpStream> {
    let mut stream = match stream {
        Some(stream) => stream,
        None => TcpStream::connect(to).await?,
    };
    stream.write_all(b"ping").await?;
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await?;
    assert_eq!(&heard, b"ping");
    Ok(stream)
}
