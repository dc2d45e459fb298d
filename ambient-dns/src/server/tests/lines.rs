use ambient_testkit::log::{Line, Lines, heard_by};

use super::*;
use nameserver::answer;

async fn until_one_has(lines: &Lines, parts: &[&str]) {
    let is_it = |line: &Line| {
        let line = line.to_string();
        parts.iter().all(|part| line.contains(part))
    };
    let found = time::timeout(PATIENCE, async {
        while !lines.all().iter().any(is_it) {
            time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("{parts:?} is not in {:?}", lines.all()));
}

#[tokio::test]
async fn a_query_that_nobody_answers_has_a_line_too() {
    let lines = Lines::of("dns");
    let _guard = heard_by(lines.clone());
    let said = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let speaks = bench(&[said.at], Limits::default()).await;
    by_udp(&speaks, &example(1)).await;
    until_one_has(&lines, &["domain=example.com.", "result=forwarded"]).await;

    let limits = Limits {
        forwards: 1,
        forward: Duration::from_millis(300),
        ..Limits::default()
    };
    let silent = Nameserver::start(Say::Nothing).await;
    let bench = bench(&[silent.at], limits).await;
    let socket = client(&bench).await;
    socket.send(&query(2, &["late", "example"], 1)).await.unwrap();
    socket.send(&query(3, &["more", "example"], 28)).await.unwrap();
    let failed = "result=forwarding failed";
    let late = "domain=late.example.";
    until_one_has(&lines, &["query=AAAA", "domain=more.example.", "result=dropped", "reason=busy"]).await;
    until_one_has(&lines, &["query=A ", late, failed, "endpoints=0", "reason=silent"]).await;

    // By TCP: a nameserver that says nothing, and none.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    for (server, name, reason) in [(silent.at, "still", "silent"), (nobody, "gone", "unreachable")] {
        let bench = super::bench(&[server], limits).await;
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        let query = query(4, &[name, "example"], 1);
        let length = u16::try_from(query.len()).unwrap().to_be_bytes();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[&length[..], &query].concat())
            .await
            .unwrap();
        let (domain, reason) = (format!("domain={name}.example."), format!("reason={reason}"));
        until_one_has(&lines, &[&domain, failed, &reason]).await;
    }

    let unknown = Setup {
        known: false,
        ..Setup::default()
    };
    let unknown = unknown.start().await;
    client(&unknown).await.send(&web(5)).await.unwrap();
    until_one_has(&lines, &["result=dropped", "reason=not_ready"]).await;
}
