use std::{fmt, sync::Mutex};

use tracing::{Event as Logged, Metadata, Subscriber, field, span};

use super::*;
use nameserver::answer;

/// The lines of the log that are about queries.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Logged<'_>) {
        if event.metadata().target() == "dns" {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl field::Visit for Line {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

impl Lines {
    async fn until_one_has(&self, parts: &[&str]) {
        let found = time::timeout(PATIENCE, async {
            while !self
                .0
                .lock()
                .unwrap()
                .iter()
                .any(|line| parts.iter().all(|part| line.contains(part)))
            {
                time::sleep(Duration::from_millis(5)).await;
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("{parts:?} is not in {:?}", self.0.lock().unwrap()));
    }
}

#[tokio::test]
async fn a_query_that_nobody_answers_has_a_line_too() {
    let lines = Lines::default();
    let _guard = ambient_testkit::log::heard_by(lines.clone());
    let said = Nameserver::start(Say::Bytes(|query| vec![answer(query)])).await;
    let speaks = bench(&[said.at], Limits::default()).await;
    by_udp(&speaks, &example(1)).await;
    lines.until_one_has(&["domain=\"example.com.\"", "result=\"forwarded\""]).await;

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
    let failed = "result=\"forwarding failed\"";
    let late = "domain=\"late.example.\"";
    lines
        .until_one_has(&[
            "query=\"AAAA\"",
            "domain=\"more.example.\"",
            "result=\"dropped\"",
            "reason=\"busy\"",
        ])
        .await;
    lines
        .until_one_has(&["query=\"A\"", late, failed, "endpoints=0", "reason=\"silent\""])
        .await;

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
        let (domain, reason) = (format!("domain=\"{name}.example.\""), format!("reason=\"{reason}\""));
        lines.until_one_has(&[&domain, failed, &reason]).await;
    }

    let unknown = Setup {
        known: false,
        ..Setup::default()
    };
    let unknown = unknown.start().await;
    client(&unknown).await.send(&web(5)).await.unwrap();
    lines.until_one_has(&["result=\"dropped\"", "reason=\"not_ready\""]).await;
}
