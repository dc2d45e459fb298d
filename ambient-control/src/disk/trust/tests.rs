use std::{fs, os::unix::fs::MetadataExt as _};

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn what_came_is_remembered_and_nothing_of_a_damaged_file() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("state");
    let (file, nothing) = TrustFile::open(&directory, "who.roots").unwrap();
    assert_eq!(nothing, None);
    let root = |domain: &str, der: &[u8], until| Root {
        of: domain.parse().unwrap(),
        der: der.into(),
        until: at(until),
    };
    let known = KeptTrust {
        heard: at(5),
        roots: vec![root("cluster.local", b"one", 100), root("other.example", b"", 200)],
        lists: vec![("cluster.local".parse().unwrap(), b"a list".to_vec())],
    };
    file.keep(&known).unwrap();
    let (_, again) = TrustFile::open(&directory, "who.roots").unwrap();
    assert_eq!(again.as_ref(), Some(&known));
    let at_150 = known.bundles(at(150));
    let domains = ["cluster.local", "other.example"].map(|domain| domain.parse().unwrap());
    assert_eq!(domains.each_ref().map(|domain| at_150.roots(domain).len()), [0, 1]);
    assert_eq!(at_150.crls(&domains[0]), [b"a list".to_vec()]);
    let path = directory.join("who.roots");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        let read = read(&whole[..cut]);
        assert!(read.as_ref().map_or(true, |(_, read)| *read != known), "{cut}: {read:?}");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let (_, read) = TrustFile::open(&directory, "who.roots").unwrap();
        assert_eq!(read, None, "byte {at}");
        assert!(!path.exists(), "byte {at}: it is told with each start");
    }
}

#[test]
fn whom_another_has_vouched_for_is_not_trusted() {
    let scratch = tempfile::tempdir().unwrap();
    let open = |origin| TrustFile::open_of(scratch.path(), "who.roots", origin).unwrap();
    let known = KeptTrust {
        heard: at(5),
        roots: Vec::new(),
        lists: vec![("cluster.local".parse().unwrap(), b"a list".to_vec())],
    };
    // Of before origins were kept.
    open(None).0.keep(&known).unwrap();
    let (one, before) = open(Some("https://one:1"));
    assert_eq!(before.as_ref(), Some(&known));
    one.keep(&known).unwrap();
    assert_eq!(open(Some("https://one:1")).1.as_ref(), Some(&known));
    let (other, nothing) = open(Some("https://other:1"));
    assert_eq!(nothing, None);
    // Until the other has said something, it is what it was.
    assert_eq!(open(Some("https://one:1")).1.as_ref(), Some(&known));
    other.keep(&known).unwrap();
    assert_eq!(
        (open(Some("https://one:1")).1, open(Some("https://other:1")).1),
        (None, Some(known))
    );
}
