//! Our client against servers of others: real programs on loopback, found as `peers` says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod peers;

use std::net::SocketAddr;

use ambient_hbone::{ConnectError, Stream, StreamError};
use ambient_tls::{ChainError, PeerError};
use peers::{
    RUN, Running, Script, apps,
    certificates::{BAD, Certificates},
    envoy::Envoy,
    nghttpx,
    ours::Client,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

/// Runs a script's server for each of these certificates.
async fn script(script: Script, certificates: &Certificates, names: &[&str]) -> Option<(Running, Vec<SocketAddr>)> {
    let mut running = Running::start(script.command(&[&["server", certificates.text()], names].concat())?);
    let mut addresses = Vec::new();
    for name in names {
        let port: u16 = running.says(&format!("listening {name} ")).await.parse().unwrap();
        addresses.push(([127, 0, 0, 1], port).into());
    }
    Some((running, addresses))
}

#[tokio::test]
async fn node_carries_connections() {
    let certificates = Certificates::new();
    let Some((_running, servers)) = script(Script::Node, &certificates, &["server"]).await else {
        return;
    };
    let client = Client::new(&certificates, "client", servers[0]);
    carries(&client).await;
    half_closes(&client).await;
    refuses(&client, &[401, 403, 404, 503]).await;
    breaks_off(&client).await;
}

#[tokio::test]
async fn h2_carries_connections() {
    let certificates = Certificates::new();
    let Some((_running, servers)) = script(Script::H2, &certificates, &["server"]).await else {
        return;
    };
    let client = Client::new(&certificates, "client", servers[0]);
    carries(&client).await;
    half_closes(&client).await;
    refuses(&client, &[401, 403, 404, 503]).await;
    breaks_off(&client).await;
}

#[tokio::test]
async fn envoy_carries_connections() {
    let certificates = Certificates::new();
    let Some(envoy) = Envoy::serve(&certificates, &["server"]).await else {
        return;
    };
    let client = Client::new(&certificates, "client", envoy.listener("server").await);
    carries(&client).await;
    half_closes(&client).await;
    refuses(&client, &[401, 403, 503]).await;
    let unknown = client.connect("refuse.test:404").await.unwrap_err();
    assert_eq!(unknown.refused_status().unwrap().as_u16(), 404, "what has no route");
    breaks_off(&client).await;
}

/// It never passes on an end, so that an exchange ends with a reset; and it needs a proxy of its own behind it.
#[tokio::test]
async fn nghttpx_carries_bytes() {
    let certificates = Certificates::new();
    let Some(mut command) = nghttpx() else { return };
    let port = peers::free_port();
    let behind = apps::connect_proxy().await;
    command.arg(format!("--frontend=127.0.0.1,{port}"));
    command.arg(format!("--backend=127.0.0.1,{}", behind.port()));
    command.args([
        "--http2-proxy",
        "--conf=/dev/null",
        "--workers=1",
        "--backend-connections-per-host=100",
    ]);
    command.args(["--tls-min-proto-version=TLSv1.3", "--verify-client"]);
    command.arg(format!("--verify-client-cacert={}", certificates.file("ca.crt").display()));
    command.arg(certificates.file("server.key")).arg(certificates.file("server.crt"));
    let _running = peers::listening(command, port).await;
    let client = Client::new(&certificates, "client", ([127, 0, 0, 1], port).into());
    let echo = apps::echo().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(client.connect(echo).await.unwrap());
    }
    let exchanges = streams.into_iter().map(|mut stream| async move {
        stream.write_all(b"hello, hbone\n").await.unwrap();
        let mut back = [0; 13];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello, hbone\n");
    });
    together(exchanges).await;
    let refused = client.connect(closed_port().await).await.unwrap_err();
    assert_eq!(refused.refused_status().unwrap().as_u16(), 503, "{refused:?}");
}

#[tokio::test]
async fn bad_servers_are_refused() {
    let certificates = Certificates::new();
    for of in [Script::Node, Script::H2] {
        let Some((_running, servers)) = script(of, &certificates, &BAD).await else {
            continue;
        };
        for (name, server) in BAD.iter().zip(servers) {
            expect_refusal(
                name,
                &Client::new(&certificates, "client", server).connect("a:1").await.unwrap_err(),
            );
        }
    }
    let Some(envoy) = Envoy::serve(&certificates, &BAD).await else {
        return;
    };
    for name in BAD {
        let client = Client::new(&certificates, "client", envoy.listener(name).await);
        expect_refusal(name, &client.connect("a:1").await.unwrap_err());
    }
}

fn expect_refusal(name: &str, error: &ConnectError) {
    let ConnectError::WrongPeer { source, .. } = error else {
        panic!("{name}: {error:?}")
    };
    let as_it_is = match name {
        "other-domain" => matches!(source, PeerError::UntrustedDomain { .. }),
        "foreign-ca" => matches!(
            source,
            PeerError::Chain {
                source: ChainError::UnknownIssuer,
                ..
            }
        ),
        "expired" => matches!(
            source,
            PeerError::Chain {
                source: ChainError::Expired { .. },
                ..
            }
        ),
        "two-uris" => matches!(source, PeerError::UriNames { count: 2 }),
        _ => false,
    };
    assert!(as_it_is, "{name}: {error:?}");
    assert!(error.may_retry_elsewhere(), "nothing was said to this one");
}

