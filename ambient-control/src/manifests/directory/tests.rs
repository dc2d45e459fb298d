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
    for (errno, remedy) in [
        (Errno::MFILE, "LimitNOFILE"),
        (Errno::NFILE, "LimitNOFILE"),
        (Errno::NOMEM, "memory"),
        (Errno::AGAIN, "pids.max"),
    ] {
        let shortage = io::Error::from_raw_os_error(errno.raw_os_error());
        directory.trouble("old.yaml".as_ref(), &shortage);
        for _ in 0..LOOKS_FOR_OURS - 1 {
            directory.trouble("new.yaml".as_ref(), &shortage);
        }
        let batch = directory.batch(true).unwrap();
        assert_eq!(batch.faults.len(), 2, "both are told of: {:?}", batch.faults);
        assert!(batch.faults.iter().all(|fault| fault.what.contains(remedy)), "{:?}", batch.faults);
        assert!(refusals(&batch).is_empty() && batch.changes.is_empty(), "{batch:?}");
        // It has lasted too long, and refuses once.
        directory.trouble("new.yaml".as_ref(), &shortage);
        let batch = directory.batch(true).unwrap();
        assert!(refusals(&batch).len() == 1 && !batch.changes.is_empty(), "{batch:?}");
        assert!(
            batch.faults.iter().any(|fault| fault.what.contains("refused until it can be read")),
            "{batch:?}"
        );
        directory.trouble("new.yaml".as_ref(), &shortage);
        assert!(directory.batch(true).unwrap().changes.is_empty());
        // The shortage is over: there is no such file.
        for _ in 0..3 {
            directory.look();
        }
        assert!(directory.batch(true).unwrap().faults.is_empty());
    }
    // Any other trouble is the file's own.
    directory.trouble("new.yaml".as_ref(), &io::Error::from_raw_os_error(Errno::IO.raw_os_error()));
    assert_eq!(refusals(&directory.batch(true).unwrap()).len(), 1);
}

/// What has no end, or is no file, is not waited for: it is told, and what its place held before stays.
#[test]
fn what_is_no_plain_file_is_told_and_takes_nothing_away() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::write(at("old.yaml"), POLICY).unwrap();
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    let mut looks = |count: usize| {
        (0..count).for_each(|_| directory.look());
        directory.batch(true).unwrap()
    };
    assert_eq!(looks(2).changes.len(), 1);
    let pipe = |name: &str| rustix::fs::mknodat(rustix::fs::CWD, at(name), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    pipe("draft");
    fs::rename(at("draft"), at("old.yaml")).unwrap();
    // A directory is left alone, whatever its name.
    fs::create_dir(at("other.yaml")).unwrap();
    let batch = looks(3);
    assert!(batch.changes.is_empty() && refusals(&batch).is_empty(), "{batch:?}");
    let [fault] = &*batch.faults else { panic!("{batch:?}") };
    for part in ["old.yaml: cannot be read: it is a pipe", "its last good content stays in force"] {
        assert!(fault.what.contains(part), "{fault}");
    }
    // One that was never anything else could hold a policy.
    std::os::unix::fs::symlink("/dev/zero", at("new.yaml")).unwrap();
    let batch = looks(2);
    assert_eq!(refusals(&batch).len(), 1);
    assert!(
        batch
            .faults
            .iter()
            .any(|fault| fault.what.contains("new.yaml: cannot be read: it is a device"))
    );
    fs::remove_file(at("new.yaml")).unwrap();
    fs::write(at("draft"), POLICY).unwrap();
    fs::rename(at("draft"), at("old.yaml")).unwrap();
    assert!(looks(3).faults.is_empty());
}

/// Of a file that is too long nothing is read, however often it is looked at.
#[test]
fn a_file_that_is_too_long_is_not_read() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("long.yaml");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    #[expect(clippy::disallowed_methods, reason = "it is about time")]
    let begun = std::time::Instant::now();
    (0..1000).for_each(|_| directory.look());
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    let batch = directory.batch(true).unwrap();
    assert!(batch.faults[0].what.contains("longer than the 64 MiB"), "{batch:?}");
}

