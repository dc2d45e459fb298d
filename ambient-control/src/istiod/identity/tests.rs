use tonic::Status;

use super::{super::fake::*, *};
use crate::Issuer;

async fn issue(fake: &Fake) -> Result<Arc<Credential>, IssueError> {
    let certificates = Certificates::new(CertificatesConfig::new(fake.endpoint())).unwrap();
    certificates.issue(&identity()).await
}

#[tokio::test]
async fn a_certificate_is_asked_for_in_the_name_of_the_pod_with_a_key_of_its_own() {
    let fake = Fake::start("localhost").await;
    let certificates = Certificates::new(CertificatesConfig::new(fake.endpoint())).unwrap();
    assert_eq!(certificates.trust().domains().count(), 0);
    let whom = identity();
    let (one, two) = tokio::join!(certificates.ask(&whom), certificates.ask(&whom));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.identity, identity());
    assert_ne!(one.key.der(), two.key.der());
    assert!(one.is_valid_at(now()));
    assert_eq!(one.chain.len(), 1);
    let roots = certificates.trust();
    assert_eq!(roots.roots(identity().trust_domain()).len(), 1);
    assert!(Arc::ptr_eq(&roots, &certificates.trust()));
    let asked = &fake.signed.lock().unwrap()[0];
    assert_eq!(asked.validity_duration, 24 * 60 * 60);
    // No subject, and one critical URI name.
    use x509_parser::{certification_request::X509CertificationRequest, extensions::ParsedExtension, prelude::GeneralName};
    let (_, pem) = x509_parser::pem::parse_x509_pem(asked.csr.as_bytes()).unwrap();
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
    let names: Vec<_> = csr.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = &names[..] else {
        panic!("{names:?}")
    };
    assert_eq!(names.general_names, [GeneralName::URI(identity().as_str())]);
}

#[tokio::test]
async fn what_comes_back_is_believed_only_where_it_is_what_was_asked_for() {
    let fake = Fake::start("localhost").await;
    let other = Arc::new(Authority::new());
    let own = |change: fn(&mut CertificateParams)| -> Sign {
        Arc::new(move |authority, request| Ok(vec![authority.sign(request, identity().as_str(), change), authority.pem()]))
    };
    let stranger = other.clone();
    let cases: Vec<(Sign, &str)> = vec![
        (
            Arc::new(|authority, request| {
                Ok(vec![
                    authority.sign(request, "spiffe://cluster.local/ns/shop/sa/other", |_| {}),
                    authority.pem(),
                ])
            }),
            "sa/other",
        ),
        (
            Arc::new(|authority, request| {
                let (_, csr) = super::request(Some(&identity())).unwrap();
                let another = IstioCertificateRequest { csr, ..request.clone() };
                Ok(vec![authority.sign(&another, identity().as_str(), |_| {}), authority.pem()])
            }),
            "for another key",
        ),
        (
            Arc::new(move |_, request| {
                let root = Authority::new().pem();
                Ok(vec![stranger.sign(request, identity().as_str(), |_| {}), root])
            }),
            "refused",
        ),
        (
            own(|params| params.not_before = (now() + Duration::from_secs(3600)).into()),
            "its certificate: it is valid from 20",
        ),
        (
            own(|params| params.not_after = (now() - Duration::from_secs(30)).into()),
            "a clock is wrong: check those of both machines",
        ),
        (
            Arc::new(|authority, request| Ok(vec![authority.sign(request, identity().as_str(), |_| {})])),
            "1 entries",
        ),
        (
            Arc::new(|authority, _| Ok(vec!["".into(), authority.pem()])),
            "the first entry holds no certificate",
        ),
        (
            Arc::new(|authority, request| Ok(vec![authority.sign(request, identity().as_str(), |_| {}), " ".into()])),
            "the last entry, where the roots are, holds no certificate",
        ),
        (
            Arc::new(|_, _| Err(Status::permission_denied("no pod of yours"))),
            "PermissionDenied: no pod of yours",
        ),
    ];
    let certificates = Certificates::new(CertificatesConfig::new(fake.endpoint())).unwrap();
    for (sign, why) in cases {
        *fake.sign.lock().unwrap() = sign;
        let error = certificates.ask(&identity()).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}, and not {why}");
        assert_eq!(
            certificates.trust().domains().count(),
            0,
            "a root of what was refused is trusted: {why}"
        );
    }
}

