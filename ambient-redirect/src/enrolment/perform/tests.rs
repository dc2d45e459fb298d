use super::*;

#[test]
fn segments_that_are_left_are_told_whatever_was_to_be() {
    use IpFamily::{V4, V6};
    let (found, left) = (Segments::Loopback, Segments::Left("no memory".into()));
    let kept = |of| move |family| (family == of).then_some(Aside::Kept(1));
    let link = Segments::Link(Aside::Kept(1));
    let both = [(V4, found.clone()), (V6, found.clone())];
    assert_eq!(whose(&[V4, V6], &both, |_| None), both);
    assert_eq!(whose(&[V4, V6], &both[..1], kept(V6)), [(V4, found), (V6, link.clone())]);
    assert_eq!(whose(&[V4], &both[1..], |_| None), [], "none is there, of either");
    // Also of a family that is not captured.
    let some_left = [(V4, left.clone()), (V6, left)];
    assert_eq!(whose(&[V4], &some_left, kept(V4)), some_left);
    assert_eq!(whose(&[V4], &[], kept(V4)), [(V4, link)]);
}

#[test]
fn what_is_left_is_looked_at_each_time() {
    let pod = Arc::new(PodSpec {
        uid: "a".into(),
        namespace: "demo".into(),
        name: "a".into(),
        service_account: "a".into(),
        addresses: Vec::new(),
        capture: Capture::default(),
        has_run: true,
    });
    let stood = |segments: &[(IpFamily, Segments)]| Stood {
        pod: pod.clone(),
        closed: false,
        heard: Heard::default(),
        at: Instant::now(),
        again: is_any_left(segments),
        listeners: Vec::new(),
        families: Vec::new(),
    };
    let action = Action {
        namespace: NetnsId { dev: 4, ino: 1 },
        pod: pod.clone(),
        step: Step::Verify,
        closed: false,
        unless_it_runs: false,
        enforced: true,
    };
    let is_good = |segments: &[(IpFamily, Segments)]| stood(segments).is_good(&action, Duration::from_secs(3600));
    assert!(is_good(&[(IpFamily::V4, Segments::Link(Aside::NoRoute))]));
    assert!(!is_good(&[(IpFamily::V4, Segments::Left("no memory".into()))]));
}

#[test]
fn proofs_of_pods_that_joined_together_are_spread() {
    let every = Duration::from_secs(30);
    // As numbers of namespaces that were made in a row; other things take numbers in between.
    for step in [1, 2, 3, 7, 64] {
        let mut within = [0; 15];
        for n in 0..250 {
            let id = NetnsId {
                dev: 4,
                ino: 4_026_532_000 + n * step,
            };
            let pause = pause(every, false, id);
            assert!(pause >= every / 2 && pause <= every, "{pause:?}");
            within[((pause - every / 2).as_secs() as usize).min(14)] += 1;
            assert_eq!(super::pause(every, true, id), every, "and so they stay");
        }
        assert!(within.iter().all(|count| (5..=50).contains(count)), "by {step}: {within:?}");
    }
}
