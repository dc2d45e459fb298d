use std::{path::Path, sync::Arc};

use ambient_core::TrustDomain;

use super::{
    super::{DelegatedConfig, DelegatedIdentity, Socket, WorkloadApi, WorkloadConfig, fake::*},
    *,
};
use crate::Issuer as _;

const OTHER: &str = "other.example";

fn config(socket: Socket, memory: &MemoryConfig) -> DelegatedConfig {
    DelegatedConfig {
        memory: Some(memory.clone()),
        ..DelegatedConfig::new(socket, "example.org".parse().unwrap(), provider())
    }
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// Waits until what is on disk is this.
async fn kept(directory: &Path, wanted: &TrustBundles, heard: SystemTime) {
    let looking = async {
        loop {
            let (_, kept) = TrustFile::open(directory, "spiffe.roots").unwrap();
            if kept.is_some_and(|kept| kept.bundles(at(0)) == *wanted && kept.heard == heard) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon(looking).await;
}

#[tokio::test]
async fn roots_are_trusted_after_a_restart_while_the_agent_is_away_until_it_says_otherwise() {
    let (mut fake, authority, other, clock) = (Fake::start(), Authority::new(), Authority::new(), Clock::default());
    let scratch = tempfile::tempdir().unwrap();
    let memory = MemoryConfig::new(scratch.path().join("state"));
    let spire = DelegatedIdentity::with_clock(config(fake.socket(), &memory), clock.read()).unwrap();
    let roots = fake.roots().await;
    clock.set(100);
    roots
        .gives(&[("spiffe://example.org", authority.root()), (OTHER, other.root())])
        .await;
    let told = soon(async {
        while spire.trust().domains().count() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
        spire.trust()
    });
    let told = told.await;
    kept(&memory.directory, &told, at(100)).await;
    let secret = std::fs::read(memory.directory.join("spiffe.roots")).unwrap();
    assert!(!secret.windows(11).any(|bytes| bytes == b"PRIVATE KEY"));
    // What is told later takes its place.
    let beside = Authority::new();
    let both = [authority.root(), beside.root()].concat();
    roots.gives(&[("spiffe://example.org", both), (OTHER, other.root())]).await;
    let told = soon(async {
        while spire.trust().roots(&domain("example.org")).len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
        spire.trust()
    });
    let told = told.await;
    kept(&memory.directory, &told, at(100)).await;
    drop(spire);
    drop(roots);
    let directory = fake.stop().await;

    // Another process, while it is away.
    clock.set(1000);
    let spire = DelegatedIdentity::with_clock(config(socket_in(&directory), &memory), clock.read()).unwrap();
    assert_eq!(*spire.trust(), *told);
    assert!(spire.has_roots().await);
    let age = |spire: &DelegatedIdentity| spire.last_heard().unwrap().age(at(1000));
    assert_eq!(age(&spire), Some(Duration::from_secs(900)));
    // It is back: what it gives is judged by what is trusted, and what it says of roots counts, a federation that has ended too.
    let mut fake = Fake::start_in(directory);
    let whom = cart();
    spire.arrives(&whom, &"uid-1".into());
    let (issued, _stream) = tokio::join!(spire.issue(&whom), async {
        let stream = fake.svids().await;
        stream.gives(&[&authority.fresh(CART)]).await;
        stream
    });
    assert_eq!(issued.unwrap().identity, whom);
    let roots = fake.roots().await;
    roots.gives(&[("example.org", beside.root())]).await;
    let now = soon(async {
        while spire.trust().domains().count() > 1 {
            sleep(Duration::from_millis(10)).await;
        }
        spire.trust()
    });
    let now = now.await;
    assert_eq!(now.roots(&domain("example.org")), [beside.root()]);
    assert_eq!(age(&spire), Some(Duration::ZERO));
    kept(&memory.directory, &now, at(1000)).await;
}

#[tokio::test]
async fn the_same_roots_are_dated_anew_when_the_agent_is_back() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let scratch = tempfile::tempdir().unwrap();
    let memory = MemoryConfig::new(scratch.path());
    let mut wanted = TrustBundles::default();
    wanted.add(domain("example.org"), authority.root());
    for seconds in [0, 5000] {
        clock.set(seconds);
        let _spire = DelegatedIdentity::with_clock(config(fake.socket(), &memory), clock.read()).unwrap();
        let roots = fake.roots().await;
        roots.gives(&[("example.org", authority.root())]).await;
        kept(&memory.directory, &wanted, at(seconds)).await;
    }
}

#[tokio::test]
async fn a_process_remembers_whom_its_own_agent_trusts() {
    let (mut fake, authority, foreign) = (Fake::start(), Authority::new(), Authority::new());
    let scratch = tempfile::tempdir().unwrap();
    let memory = MemoryConfig::new(scratch.path());
    let config = |socket| WorkloadConfig {
        memory: Some(memory.clone()),
        ..WorkloadConfig::new(socket, provider())
    };
    let api = WorkloadApi::with_clock(config(fake.socket()), Clock::default().read()).unwrap();
    let stream = fake.own().await;
    let federated = [("spiffe://foreign.example", foreign.root())];
    stream.gives(&[&authority.fresh(CART)], &authority.root(), &federated).await;
    soon(api.issue(&cart())).await.unwrap();
    let told = api.trust();
    assert_eq!(told.domains().count(), 2);
    kept(scratch.path(), &told, at(0)).await;
    drop(api);
    let directory = fake.stop().await;
    let api = WorkloadApi::with_clock(config(socket_in(&directory)), Clock::default().read()).unwrap();
    assert_eq!(*api.trust(), *told);
}

/// It is not only at the start that it may be too old.
#[tokio::test(start_paused = true)]
async fn what_becomes_too_old_while_the_agent_is_away_is_not_gone_by() {
    let (authority, clock) = (Authority::new(), Clock::default());
    let scratch = tempfile::tempdir().unwrap();
    let memory = MemoryConfig {
        longest: Duration::from_secs(3600),
        ..MemoryConfig::new(scratch.path())
    };
    let (file, _) = TrustFile::open(scratch.path(), "spiffe.roots").unwrap();
    let root = Root {
        of: domain("example.org"),
        der: authority.root(),
        until: at(100_000),
    };
    let kept = KeptTrust {
        heard: at(0),
        roots: vec![root],
        lists: Vec::new(),
    };
    file.keep(&kept).unwrap();
    clock.set(3000);
    let socket = socket_in(&Arc::new(tempfile::tempdir().unwrap()));
    let spire = DelegatedIdentity::with_clock(config(socket, &memory), clock.read()).unwrap();
    clock.set(3600);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(spire.trust().domains().count(), 1);
    clock.set(3601);
    sleep(DATED).await;
    assert_eq!(spire.trust().domains().count(), 0);
    assert_eq!(spire.last_heard().unwrap().age(at(3601)), Some(Duration::from_secs(3601)));
}

#[tokio::test]
async fn what_is_too_old_has_ended_or_is_damaged_is_not_gone_by() {
    let scratch = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let memory = MemoryConfig {
        longest: Duration::from_secs(3600),
        ..MemoryConfig::new(scratch.path())
    };
    let (file, _) = TrustFile::open(scratch.path(), "spiffe.roots").unwrap();
    let keep = |until: u64| {
        let root = Root {
            of: domain("example.org"),
            der: authority.root(),
            until: at(until),
        };
        let kept = KeptTrust {
            heard: at(0),
            roots: vec![root],
            lists: Vec::new(),
        };
        file.keep(&kept).unwrap();
    };
    let recalled = |now: u64| {
        let mut kept = Kept::open(&memory, at(now)).unwrap();
        kept.take_recalled().map(|recalled| recalled.bundles.domains().count())
    };
    keep(10_000);
    assert_eq!(recalled(3600), Some(1));
    assert_eq!(recalled(3601), None);
    keep(500);
    assert_eq!((recalled(499), recalled(500)), (Some(1), Some(0)));
    let path = scratch.path().join("spiffe.roots");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(recalled(1), None);
    // A place that others can write is refused at the start.
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let socket = socket_in(&Arc::new(tempfile::tempdir().unwrap()));
    let error = DelegatedIdentity::new(config(socket, &memory)).unwrap_err().to_string();
    assert!(error.contains("others can write here"), "{error}");
}
