//! The link that takes a while.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{
    DelayedLink, End, Namespace, World,
    harness::{self, Outcome},
    link_delayed, skipped,
};
use ipnet::IpNet;

fn main() -> ExitCode {
    if let Err(e) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        skipped(format_args!("delayed_link: /dev/net/tun: {e}"));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_packet_takes_as_long_as_was_asked", a_packet_takes_as_long_as_was_asked),
        (
            "bytes_arrive_whole_and_no_packet_is_dropped",
            bytes_arrive_whole_and_no_packet_is_dropped,
        ),
        ("nothing_is_left_behind", nothing_is_left_behind),
    ])
}

// ---- tests

#[expect(clippy::disallowed_methods, reason = "it is about time")]
fn a_packet_takes_as_long_as_was_asked(world: &World) -> Outcome {
    let (client, server, _link) = two_ends(world)?;
    for [near, far] in [["10.0.0.1:0", "10.0.0.2:7"], ["[fd00::1]:0", "[fd00::2]:7"]] {
        let far = server.run(|| UdpSocket::bind(far))??;
        let near = client.run(|| UdpSocket::bind(near))??;
        near.connect(far.local_addr()?)?;
        near.set_read_timeout(Some(SOON))?;
        far.set_read_timeout(Some(SOON))?;
        let mut fastest = SOON;
        for _ in 0..20 {
            let sent = Instant::now();
            near.send(b"ping")?;
            let (_, from) = far.recv_from(&mut [0; 4])?;
            assert!(sent.elapsed() >= DELAY, "one way alone takes the delay");
            far.send_to(b"pong", from)?;
            near.recv(&mut [0; 4])?;
            let took = sent.elapsed();
            assert!(took >= 2 * DELAY, "{took:?}");
            fastest = fastest.min(took);
        }
        // Others may have the machine, but not each of twenty times.
        assert!(fastest < 2 * DELAY + Duration::from_millis(3), "{fastest:?}");
    }
    Ok(())
}

fn bytes_arrive_whole_and_no_packet_is_dropped(world: &World) -> Outcome {
    let (client, server, _link) = two_ends(world)?;
    let listener = server.run(|| TcpListener::bind("10.0.0.2:80"))??;
    let near = client.run(|| TcpStream::connect("10.0.0.2:80"))??;
    let (far, _) = listener.accept()?;
    let all: Vec<u8> = (0..MUCH).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    for (mut sender, mut receiver) in [(&near, &far), (&far, &near)] {
        receiver.set_read_timeout(Some(SOON))?;
        let mut received = vec![0; all.len()];
        thread::scope(|scope| {
            let sent = scope.spawn(|| sender.write_all(&all));
            receiver.read_exact(&mut received)?;
            sent.join().expect("it does not panic")
        })?;
        assert!(received == all, "other bytes arrived");
    }
    for namespace in [&client, &server] {
        let devices = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let device = devices.lines().find_map(|line| line.trim().strip_prefix(NAME)).ok_or("no device")?;
        // Bytes, packets, errors, drops, and four more; then the same of what was sent.
        let counters: Vec<&str> = device.split_ascii_whitespace().skip(1).collect();
        assert_eq!([counters[2], counters[3], counters[10], counters[11]], ["0"; 4], "{device}");
    }
    Ok(())
}

fn nothing_is_left_behind(world: &World) -> Outcome {
    let threads = || fs::read_dir("/proc/self/task").map(Iterator::count);
    let before = threads()?;
    let (client, server, link) = two_ends(world)?;
    let has =
        |namespace: &Namespace| namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev").map(|devices| devices.contains(NAME)));
    assert!(has(&client)?? && has(&server)??);
    assert_eq!(threads()?, before + 2);
    let far = End::new(&server, "slow1");
    assert!(link_delayed(&End::new(&client, NAME), &far, DELAY).is_err(), "the name is taken");
    drop(link);
    assert!(!has(&client)?? && !has(&server)??);
    assert_eq!(threads()?, before);
    Ok(())
}

// ---- what they share

fn two_ends(world: &World) -> Result<(Namespace, Namespace, DelayedLink), Box<dyn std::error::Error>> {
    let (client, server) = (world.namespace("client")?, world.namespace("server")?);
    let end = |namespace, number| -> Result<End<'_>, ipnet::AddrParseError> {
        let addresses = [format!("10.0.0.{number}/24"), format!("fd00::{number}/64")];
        let addresses = addresses
            .iter()
            .map(|address| address.parse::<IpNet>())
            .collect::<Result<Vec<_>, _>>()?;
        Ok(addresses.into_iter().fold(End::new(namespace, NAME), End::address))
    };
    let link = link_delayed(&end(&client, 1)?, &end(&server, 2)?, DELAY)?;
    Ok((client, server, link))
}

const NAME: &str = "slow0";
const DELAY: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(20);
const MUCH: u32 = 32 << 20;
