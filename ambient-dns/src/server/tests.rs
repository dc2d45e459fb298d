use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use ambient_core::{NetworkAddress, Service, mesh::Update};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::time::Instant;

use super::*;
use crate::BoxFuture;

/// What the nameserver upstream does.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Answers with so many TXT records of 100 bytes.
    Answers(usize),
    OtherId,
    OtherQuestion,
    NoAnswer,
    NoQuestion,
    Short,
    Fails,
    Hangs,
}

struct Nameserver {
    behaviour: Behaviour,
    asked: AtomicUsize,
    waiting: AtomicUsize,
}

impl Upstream for Nameserver {
    fn exchange<'a>(&'a self, query: &'a [u8], _: Transport) -> BoxFuture<'a, Result<Vec<u8>, UpstreamError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let query = Message::from_vec(query).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_queries(query.queries.clone());
            match self.behaviour {
                Behaviour::Answers(count) => {
                    let text = rdata::TXT::new(vec!["x".repeat(99)]);
                    let record = Record::from_rdata(query.queries[0].name().clone(), 1, RData::TXT(text));
                    reply.add_answers(std::iter::repeat_n(record, count));
                }
                Behaviour::OtherId => reply.metadata.id ^= 1,
                Behaviour::OtherQuestion => {
                    reply.queries[0].set_name(name("spoofed."));
                }
                Behaviour::NoAnswer => reply.metadata.message_type = hickory_proto::op::MessageType::Query,
                Behaviour::NoQuestion => {
                    reply.queries.clear();
                    reply.metadata.response_code = ResponseCode::Refused;
                }
                Behaviour::Short => return Ok(vec![0; 11]),
                Behaviour::Fails => return Err(UpstreamError::Unavailable("a test".into())),
                Behaviour::Hangs => {
                    let _waiting = Waiting::new(&self.waiting);
                    std::future::pending().await
                }
            }
            Ok(reply.to_vec().unwrap())
        })
    }
}

/// Counts who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Bench {
    upstream: Arc<Nameserver>,
    server: tokio::task::JoinHandle<()>,
    udp: SocketAddr,
    tcp: SocketAddr,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn bench(behaviour: Behaviour, limits: Limits, known: bool) -> Bench {
    let mut web = Service::new("shop", "web.shop.svc.cluster.local");
    web.vips.push(NetworkAddress::local("10.96.0.7".parse().unwrap()));
    let mesh = known.then(|| Mesh::default().apply([Update::Service(web.into())]));
    let upstream = Arc::new(Nameserver {
        behaviour,
        asked: AtomicUsize::new(0),
        waiting: AtomicUsize::new(0),
    });
    let server = Server::new(
        Zone::default(),
        "shop",
        Network::default(),
        Arc::new(move || mesh.clone()),
        upstream.clone(),
    );
    let server = server.with_limits(limits);
    let (socket, listener) = (
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    let server = tokio::spawn(async move { tokio::join!(server.serve_udp(socket), server.serve_tcp(listener)).0 });
    Bench {
        upstream,
        server,
        udp,
        tcp,
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn query(text: &str) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(name(text), RecordType::A));
    query.to_vec().unwrap()
}

async fn client(bench: &Bench) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(bench.udp).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; LONGEST_MESSAGE];
    let length = time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer.truncate(length);
    buffer
}

async fn by_udp(bench: &Bench, query: &[u8]) -> Message {
    let socket = client(bench).await;
    socket.send(query).await.unwrap();
    Message::from_vec(&receive(&socket).await).unwrap()
}

async fn over(stream: &mut TcpStream, query: &[u8]) -> Message {
    write_message(stream, query).await.unwrap();
    let reply = time::timeout(Duration::from_secs(10), read_message(stream)).await.unwrap();
    Message::from_vec(&reply.unwrap().unwrap()).unwrap()
}

fn brief() -> Limits {
    Limits {
        forwards: 2,
        forward: Duration::from_millis(300),
        connections: 2,
        idle: Duration::from_millis(300),
    }
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_here_and_others_upstream() {
    let bench = bench(Behaviour::Answers(2), Limits::default(), true).await;
    let web = by_udp(&bench, &query("web.")).await;
    assert_eq!((web.answers.len(), web.metadata.response_code), (1, ResponseCode::NoError));
    assert_eq!(bench.upstream.asked.load(Ordering::SeqCst), 0);
    assert_eq!(by_udp(&bench, &query("example.com.")).await.answers.len(), 2);

    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut stream, &query("web.")).await.answers.len(), 1);
    assert_eq!(over(&mut stream, &query("example.com.")).await.answers.len(), 2);
    assert_eq!(over(&mut stream, &query("web.")).await.answers.len(), 1, "the connection stays");
}