#[tokio::test]
async fn a_clock_that_is_a_little_behind_is_put_up_with() {
    let fake = Fake::start("localhost").await;
    fake.signs(|authority, request| {
        let early = |params: &mut CertificateParams| params.not_before = (now() + SKEW / 2).into();
        Ok(vec![authority.sign(request, identity().as_str(), early), authority.pem()])
    });
    let credential = issue(&fake).await.unwrap();
    assert!(credential.is_valid_at(now()));
}

#[tokio::test]
async fn what_is_wrong_with_files_is_told_before_they_are_needed_and_no_longer_than_it_is() {
    let fake = Fake::start("localhost").await;
    let certificates = Certificates::new(CertificatesConfig::new(fake.endpoint())).unwrap();
    // Who listens has other things to do meanwhile, and listens anew after each.
    let told = async || {
        for _ in 0..16 {
            let _ = timeout(LOOKING / 8, certificates.told()).await;
        }
        certificates.faults()
    };
    std::fs::write(fake.path("token"), "").unwrap();
    let faults = told().await;
    assert!(faults.len() == 1 && faults[0].contains("it is empty"), "{faults:?}");
    std::fs::write(fake.path("token"), TOKEN).unwrap();
    assert!(told().await.is_empty());
}

#[tokio::test]
async fn a_life_that_is_cut_short_is_said_so_once() {
    let fake = Fake::start("localhost").await;
    fake.signs(|authority, request| {
        let an_hour = |params: &mut CertificateParams| params.not_after = (now() + Duration::from_secs(3600)).into();
        Ok(vec![authority.sign(request, identity().as_str(), an_hour), authority.pem()])
    });
    for (asked, cut) in [(Duration::from_secs(3600), false), (Duration::from_secs(7200), true)] {
        let certificates = Certificates::new(CertificatesConfig {
            ttl: asked,
            ..CertificatesConfig::new(fake.endpoint())
        })
        .unwrap();
        certificates.ask(&identity()).await.unwrap();
        assert_eq!(certificates.cut_short.load(Ordering::Relaxed), cut, "{asked:?}");
    }
}

#[tokio::test]
async fn roots_are_trusted_after_a_restart_while_istiod_is_away() {
    let fake = Fake::start("localhost").await;
    let memory = fake.path("memory");
    let config = |endpoint| CertificatesConfig {
        memory: Some(memory.clone()),
        ..CertificatesConfig::new(endpoint)
    };
    let certificates = Certificates::new(config(fake.endpoint())).unwrap();
    certificates.ask(&identity()).await.unwrap();
    let roots = certificates.trust();
    // Whoever is given a certificate does not wait for that.
    let kept = async {
        while !memory.join("istiod.roots").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), kept).await.expect("they are kept in time");
    drop(certificates);
    let endpoint = fake.endpoint();
    let again = Certificates::new(config(endpoint)).unwrap();
    assert_eq!(again.trust(), roots);
    assert!(again.last_heard().unwrap().age(now()).is_some());
    // Another authority has vouched for nobody yet.
    let other = Endpoint {
        cluster: "elsewhere".into(),
        ..fake.endpoint()
    };
    let another = Certificates::new(config(other)).unwrap();
    assert_eq!(another.trust().domains().count(), 0);
    assert!(another.last_heard().unwrap().age(now()).is_none());
}

#[tokio::test]
async fn a_refusal_is_told_from_an_absence() {
    let fake = Fake::start("localhost").await;
    fake.signs(|_, _| Err(Status::permission_denied("no")));
    assert!(matches!(issue(&fake).await, Err(IssueError::Refused { .. })));
    fake.signs(|_, _| Err(Status::unauthenticated("not yet")));
    assert!(matches!(issue(&fake).await, Err(IssueError::Unavailable { .. })));
    let endpoint = fake.endpoint();
    drop(fake);
    let certificates = Certificates::new(CertificatesConfig::new(Endpoint {
        roots: super::super::Roots::Pem(Authority::new().pem()),
        token: None,
        ..endpoint
    }))
    .unwrap();
    let error = certificates.ask(&identity()).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Unavailable { why, .. } if why.contains("cannot connect to https://localhost")),
        "{error}"
    );
}

