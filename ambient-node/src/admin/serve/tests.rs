use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
};

use ambient_redirect::plan::Options;
use socket2::{Domain, Socket, Type};

use super::{super::Standing, *};
use crate::{admin::answer::PLAIN, telemetry::Metrics};

/// The most that anything may take.
const LONGEST: Duration = Duration::from_secs(30);

/// A page without an end, and a short one.
struct Pair(Standing);

impl Site for Pair {
    const ADMIN: &'static [Route<Self>] = &[];
    const METRICS: &'static [Route<Self>] = &[
        Route {
            path: "/long",
            takes: Takes::Get,
            about: "",
            answer: |_, _| {
                Answer::stream(PLAIN, |out| {
                    loop {
                        out.write_all(&[b'x'; 4096])?;
                    }
                })
            },
        },
        SHORT,
    ];
    const READINESS: &'static [Route<Self>] = &[SHORT];

    fn standing(&self) -> &Standing {
        &self.0
    }
}

const SHORT: Route<Pair> = Route {
    path: "/short",
    takes: Takes::Get,
    about: "",
    answer: |_, _| Answer::text(StatusCode::OK, "served\n"),
};

impl Pair {
    fn new() -> Self {
        Self(Standing {
            node: "n".into(),
            state: Arc::default(),
            metrics: Arc::<Metrics>::default(),
            capture: Options::default(),
            captures: None,
            agent: None,
            probes: None,
            proxied: false,
            named: Box::new(|_| None),
            namespace: Box::new(|_| None),
            doubt: Box::new(|_| None),
            unannounced: "",
            stop: crate::admin::Stop::default(),
        })
    }
}

/// Asks for a page from an address of the loopback device.
fn ask(from: u8, to: SocketAddr, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, from], 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LONGEST)).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())
        .unwrap();
    stream
}

/// Pages, and where they are: metrics and readiness.
fn served() -> (Pages, [SocketAddr; 2]) {
    let listen = || {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|on| on.set_nonblocking(true).map(|()| on))
            .unwrap()
    };
    let doors = Doors {
        metrics: listen(),
        readiness: listen(),
        admin: Vec::new(),
    };
    let at = [&doors.metrics, &doors.readiness].map(|on| on.local_addr().unwrap());
    (Pages::start(doors, Pair::new()).unwrap(), at)
}

fn heard(mut from: TcpStream) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// As many as there are places for, each of an address of its own.
#[tokio::test]
async fn who_does_not_read_keeps_nobody_from_a_page() {
    let (pages, [metrics, readiness]) = served();
    let mut slow = Vec::new();
    for n in 0..clients::MOST as u8 {
        let mut stream = ask(10 + n, metrics, "/long");
        // It has its place.
        stream.read_exact(&mut [0; 64]).unwrap();
        slow.push(stream);
    }
    assert!(heard(ask(100, readiness, "/short")).ends_with("served\n"));
    assert!(heard(ask(100, metrics, "/short")).ends_with("served\n"));
    // What it was answered so far does not look complete.
    let cut: Vec<_> = slow.iter().filter_map(|stream| stream.take_error().unwrap()).collect();
    assert!(
        matches!(&cut[..], [error] if error.kind() == io::ErrorKind::ConnectionReset),
        "{cut:?}"
    );
    pages.stop().await;
}

#[tokio::test]
async fn who_has_asked_nothing_and_goes_sees_an_end() {
    let (pages, [metrics, _]) = served();
    let silent: Vec<_> = (0..clients::MOST).map(|_| TcpStream::connect(metrics).unwrap()).collect();
    assert!(heard(ask(100, metrics, "/short")).ends_with("served\n"));
    for mut stream in silent {
        stream.set_read_timeout(Some(LONGEST)).unwrap();
        // And no reset: nothing was cut off.
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
    }
    pages.stop().await;
}

#[test]
fn only_addresses_and_localhost_are_hosts() {
    let asks = |host: &str, origin: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        !is_of_another_origin(&headers)
    };
    for host in ["localhost:15000", "localhost", "127.0.0.1:15000", "[::1]:15000", "::1", "10.0.0.1"] {
        assert!(asks(host, None), "{host}");
    }
    for host in ["evil.example:15000", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
        assert!(!asks(host, None), "{host}");
    }
    assert!(!asks("localhost:15000", Some("https://evil.example")));
    assert!(!is_of_another_origin(&HeaderMap::new()));
}
