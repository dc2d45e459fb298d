//! Clients of others against our server: real programs on loopback, found as `peers` says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod peers;

use std::net::SocketAddr;

use ambient_hbone::AcceptError;
use ambient_tls::{ChainError, PeerError};
use peers::{
    RUN, Running, Script, apps,
    certificates::{BAD, CLIENT, Certificates, NAME, SERVER},
    envoy::{Envoy, Words},
    nghttpx,
    ours::Serving,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Runs a script's client to its end, and says what it said.
async fn client(script: Script, certificates: &Certificates, pair: &str, ours: &Serving, what: [&str; 3]) -> Option<Vec<String>> {
    let port = ours.address.port().to_string();
    let command = script.command(&[&["client", certificates.text(), pair, &port], &what[..]].concat())?;
    Some(Running::start(command).finish().await)
}

#[tokio::test]
async fn node_is_served() {
    is_served(Script::Node, "service.name=node").await;
}

#[tokio::test]
async fn h2_is_served() {
    is_served(Script::H2, "service.name=h2").await;
}

async fn is_served(script: Script, baggage: &str) {
    let certificates = Certificates::new();
    let ours = Serving::start(&certificates).await;
    let echo = apps::echo().await.to_string();
    for (size, count) in [("13", 1), ("4000000", 1), ("20000", 50)] {
        let Some(said) = client(script, &certificates, "client", &ours, [&echo, size, &count.to_string()]).await else {
            return;
        };
        assert_eq!(said, vec!["ok"; count], "{size} bytes in {count} streams");
    }
    // Each ends its side first, and hears all that comes back.
    assert_eq!(ours.ends(), (52, 0));
    assert_eq!(ours.peers(), [CLIENT; 3], "one tunnel for all streams of a run");
    assert_eq!(ours.baggage(), [baggage; 52]);

    for (target, status) in [
        ("refuse.test:401", "401"),
        ("refuse.test:503", "503"),
        (&closed_port().await, "503"),
    ] {
        let said = client(script, &certificates, "client", &ours, [target, "13", "1"]).await.unwrap();
        assert!(said.contains(&format!("status {status}")), "{target}: {said:?}");
    }
    if matches!(script, Script::H2) {
        // It takes every GOAWAY for the end of the connection.
        return;
    }
    let going = echo.replace("127.0.0.1", "goaway.test");
    let said = client(script, &certificates, "client", &ours, [&going, "100000", "1"])
        .await
        .unwrap();
    assert!(said.contains(&"goaway 0".to_owned()) && said.contains(&"ok".to_owned()), "{said:?}");
}

#[tokio::test]
async fn bad_clients_are_refused() {
    let certificates = Certificates::new();
    let ours = Serving::start(&certificates).await;
    for script in [Script::Node, Script::H2] {
        for pair in [&BAD[..], &["none"]].concat() {
            let Some(said) = client(script, &certificates, pair, &ours, ["refuse.test:401", "13", "1"]).await else {
                break;
            };
            assert!(
                !said.iter().any(|line| line == "ok" || line == "status 401"),
                "{script:?}, {pair}: {said:?}"
            );
            expect_refusal(pair, &ours.refusals(1).await);
        }
    }
    let each: Vec<_> = BAD.iter().map(|pair| tunnel(pair, pair, &ours, "refuse.test:401")).collect();
    let Some(envoy) = Envoy::connect(&certificates, &each).await else {
        return;
    };
    for pair in BAD {
        let mut socket = TcpStream::connect(envoy.listener(pair).await).await.unwrap();
        // To an application behind it every refusal looks alike.
        let ended = timeout(RUN, socket.read(&mut [0; 1])).await.unwrap();
        assert!(!matches!(ended, Ok(1..)), "{pair}: {ended:?}");
        expect_refusal(pair, &ours.refusals(1).await);
    }
}

fn expect_refusal(pair: &str, refusals: &[AcceptError]) {
    let as_it_is = |refusal: &AcceptError| match (pair, refusal) {
        ("none", AcceptError::Handshake { source }) => source.to_string().contains("no certificate"),
        ("other-domain", AcceptError::Peer(PeerError::UntrustedDomain { .. })) => true,
        ("foreign-ca", AcceptError::Peer(PeerError::Chain { source, .. })) => *source == ChainError::UnknownIssuer,
        ("expired", AcceptError::Peer(PeerError::Chain { source, .. })) => matches!(source, ChainError::Expired { .. }),
        ("two-uris", AcceptError::Peer(PeerError::UriNames { count })) => *count == 2,
        _ => false,
    };
    assert!(!refusals.is_empty() && refusals.iter().all(as_it_is), "{pair}: {refusals:?}");
}

/// A listener of Envoy's, what certificate it shows, and what it asks for.
fn tunnel<'a>(name: &str, pair: &str, ours: &Serving, authority: &str) -> Words<'a> {
    let port = ours.address.port().to_string();
    let words = [name, pair, &port, authority, SERVER];
    let keys = ["name", "cert", "port", "authority", "expected"];
    keys.into_iter().zip(words.map(str::to_owned)).collect()
}

#[tokio::test]
async fn envoy_is_served() {
    let certificates = Certificates::new();
    let ours = Serving::start(&certificates).await;
    let (echo, count, breaks) = (apps::echo().await, apps::count().await, apps::breaks_off().await);
    let each = [
        tunnel("echo", "client", &ours, &echo.to_string()),
        tunnel("count", "client", &ours, &count.to_string()),
        tunnel("breaks", "client", &ours, &breaks.to_string()),
        tunnel("refused", "client", &ours, "refuse.test:401"),
        tunnel("going", "client", &ours, &format!("goaway.test:{}", echo.port())),
    ];
    let Some(envoy) = Envoy::connect(&certificates, &each).await else {
        return;
    };
    let address = envoy.listener("echo").await;
    exchange(address, 13).await;
    exchange(address, 4_000_000).await;
    let many: tokio::task::JoinSet<()> = (0..50).map(|n| exchange(address, 1_000 * (n + 1))).collect();
    timeout(RUN, many.join_all()).await.unwrap();
    assert_eq!(ours.ends(), (52, 0));
    assert_eq!(ours.peers(), [CLIENT], "one tunnel for all");
    assert_eq!(ours.baggage(), ["service.name=envoy"; 52]);

    let mut socket = TcpStream::connect(envoy.listener("count").await).await.unwrap();
    socket.write_all(&[7; 1234]).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut said = String::new();
    timeout(RUN, socket.read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, "1234", "a half-close goes through");

    let mut socket = TcpStream::connect(envoy.listener("breaks").await).await.unwrap();
    timeout(RUN, socket.read_exact(&mut [0; 10])).await.unwrap().unwrap();
    socket.write_all(b"x").await.unwrap();
    // It tells an application of a reset by a plain end; ours is to say it on the wire.
    let ended = timeout(RUN, socket.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");

    let mut socket = TcpStream::connect(envoy.listener("refused").await).await.unwrap();
    let ended = timeout(RUN, socket.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");

    // Each is told to go away, and goes on to its end.
    for _ in 0..5 {
        exchange(envoy.listener("going").await, 100_000).await;
    }
}

/// Sends and receives at the same time, each to its end.
async fn exchange(address: SocketAddr, size: usize) {
    let data: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let sent = async {
        to.write_all(&data).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let both = async { tokio::join!(sent, from.read_to_end(&mut back)) };
    let (_, read) = timeout(RUN, both).await.expect("an exchange ends");
    read.unwrap();
    assert!(back == data, "{} bytes of {size} came back", back.len());
}

/// It makes HBONE of HTTP/1.1's CONNECT; a half-close becomes a reset. It asks for a name and compares it, so that our
/// certificate bears one beside the SPIFFE ID.
#[tokio::test]
async fn nghttpx_is_served() {
    let certificates = Certificates::new();
    let ours = Serving::start_as(&certificates, "server-and-name").await;
    let Some(mut command) = nghttpx() else { return };
    let port = peers::free_port();
    command.arg(format!("--frontend=127.0.0.1,{port};no-tls"));
    command.arg(format!("--backend=127.0.0.1,{};;proto=h2;tls;sni={NAME}", ours.address.port()));
    command.args([
        "--http2-proxy",
        "--conf=/dev/null",
        "--workers=1",
        "--backend-connections-per-host=100",
    ]);
    command.arg(format!("--cacert={}", certificates.file("ca.crt").display()));
    command.arg(format!("--client-cert-file={}", certificates.file("client.crt").display()));
    command.arg(format!("--client-private-key-file={}", certificates.file("client.key").display()));
    let _running = peers::listening(command, port).await;
    let echo = apps::echo().await;
    let all: tokio::task::JoinSet<()> = (0..50)
        .map(|_| async move {
            let (status, mut socket) = connect_by_http1(port, &echo.to_string()).await;
            assert_eq!(status, "200");
            socket.write_all(b"hello, hbone\n").await.unwrap();
            let mut back = [0; 13];
            socket.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"hello, hbone\n");
        })
        .collect();
    timeout(RUN, all.join_all()).await.unwrap();
    for (target, status) in [
        ("refuse.test:401", "401"),
        ("refuse.test:403", "403"),
        (&closed_port().await, "503"),
    ] {
        assert_eq!(connect_by_http1(port, target).await.0, status, "{target}");
    }
    assert!(ours.peers().iter().all(|peer| peer == CLIENT));
}

async fn connect_by_http1(port: u16, target: &str) -> (String, TcpStream) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let head = timeout(RUN, apps::head(&mut socket)).await.unwrap().unwrap();
    (head.split_whitespace().nth(1).unwrap().to_owned(), socket)
}

#[tokio::test]
async fn curl_is_served() {
    let certificates = Certificates::new();
    let ours = Serving::start(&certificates).await;
    let (port, url) = (ours.address.port().to_string(), format!("http://{}/", apps::http().await));
    for (pair, url, size, expected) in [
        ("client", url.as_str(), "13", "ok"),
        ("client", url.as_str(), "3000000", "ok"),
        ("client", "http://refuse.test:401/", "13", "failed"),
        ("foreign-ca", url.as_str(), "13", "failed"),
    ] {
        let Some(command) = Script::Curl.command(&[certificates.text(), pair, &port, url, size]) else {
            return;
        };
        let said = Running::start(command).finish().await.join("\n");
        assert!(said.starts_with(expected), "{pair}, {url}: {said}");
    }
    expect_refusal("foreign-ca", &ours.refusals(1).await);
    assert_eq!(ours.peers(), [CLIENT; 3]);
}

/// Where nobody listens.
async fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}
