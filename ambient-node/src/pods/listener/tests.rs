use std::{
    net::{Ipv4Addr, TcpListener as StdListener, TcpStream as StdStream},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use ambient_control::{IssueError, Issuer};
use ambient_core::{Credential, Identity, TrustBundles, TrustDomain};
use ambient_hbone::{Speaker, SpeakerKey};
use ambient_redirect::{PodSpec, linux::Netns};
use ambient_testkit::ca::{Ca, Leaf};
use socket2::{Domain, Socket, Type};
use tokio::sync::Notify;

use super::*;
use crate::{bounds::Bounds, certificates::Certificates};

/// Issues to everybody.
struct Authority(Ca);

impl Issuer for Authority {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move { Ok(Arc::new(self.0.issue_as(identity, &Leaf::default()).unwrap())) })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.0.trust().into()
    }
}

async fn pod() -> Arc<Pod> {
    let domain = TrustDomain::default();
    let identity = Identity::new(&domain, "shop", "web").unwrap();
    let certificates = Certificates::new(Arc::new(Authority(Ca::new(&domain).unwrap())));
    let keeping = tokio::spawn(certificates.clone().keep_fresh());
    let held = certificates.hold(&identity, &"uid-of-web".into()).await.unwrap();
    keeping.abort();
    let spec = PodSpec {
        uid: "uid-of-web".into(),
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "web".into(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        capture: ambient_core::Capture::default(),
        has_run: true,
    };
    let speaker = Speaker {
        key: SpeakerKey::new("uid-of-web".to_owned()),
        identity,
    };
    let namespace = Arc::new(Netns::current().unwrap());
    Arc::new(Pod::new(spec, namespace, speaker, Bounds::new(100, 10).pod("one"), held))
}

fn told(pod: &Pod) -> Told {
    Told {
        namespace: pod.namespace.clone(),
        lost: Arc::new(Notify::new()),
    }
}

fn listener() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// Waits on threads that may block.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = task::spawn_blocking(work);
    time::timeout(Duration::from_secs(20), done).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_listener_is_served_through_panics_and_its_port_stays_open() {
    let (pod, metrics) = (pod().await, Arc::new(Metrics::default()));
    let (listener, at) = listener();
    let acceptor = Arc::new(Acceptor::new(listener, metrics.accept_failures()).unwrap());
    let (nth, taken) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (counted, kept) = (nth.clone(), taken.clone());
    let take: Take = Arc::new(move |stream, _| {
        assert!(
            counted.fetch_add(1, Ordering::Relaxed) % 2 == 1,
            "every other connection is too much for it"
        );
        kept.lock().unwrap().push(stream);
    });
    let serving = pod.clone();
    let begin: Begin = Box::new(move || Box::pin(accept(serving.clone(), acceptor.clone(), false, take.clone())));
    let task = keep(None, metrics.clone(), told(&pod), begin);
    for round in 1..=3 {
        let clients = apart(move || [(); 2].map(|()| StdStream::connect(at).unwrap())).await;
        let all_taken = async {
            while taken.lock().unwrap().len() < round {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(Duration::from_secs(20), all_taken).await.unwrap();
        assert!(!task.is_finished());
        drop(clients);
    }
    assert_eq!(nth.load(Ordering::Relaxed), 6, "no connection is lost that has not panicked itself");
    assert!(metrics.text().unwrap().contains("ambient_tasks_restarted_total 3\n"));
    pod.advance(Stage::Stopped);
    time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
    let refused = apart(move || StdStream::connect(at).unwrap_err().kind()).await;
    assert_eq!(refused, io::ErrorKind::ConnectionRefused, "its socket is held by nobody else");
}

#[tokio::test(start_paused = true)]
async fn who_is_back_before_nothing_came_for_a_while_is_served_on() {
    let (pod, metrics) = (pod().await, Arc::new(Metrics::default()));
    let (listener, _) = listener();
    let acceptor = Arc::new(Acceptor::new(listener, metrics.accept_failures()).unwrap());
    let serving = pod.clone();
    let take: Take = Arc::new(|_, _| {});
    let begin: Begin = Box::new(move || Box::pin(accept(serving.clone(), acceptor.clone(), false, take.clone())));
    let task = keep(None, metrics.clone(), told(&pod), begin);
    for _ in 0..2 {
        pod.advance(Stage::Leaving);
        time::sleep(QUIET / 2).await;
        assert!(pod.resume());
        time::sleep(QUIET * 3).await;
        assert!(!task.is_finished());
    }
    pod.advance(Stage::Leaving);
    time::timeout(QUIET * 2, task).await.unwrap().unwrap();
}

/// Connections come without a pause: whichever of the two has listened longer, who stays has them before who leaves is gone.
#[tokio::test]
async fn who_leaves_a_shared_port_leaves_it_to_the_other() {
    for leaver in [0, 1] {
        let (pod, metrics) = (pod().await, Arc::new(Metrics::default()));
        let mut at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let both = [(); 2].map(|()| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&at.into()).unwrap();
            socket.listen(BACKLOG).unwrap();
            let listener = StdListener::from(socket);
            at = listener.local_addr().unwrap();
            Acceptor::new(listener, metrics.accept_failures()).unwrap()
        });
        let [first, second] = both.map(Arc::new);
        let (leaves, stays) = if leaver == 0 { (first, second) } else { (second, first) };
        let taken = Arc::new(AtomicU32::new(0));
        let counted = taken.clone();
        let take: Take = Arc::new(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        pod.advance(Stage::Draining);
        let serving = pod.clone();
        let task = tokio::spawn(async move { accept(serving, leaves, true, take).await });
        let (mut opened, mut left) = (0, 0);
        // Until it has said that it leaves, the kernel chooses.
        task::yield_now().await;
        while !task.is_finished() {
            // The kernel completes it within the call: there is no way for it but to one of the two.
            drop(StdStream::connect(at).unwrap());
            opened += 1;
            left += u32::from(stays.waiting().is_some());
            time::sleep(Duration::from_millis(1)).await;
        }
        task.await.unwrap();
        assert!(left > 0, "all {opened} went to who was leaving, of two the one of number {leaver}");
        assert_eq!(left + taken.load(Ordering::Relaxed), opened, "and none was lost");
    }
}

#[tokio::test]
async fn a_listener_that_the_kernel_has_shut_is_told_of() {
    let (pod, metrics) = (pod().await, Arc::new(Metrics::default()));
    let (listener, _) = listener();
    let shut = listener.try_clone().unwrap();
    let acceptor = Arc::new(Acceptor::new(listener, metrics.accept_failures()).unwrap());
    let lost = Arc::new(Notify::new());
    let told = Told {
        namespace: pod.namespace.clone(),
        lost: lost.clone(),
    };
    let serving = pod.clone();
    let take: Take = Arc::new(|_, _| {});
    let begin: Begin = Box::new(move || Box::pin(accept(serving.clone(), acceptor.clone(), false, take.clone())));
    let task = keep(None, metrics.clone(), told, begin);
    task::yield_now().await;
    SockRef::from(&shut).shutdown(std::net::Shutdown::Both).unwrap();
    time::timeout(Duration::from_secs(20), lost.notified()).await.unwrap();
    time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
    assert!(metrics.text().unwrap().contains("ambient_tasks_restarted_total 0\n"));
}

#[tokio::test]
async fn names_are_answered_through_panics() {
    let (pod, metrics) = (pod().await, Arc::new(Metrics::default()));
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
    let at = socket.local_addr().unwrap();
    let nth = Arc::new(AtomicU32::new(0));
    // As what serves names does: for each begin the same socket.
    let begin: Begin = Box::new(move || {
        let (socket, nth) = (socket.clone(), nth.clone());
        Box::pin(async move {
            let mut buffer = [0; 16];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                assert!(nth.fetch_add(1, Ordering::Relaxed) > 0, "the first is too much for it");
                socket.send_to(&buffer[..length], client).await.unwrap();
            }
        })
    });
    let task = keep(None, metrics.clone(), told(&pod), begin);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    client.send_to(b"one", at).await.unwrap();
    client.send_to(b"two", at).await.unwrap();
    let mut buffer = [0; 16];
    let heard = time::timeout(Duration::from_secs(20), client.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..heard], b"two", "what came meanwhile waited in the socket");
    assert!(metrics.text().unwrap().contains("ambient_tasks_restarted_total 1\n"));
    task.abort();
}