#[tokio::test]
async fn an_answer_too_long_for_the_client_is_cut() {
    let bench = bench(Behaviour::Answers(20), Limits::default(), true).await;
    let cut = by_udp(&bench, &query("example.com.")).await;
    assert!(cut.metadata.truncation);
    assert_eq!((cut.answers.len(), cut.queries.len()), (0, 1));
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut stream, &query("example.com.")).await.answers.len(), 20);
}

#[tokio::test]
async fn what_is_no_answer_to_the_query_is_a_failure() {
    for behaviour in [
        Behaviour::OtherId,
        Behaviour::OtherQuestion,
        Behaviour::NoAnswer,
        Behaviour::Short,
        Behaviour::Fails,
    ] {
        let bench = bench(behaviour, Limits::default(), true).await;
        let start = Instant::now();
        for reply in [by_udp(&bench, &query("example.com.")).await, {
            let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
            over(&mut stream, &query("example.com.")).await
        }] {
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
            assert_eq!(reply.queries.len(), 1);
        }
        assert!(start.elapsed() < Duration::from_secs(2), "at once");
    }
    let bench = bench(Behaviour::NoQuestion, Limits::default(), true).await;
    assert_eq!(
        by_udp(&bench, &query("example.com.")).await.metadata.response_code,
        ResponseCode::Refused
    );
}

#[tokio::test]
async fn a_silent_upstream_is_a_failure_in_time_and_harms_no_name_of_the_mesh() {
    let limits = Limits {
        forward: Duration::from_millis(1500),
        ..brief()
    };
    let bench = bench(Behaviour::Hangs, limits, true).await;
    let socket = client(&bench).await;
    let start = Instant::now();
    // Two wait; the third is refused at once.
    for _ in 0..3 {
        socket.send(&query("example.com.")).await.unwrap();
    }
    let first = Message::from_vec(&receive(&socket).await).unwrap();
    assert_eq!(first.metadata.response_code, ResponseCode::ServFail);
    assert!(start.elapsed() < Duration::from_millis(1200), "{:?}", start.elapsed());
    assert_eq!(by_udp(&bench, &query("web.")).await.answers.len(), 1);
    for _ in 0..2 {
        let late = Message::from_vec(&receive(&socket).await).unwrap();
        assert_eq!(late.metadata.response_code, ResponseCode::ServFail);
    }
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(bench.upstream.waiting.load(Ordering::SeqCst), 0);
    // The places are free again.
    socket.send(&query("example.com.")).await.unwrap();
    receive(&socket).await;
    assert_eq!(bench.upstream.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn before_the_mesh_is_known_everything_fails() {
    let bench = bench(Behaviour::Answers(1), Limits::default(), false).await;
    for name in ["web.", "example.com."] {
        assert_eq!(by_udp(&bench, &query(name)).await.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(bench.upstream.asked.load(Ordering::SeqCst), 0);
    // What is no query is still no query.
    assert_eq!(
        by_udp(&bench, &[0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.metadata.response_code,
        ResponseCode::FormErr
    );
}

#[tokio::test]
async fn dropping_the_server_abandons_what_waits() {
    let bench = bench(Behaviour::Hangs, Limits::default(), true).await;
    client(&bench).await.send(&query("example.com.")).await.unwrap();
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    write_message(&mut stream, &query("example.com.")).await.unwrap();
    while bench.upstream.waiting.load(Ordering::SeqCst) < 2 {
        time::sleep(Duration::from_millis(5)).await;
    }
    bench.server.abort();
    let end = time::timeout(Duration::from_secs(5), stream.read(&mut [0; 9])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    while bench.upstream.waiting.load(Ordering::SeqCst) > 0 {
        time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn connections_that_idle_or_dawdle_end_and_make_room() {
    let bench = bench(Behaviour::Answers(1), brief(), true).await;
    // One says nothing, the other half a query: both places are taken.
    let mut idle = TcpStream::connect(bench.tcp).await.unwrap();
    let mut slow = TcpStream::connect(bench.tcp).await.unwrap();
    slow.write_all(&[0, 200, 1, 2, 3]).await.unwrap();
    let mut third = TcpStream::connect(bench.tcp).await.unwrap();
    assert_eq!(over(&mut third, &query("web.")).await.answers.len(), 1);
    for stream in [&mut idle, &mut slow] {
        let end = time::timeout(Duration::from_secs(5), stream.read(&mut [0; 9])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn what_is_no_query_ends_the_connection() {
    let bench = bench(Behaviour::Answers(1), Limits::default(), true).await;
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    stream.write_all(&[0, 0, 0, 0]).await.unwrap();
    let end = time::timeout(Duration::from_secs(2), stream.read(&mut [0; 9])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    // A datagram of the kind is not answered, and the next is.
    let socket = client(&bench).await;
    socket.send(&[]).await.unwrap();
    socket.send(&[7; 5]).await.unwrap();
    socket.send(&query("web.")).await.unwrap();
    assert_eq!(Message::from_vec(&receive(&socket).await).unwrap().answers.len(), 1);
}
