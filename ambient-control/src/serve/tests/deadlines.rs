//! What the control plane itself waits for, and that it never waits for ever.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Signs, until it falls silent.
struct Falls(DirectoryCa, Arc<AtomicBool>);

impl Signer for Falls {
    fn sign<'a>(&'a self, request: crate::ca::Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, crate::ca::RequestError>> {
        match self.1.load(Ordering::Relaxed) {
            true => Box::pin(std::future::pending()),
            false => self.0.sign(request),
        }
    }

    fn bundles(&self) -> Arc<ambient_core::TrustBundles> {
        self.0.bundles()
    }
}

#[tokio::test]
async fn a_signer_that_falls_silent_is_told_to_whoever_asks_and_comes_back() {
    let silent = Arc::new(AtomicBool::new(false));
    let falls = silent.clone();
    let running = Running::signed_by(move |ca| Arc::new(Falls(ca, falls))).await;
    let config = CertificatesConfig::new(running.endpoint("node-1"));
    let certificates = Certificates::new(config).unwrap();
    silent.store(true, Ordering::Relaxed);
    let asked = timeout(Duration::from_secs(20), certificates.issue(&identity("cart"))).await;
    let error = asked.expect("it is answered").unwrap_err();
    assert!(matches!(error, IssueError::Unavailable { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("did not answer within 1s"), "{error}");
    assert!(running.counts.refused(Refusal::Authority) >= 1);
    silent.store(false, Ordering::Relaxed);
    certificates.issue(&identity("cart")).await.unwrap();
}

/// Nor is a node that joins, and the token that is good for one key is so for the next attempt.
#[tokio::test]
async fn a_node_that_joins_is_told_of_a_silent_signer_and_joins_once_it_speaks() {
    let silent = Arc::new(AtomicBool::new(false));
    let falls = silent.clone();
    let running = Running::signed_by(move |ca| Arc::new(Falls(ca, falls))).await;
    silent.store(true, Ordering::Relaxed);
    let token = running.token("node-1", joining::HOUR, Use::Once);
    let mut state = running.state(running.joining("node-1", &token, joining::HOUR), "node-1");
    joining::fault(&mut state, "did not answer within 1s").await;
    assert!(running.counts.refused(Refusal::Authority) >= 1);
    assert_eq!((running.nodes.certificates(now()).unwrap().len(), running.counts.joined()), (0, 0));
    silent.store(false, Ordering::Relaxed);
    joining::synced(&mut state).await;
    assert_eq!(running.counts.joined(), 1);
}

/// Nothing is served without a certificate, and who starts it is told why.
#[tokio::test(start_paused = true)]
async fn a_signer_that_never_answers_keeps_nobody_who_starts_it_waiting() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = DirectoryCa::open(scratch.path(), TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        names: vec!["localhost".into()],
        trust_domain: TrustDomain::default(),
        source: Box::new(Fed(mpsc::channel(1).1)),
        ca: Arc::new(Falls(ca, Arc::new(AtomicBool::new(true)))),
        nodes: Nodes::new(scratch.path(), provider()),
        captures: None,
        provider: provider(),
    };
    let bound = timeout(Duration::from_secs(60), ControlPlane::bind(config)).await;
    assert!(matches!(bound, Ok(Err(ServeError::Silent { .. }))), "{bound:?}");
}

#[tokio::test]
async fn who_keeps_reports_and_falls_silent_is_told_to_the_node() {
    let running = Running::start().await;
    let reports = Reports::new(running.endpoint("node-1")).unwrap();
    running.kept.2.store(true, Ordering::Relaxed);
    let told = timeout(Duration::from_secs(8), reports.report(&"uid-cart".into(), &[], true)).await;
    let error = told.expect("it is answered").unwrap_err();
    let late = matches!(
        &error,
        istiod::ReportError::Refused {
            code,
            ..
        } if *code == tonic::Code::DeadlineExceeded as i32
    );
    assert!(late && error.to_string().contains("within 1s"), "{error}");
    assert_eq!(running.counts.refused(Refusal::Keeping), 1);
    running.kept.2.store(false, Ordering::Relaxed);
    reports.report(&"uid-cart".into(), &[], true).await.unwrap();
}

/// Each report is a file that is written and brought to the disk.
#[tokio::test]
async fn a_node_that_reports_without_end_is_asked_to_wait_and_others_are_not() {
    let running = Running::start().await;
    let reports = Reports::new(running.endpoint("node-1")).unwrap();
    let mut refused = None;
    for _ in 0..4 * TIGHT.reported_at_once {
        if let Err(error) = reports.report(&"uid-cart".into(), &[], true).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("it is too often");
    let often = matches!(
        &error,
        istiod::ReportError::Refused {
            code,
            ..
        } if *code == tonic::Code::ResourceExhausted as i32
    );
    assert!(often && error.to_string().contains("say it again in"), "{error}");
    assert!(running.counts.refused(Refusal::Often) >= 1);
    let other = Reports::new(running.endpoint("node-2")).unwrap();
    other.report(&"uid-stock".into(), &[], true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    reports.report(&"uid-cart".into(), &[], true).await.unwrap();
}
