use super::*;

const POLICY: &str = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: one, namespace: shop}}";

/// What refuses everything.
fn refusals(batch: &Batch) -> Vec<&str> {
    batch
        .faults
        .iter()
        .filter_map(|fault| Some(fault.policy.as_ref()?.as_str()))
        .collect()
}

/// What this process is short of says nothing of a file: the last good content stays, and a file that is new is not seen yet,
/// for a while.
#[test]
fn a_shortage_of_ours_refuses_nobody_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("old.yaml"), POLICY).unwrap();
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    for _ in 0..2 {
        directory.look();
    }
    assert!(directory.batch(true).unwrap().faults.is_empty());
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        let shortage = io::Error::from_raw_os_error(errno.raw_os_error());
        directory.trouble("old.yaml", &shortage);
        for _ in 0..LOOKS_FOR_OURS - 1 {
            directory.trouble("new.yaml", &shortage);
        }
        let batch = directory.batch(true).unwrap();
        assert_eq!(batch.faults.len(), 2, "both are told of: {:?}", batch.faults);
        assert!(refusals(&batch).is_empty() && batch.changes.is_empty(), "{batch:?}");
        // It has lasted too long, and refuses once.
        directory.trouble("new.yaml", &shortage);
        let batch = directory.batch(true).unwrap();
        assert!(refusals(&batch).len() == 1 && !batch.changes.is_empty(), "{batch:?}");
        directory.trouble("new.yaml", &shortage);
        assert!(directory.batch(true).unwrap().changes.is_empty());
        // The shortage is over: there is no such file.
        for _ in 0..3 {
            directory.look();
        }
        assert!(directory.batch(true).unwrap().faults.is_empty());
    }
    // Any other trouble is the file's own.
    directory.trouble("new.yaml", &io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
    assert_eq!(refusals(&directory.batch(true).unwrap()).len(), 1);
}