#[test]
fn a_root_that_comes_no_more_is_trusted_until_what_it_came_with_ends() {
    let (old, new) = (CertificateDer::from(vec![1]), CertificateDer::from(vec![2]));
    let start = SystemTime::UNIX_EPOCH;
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut roots = Roots::default();
    roots.came(&identity(), std::slice::from_ref(&old), at(100), start);
    roots.came(&identity(), std::slice::from_ref(&new), at(160), at(60));
    let count = |roots: &mut Roots, now| roots.at(now).roots(identity().trust_domain()).len();
    assert_eq!(count(&mut roots, at(99)), 2);
    assert_eq!(count(&mut roots, at(100)), 1);
    assert_eq!(roots.at(at(100)).roots(identity().trust_domain())[0], [2]);
    // More than are kept do not push out what is there.
    for n in 0..=u8::try_from(ROOTS).unwrap() {
        roots.came(&identity(), &[CertificateDer::from(vec![9, n])], at(200), at(100));
    }
    assert_eq!(count(&mut roots, at(100)), ROOTS);
    assert_eq!(roots.at(at(100)).roots(identity().trust_domain())[0], [2]);
}

/// Many who find the connection dead make one, and many who find nobody there do not wait one after the other.
#[tokio::test]
async fn connections_are_made_once_for_all_who_need_one() {
    let fake = Fake::start("localhost").await;
    let certificates = Certificates::new(CertificatesConfig::new(fake.endpoint())).unwrap();
    certificates.ask(&identity()).await.unwrap();
    let (_, first) = certificates.line.channel(None).await.unwrap();
    let again: Vec<_> = (0..8).map(|_| certificates.line.channel(Some(first))).collect();
    let mut numbers = Vec::new();
    for made in futures(again).await {
        numbers.push(made.unwrap().1);
    }
    assert!(
        numbers.iter().all(|number| *number == numbers[0] && *number != first),
        "{numbers:?}"
    );
    certificates.ask(&identity()).await.unwrap();
    assert_eq!(certificates.line.channel(None).await.unwrap().1, numbers[0]);

    // Connections are taken there, and nothing is said.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint {
        address: format!("https://localhost:{}", mute.local_addr().unwrap().port()),
        ..fake.endpoint()
    };
    let certificates = Certificates::new(CertificatesConfig::new(endpoint)).unwrap();
    let whom = identity();
    let clock = FastClock::begin();
    for _ in 0..2 {
        let begun = Instant::now();
        let asked: Vec<_> = (0..8).map(|_| certificates.ask(&whom)).collect();
        for asked in futures(asked).await {
            let error = asked.unwrap_err().to_string();
            assert_eq!(error.matches("cannot connect to https://localhost").count(), 1, "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
    drop(clock);
}

/// All of them, at once.
async fn futures<F: Future>(all: Vec<F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (one, done) in all.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = one.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// As where a clock is off: which of the two it is cannot be told, and both dates can.
#[tokio::test]
async fn a_control_plane_whose_certificate_is_refused_for_its_dates_is_told_with_both() {
    let refused = async |change: fn(&mut CertificateParams), why: &str| {
        let fake = Fake::changed("localhost", change).await;
        let error = issue(&fake).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("the control plane's certificate: {why}, and here it is 20")),
            "{error}"
        );
        assert!(error.ends_with("check those of both machines"), "{error}");
    };
    refused(
        |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        "it was valid until 2020-01-01T00:00:00Z",
    )
    .await;
    refused(
        |params| params.not_before = rcgen::date_time_ymd(2100, 1, 1),
        "it is valid from 2100-01-01T00:00:00Z",
    )
    .await;
}