/// As a ConfigMap is mounted: each name is a link through one that is swapped.
#[test]
fn links_that_lead_to_nothing_take_nothing_away() {
    use std::os::unix::fs::symlink;
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for (version, second) in [("..1", "two"), ("..2", "three")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("one.yaml"), POLICY).unwrap();
        fs::write(at(version).join("second.yaml"), POLICY.replace("one", second)).unwrap();
    }
    let swap = |version: &str| {
        symlink(version, at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
    };
    swap("..1");
    for name in ["one.yaml", "second.yaml"] {
        symlink(format!("..data/{name}"), at(name)).unwrap();
    }
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    let mut looks = |count: usize| {
        (0..count).for_each(|_| directory.look());
        directory.batch(true).unwrap()
    };
    assert_eq!(looks(2).changes.len(), 2);
    // Lost as a whole, or where the new version is not there yet.
    for lost in [true, false] {
        fs::remove_file(at("..data")).unwrap();
        if !lost {
            symlink("..3", at("..data")).unwrap();
        }
        let batch = looks(5);
        assert!(batch.changes.is_empty() && refusals(&batch).is_empty(), "{batch:?}");
        assert_eq!(batch.faults.len(), 2, "{batch:?}");
        for fault in &*batch.faults {
            for part in [
                ".yaml: cannot be read: it is a link to what is not there",
                "its last good content stays in force",
            ] {
                assert!(fault.what.contains(part), "{fault}");
            }
        }
        swap("..1");
        let batch = looks(3);
        assert!(batch.changes.is_empty() && batch.faults.is_empty(), "{batch:?}");
    }
    swap("..2");
    let batch = looks(2);
    assert!(batch.changes.len() == 2 && batch.faults.is_empty(), "{batch:?}");
    // What a new version lacks goes with its link, and not before.
    fs::remove_file(at("..2/second.yaml")).unwrap();
    let batch = looks(3);
    assert!(batch.changes.is_empty() && batch.faults.len() == 1, "{batch:?}");
    fs::remove_file(at("second.yaml")).unwrap();
    let batch = looks(2);
    assert!(batch.changes.len() == 1 && batch.faults.is_empty(), "{batch:?}");
    // One that never led anywhere could lead to any policy.
    symlink("..data/third.yaml", at("third.yaml")).unwrap();
    assert_eq!(refusals(&looks(2)).len(), 1);
    fs::remove_file(at("third.yaml")).unwrap();
    let batch = looks(2);
    assert!(batch.changes.len() == 1 && batch.faults.is_empty(), "{batch:?}");
}

/// The only file goes like all of several: that is told, and what it held stays until something says that nothing is meant.
#[test]
fn a_directory_that_loses_its_only_file_keeps_what_it_held() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    fs::write(at("one.yaml"), POLICY).unwrap();
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    let mut looks = |count: usize| {
        (0..count).for_each(|_| directory.look());
        directory.batch(true).unwrap()
    };
    assert_eq!(looks(2).changes.len(), 1);
    // By another name it is there all the same.
    fs::rename(at("one.yaml"), at("other.yaml")).unwrap();
    assert!(looks(3).faults.is_empty());
    fs::remove_file(at("other.yaml")).unwrap();
    let batch = looks(5);
    assert!(batch.changes.is_empty(), "{batch:?}");
    assert!(
        batch.faults.len() == 1 && batch.faults[0].what.contains("none of its manifests is there any more"),
        "{batch:?}"
    );
    // Of what was never good nothing stays, nor of what says that nothing is meant.
    fs::write(at("none.yaml"), "{apiVersion: v1, kind: List, items: []}").unwrap();
    let batch = looks(2);
    assert!(batch.changes.len() == 1 && batch.faults.is_empty(), "{batch:?}");
    fs::remove_file(at("none.yaml")).unwrap();
    assert!(looks(2).faults.is_empty());
    fs::write(at("bad.yaml"), "kind: [").unwrap();
    assert_eq!(refusals(&looks(2)).len(), 1);
    fs::remove_file(at("bad.yaml")).unwrap();
    assert!(looks(2).faults.is_empty());
}

/// A directory of so many policies, as it is after some looks.
fn of_many(count: usize) -> (tempfile::TempDir, Directory) {
    let scratch = tempfile::tempdir().unwrap();
    for n in 0..count {
        fs::write(scratch.path().join(format!("{n:04}.yaml")), named(n, "")).unwrap();
    }
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    (0..10).for_each(|_| directory.look());
    assert_eq!(directory.batch(true).unwrap().changes.len(), count);
    (scratch, directory)
}