/// With certificates that no server should take: TLS 1.3 tells of it after our side of the handshake is done, so that the
/// request is out already.
#[tokio::test]
async fn servers_that_refuse_us_are_heard() {
    let certificates = Certificates::new();
    for of in [Script::Node, Script::H2] {
        let Some((_running, servers)) = script(of, &certificates, &["server"]).await else {
            continue;
        };
        for pair in ["foreign-ca", "expired"] {
            // These two just close the connection.
            let error = Client::new(&certificates, pair, servers[0])
                .connect("refuse.test:401")
                .await
                .unwrap_err();
            let ended = matches!(error, ConnectError::Lost { .. } | ConnectError::Unprocessed { .. });
            assert!(ended, "{of:?}, {pair}: {error:?}");
        }
    }
    let Some(envoy) = Envoy::serve(&certificates, &["server"]).await else {
        return;
    };
    let server = envoy.listener("server").await;
    for (pair, alert) in [
        ("other-domain", "CertificateUnknown"),
        ("foreign-ca", "UnknownCA"),
        ("expired", "CertificateExpired"),
    ] {
        // Its alert is lost where our request meets a socket that is closed already: TCP's reset overtakes it.
        let mut heard = false;
        for _ in 0..20 {
            let error = Client::new(&certificates, pair, server)
                .connect("refuse.test:401")
                .await
                .unwrap_err();
            heard |= matches!(error, ConnectError::Handshake { .. }) && format!("{error:?}").contains(alert);
        }
        assert!(heard, "{pair}: {alert} is never heard");
    }
}

#[tokio::test]
async fn after_their_goaway_streams_finish_and_new_ones_go_elsewhere() {
    let certificates = Certificates::new();
    let echo = apps::echo().await;
    for of in [Script::Node, Script::H2] {
        let Some((_running, servers)) = script(of, &certificates, &["server"]).await else {
            continue;
        };
        let client = Client::new(&certificates, "client", servers[0]);
        let stream = client.connect(format!("goaway.test:{}", echo.port())).await.unwrap();
        survives_goaway(&client, stream, echo).await;
    }
    let Some(envoy) = Envoy::serve(&certificates, &["server"]).await else {
        return;
    };
    let client = Client::new(&certificates, "client", envoy.listener("server").await);
    let stream = client.connect(echo).await.unwrap();
    envoy.drain().await;
    survives_goaway(&client, stream, echo).await;
}

async fn survives_goaway(client: &Client, old: Stream, echo: SocketAddr) {
    let others = async {
        for _ in 0..5 {
            exchange(client.connect(echo).await.unwrap(), 5_000).await;
        }
        exchange(old, 100_000).await;
    };
    timeout(RUN, others).await.unwrap();
}

/// 13 bytes, some millions, and 50 streams at a time.
async fn carries(client: &Client) {
    let echo = apps::echo().await;
    exchange(client.connect(echo).await.unwrap(), 13).await;
    exchange(client.connect(echo).await.unwrap(), 4_000_000).await;
    let many = (0..50).map(|n| {
        let client = client.clone();
        async move { exchange(client.connect(echo).await.unwrap(), 1_000 * (n + 1)).await }
    });
    together(many).await;
}

/// Sends and receives at the same time, each to its end.
async fn exchange(stream: Stream, size: usize) {
    let data: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut from, mut to) = stream.into_split();
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

async fn half_closes(client: &Client) {
    let mut stream = client.connect(apps::count().await).await.unwrap();
    stream.write_all(&[7; 1234]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = String::new();
    timeout(RUN, stream.read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, "1234");
}

async fn refuses(client: &Client, statuses: &[u16]) {
    for &status in statuses {
        let refused = client.connect(format!("refuse.test:{status}")).await.unwrap_err();
        assert_eq!(refused.refused_status().unwrap().as_u16(), status);
        assert_eq!(refused.may_retry_elsewhere(), status == 503);
    }
    let refused = client.connect(closed_port().await).await.unwrap_err();
    assert_eq!(refused.refused_status().unwrap().as_u16(), 503, "{refused:?}");
}

/// The application's reset must not look like its end.
async fn breaks_off(client: &Client) {
    let mut stream = client.connect(apps::breaks_off().await).await.unwrap();
    let mut half = [0; 10];
    timeout(RUN, stream.read_exact(&mut half)).await.unwrap().unwrap();
    assert_eq!(&half, b"half of it");
    stream.write_all(b"x").await.unwrap();
    let error = timeout(RUN, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Reset { .. })), "{error:?}");
}

async fn together<F>(all: impl Iterator<Item = F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let all: tokio::task::JoinSet<()> = all.collect();
    timeout(RUN, all.join_all()).await.expect("all end");
}

/// Where nobody listens.
async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