/// A policy that each has of its own, with something more in its specification.
fn named(n: usize, spec: &str) -> String {
    POLICY
        .replace("name: one", &format!("name: p{n}"))
        .replace("}}", &format!("}}, spec: {{{spec}}}}}"))
}

/// Whatever there is, looks at it take little; and what was changed in place is seen within a round, all of it once some is.
#[test]
fn of_many_files_some_are_looked_at_in_turn() {
    let count = 4 * AT_ONCE + 10;
    let (scratch, mut directory) = of_many(count);
    let at = |n: usize| scratch.path().join(format!("{n:04}.yaml"));
    fs::write(at(0), named(0, "action: DENY")).unwrap();
    let mut looks = 0;
    while directory.unsettled().is_empty() {
        let left = directory.round.left.len();
        directory.look();
        assert!(left.saturating_sub(directory.round.left.len()) <= AT_ONCE, "{left}");
        looks += 1;
        assert!(looks <= 6, "it is not seen within a round");
    }
    (0..3).for_each(|_| directory.look());
    assert_eq!(directory.batch(true).unwrap().changes.len(), 1);
    for n in 0..count {
        fs::write(at(n), named(n, "action: ALLOW, rules: [{}]")).unwrap();
    }
    let mut changed = Vec::new();
    for _ in 0..4 {
        directory.look();
        changed.push(directory.batch(true).unwrap().changes.len());
    }
    assert!(changed.iter().sum::<usize>() == count && directory.is_settled(), "{changed:?}");
    // Few are looked at with every look.
    let (scratch, mut directory) = of_many(AT_ONCE);
    for n in 0..AT_ONCE {
        fs::write(scratch.path().join(format!("{n:04}.yaml")), named(n, "action: DENY")).unwrap();
    }
    (0..2).for_each(|_| directory.look());
    assert_eq!(directory.batch(true).unwrap().changes.len(), AT_ONCE);
}

/// As files are written over: the one that lost it is seen first, and the one that has it now with the next look, not a round later.
#[test]
fn what_moves_from_one_file_to_another_in_place_is_hardly_missed_among_many() {
    let count = 4 * AT_ONCE;
    let (scratch, mut directory) = of_many(count);
    let at = |n: usize| scratch.path().join(format!("{n:04}.yaml"));
    let both = format!("{}\n---\n{}", named(0, ""), named(count - 1, ""));
    fs::write(at(0), both).unwrap();
    fs::write(at(count - 1), "{apiVersion: v1, kind: List, items: []}").unwrap();
    let changes: Vec<_> = (0..7)
        .map(|_| {
            directory.look();
            directory.batch(true).unwrap().changes.len()
        })
        .collect();
    // It goes with one look, and is there again with the next.
    assert_eq!(changes, [0, 1, 1, 0, 0, 0, 0]);
    // What stays unreadable has nothing else looked at.
    let link = scratch.path().join("dangling.yaml");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    (0..10).for_each(|_| directory.look());
    for _ in 0..8 {
        let left = directory.round.left.len();
        directory.look();
        assert!(directory.round.left.len() >= left.saturating_sub(AT_ONCE) && directory.round.whole == 0);
    }
}

/// However many there are: two looks, as of few.
#[test]
fn what_is_put_there_replaced_or_removed_is_seen_at_once_among_many() {
    use std::os::unix::fs::symlink;
    let count = 4 * AT_ONCE;
    let (scratch, mut directory) = of_many(count);
    let at = |name: &str| scratch.path().join(name);
    let mut changes = |what: &str, wanted: usize| {
        // What changes twice within a tick of the file system's clock looks alike.
        std::thread::sleep(std::time::Duration::from_millis(20));
        directory.look();
        assert!(directory.batch(false).is_none(), "{what}");
        directory.look();
        assert_eq!(directory.batch(true).unwrap().changes.len(), wanted, "{what}");
        (0..3).for_each(|_| directory.look());
        assert!(directory.batch(false).is_none(), "{what}");
    };
    fs::write(at("new.yaml"), named(count, "")).unwrap();
    changes("put there", 1);
    fs::write(at("draft"), named(7, "action: DENY")).unwrap();
    fs::rename(at("draft"), at("0007.yaml")).unwrap();
    changes("replaced", 1);
    fs::rename(at("0008.yaml"), at("8.yaml")).unwrap();
    changes("renamed", 0);
    fs::remove_file(at("0009.yaml")).unwrap();
    changes("removed", 1);
    fs::hard_link(at("0010.yaml"), at("again.yaml")).unwrap();
    fs::remove_file(at("0010.yaml")).unwrap();
    changes("by another name", 0);
    // By a link that is swapped, as a ConfigMap is mounted.
    for (version, spec) in [("..1", ""), ("..2", "action: DENY")] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("linked.yaml"), named(count + 1, spec)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/linked.yaml", at("linked.yaml")).unwrap();
    changes("linked", 1);
    symlink("..2", at("..tmp")).unwrap();
    fs::rename(at("..tmp"), at("..data")).unwrap();
    changes("swapped", 1);
    // The whole directory, at once.
    let next = scratch.path().with_extension("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("one.yaml"), named(0, "action: DENY")).unwrap();
    fs::rename(scratch.path(), scratch.path().with_extension("before")).unwrap();
    fs::rename(&next, scratch.path()).unwrap();
    changes("another directory", count + 1);
    fs::remove_dir_all(scratch.path().with_extension("before")).unwrap();
}

/// What lies elsewhere changes nothing in the directory itself.
#[test]
fn what_is_changed_elsewhere_is_seen_within_a_round() {
    use std::os::unix::fs::symlink;
    let count = 2 * AT_ONCE;
    let (scratch, mut directory) = of_many(count);
    let elsewhere = tempfile::tempdir().unwrap();
    let (linked, hard) = (elsewhere.path().join("linked"), elsewhere.path().join("hard"));
    fs::write(&linked, named(count, "")).unwrap();
    symlink(&linked, scratch.path().join("linked.yaml")).unwrap();
    fs::hard_link(scratch.path().join("0000.yaml"), &hard).unwrap();
    (0..10).for_each(|_| directory.look());
    assert_eq!(directory.batch(true).unwrap().changes.len(), 1);
    fs::write(&linked, named(count, "action: DENY")).unwrap();
    fs::write(&hard, named(0, "action: DENY")).unwrap();
    (0..5).for_each(|_| directory.look());
    assert_eq!(directory.batch(true).unwrap().changes.len(), 2);
}

/// It could hold a policy that refuses, whatever bytes it is called by.
#[test]
fn a_file_whose_name_is_no_text_is_read_like_any_other() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &[u8]| scratch.path().join(OsStr::from_bytes(name));
    fs::write(at(b"deny-\xff.yaml"), POLICY).unwrap();
    let mut directory = Directory::new(scratch.path().into(), Settings::default());
    let mut looks = |count: usize| {
        (0..count).for_each(|_| directory.look());
        directory.batch(true).unwrap()
    };
    let batch = looks(2);
    assert!(batch.changes.len() == 1 && batch.faults.is_empty(), "{batch:?}");
    // Two that are told alike are two: the one that is mended lets nobody in whom the other refuses.
    let bad = [at(b"bad-\xfe.yaml"), at(b"bad-\xff.yaml"), at("bad-\u{fffd}.yaml".as_bytes())];
    for (n, path) in bad.iter().enumerate() {
        fs::write(path, "kind: [").unwrap();
        let batch = looks(2);
        assert_eq!((refusals(&batch).len(), batch.changes.len()), (n + 1, 1), "{batch:?}");
        assert!(batch.faults[n].what.contains("bad-\u{fffd}.yaml:1"), "{batch:?}");
    }
    for (n, path) in bad.iter().enumerate() {
        fs::remove_file(path).unwrap();
        let batch = looks(3);
        assert_eq!((refusals(&batch).len(), batch.changes.len()), (2 - n, 1), "{batch:?}");
    }
    // What is another's already is told with both.
    fs::write(at(b"again-\xff.yaml"), POLICY).unwrap();
    let [fault] = &*looks(2).faults else { panic!("one fault") };
    for part in ["again-\u{fffd}.yaml:1", "stands in deny-\u{fffd}.yaml already"] {
        assert!(fault.what.contains(part), "{fault}");
    }
    fs::remove_file(at(b"again-\xff.yaml")).unwrap();
    // Gone it takes away what it held, where another says that nothing is meant.
    fs::write(at(b"none.yaml"), "{apiVersion: v1, kind: List, items: []}").unwrap();
    fs::remove_file(at(b"deny-\xff.yaml")).unwrap();
    let batch = looks(3);
    assert!(batch.changes.len() == 1 && batch.faults.is_empty(), "{batch:?}");
}
