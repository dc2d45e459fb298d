use std::{
    fs::OpenOptions,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;

use super::*;
use crate::disk::trust::{KeptTrust, Root, TrustFile};

fn kept(text: &str) -> Kept {
    Kept {
        version: text.into(),
        body: text.repeat(3).into(),
    }
}

/// Whose it is.
const OF: &str = "istiod";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn reopen(directory: &Path) -> Remembered {
    Memory::open(directory, OF).unwrap().1.unwrap()
}

#[test]
fn what_was_noted_is_there_and_nobody_else_reads_it() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("memory");
    let (mut memory, remembered) = Memory::open(&directory, OF).unwrap();
    assert_eq!(remembered.unwrap(), Remembered::default());
    let put = |name: &str| Entry::Put(Kind::Address, name.into(), kept(name));
    memory.note(&[put("a"), put("b")], Some(at(5))).unwrap();
    memory
        .note(&[Entry::Remove(Kind::Address, "a".into()), put("c")], Some(at(6)))
        .unwrap();
    memory.note(&[], Some(at(60))).unwrap();
    let remembered = reopen(&directory);
    let names: Vec<&str> = remembered.resources.keys().map(|(_, name)| name.as_str()).collect();
    assert_eq!((names, remembered.heard), (vec!["b", "c"], Some(at(60))));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("istiod.state"))), (0o700, 0o600));
}

#[test]
fn half_of_a_first_state_is_never_a_whole_one() {
    let scratch = tempfile::tempdir().unwrap();
    let put = |name: &str| Entry::Put(Kind::Address, name.into(), kept(name));
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.note(&[put("a")], None).unwrap();
    memory.note(&[], None).unwrap();
    drop(memory);
    // Nor is it by being read, and written anew.
    for _ in 0..2 {
        let half = reopen(scratch.path());
        assert_eq!((half.resources.len(), half.heard), (1, None));
    }
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.note(&[put("b")], Some(at(5))).unwrap();
    // Half of the next state is as old as the whole before it.
    memory.note(&[put("c")], None).unwrap();
    drop(memory);
    for _ in 0..2 {
        let whole = reopen(scratch.path());
        assert_eq!((whole.resources.len(), whole.heard), (3, Some(at(5))));
    }
    // Also where it had to wait for room.
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    let file = without_room(&mut memory);
    memory.note(&[put("d")], Some(at(6))).unwrap_err();
    memory.file = Some(file);
    memory.note(&[], None).unwrap();
    drop(memory);
    assert_eq!(reopen(scratch.path()).heard, Some(at(6)));
}

#[test]
fn what_another_has_said_is_no_state_to_begin_with_and_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let put = |name: &str| Entry::Put(Kind::Address, name.into(), kept(name));
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.note(&[put("a")], Some(at(5))).unwrap();
    memory.tidy().unwrap();
    drop(memory);
    assert_eq!(reopen(scratch.path()).resources.len(), 1);
    let (mut memory, remembered) = Memory::open(scratch.path(), "another").unwrap();
    let why = remembered.unwrap_err().to_string();
    assert!(why.contains("holds the state of istiod, and that of another is wanted"), "{why}");
    memory.note(&[put("b")], Some(at(6))).unwrap();
    drop(memory);
    assert_eq!(found(scratch.path()).resources.len(), 1, "what was there is gone");
    assert!(Memory::open(scratch.path(), OF).unwrap().1.is_err());
    // Who has only begun one has said nothing.
    assert_eq!(Memory::open(scratch.path(), "another").unwrap().1.unwrap(), Remembered::default());
    // A file that names nobody could be anybody's.
    let mut nobodys = MAGIC.to_vec();
    record(&mut nobodys, &put_payload("a"));
    record(&mut nobodys, &mark(at(5)));
    fs::write(scratch.path().join("istiod.state"), nobodys).unwrap();
    let why = Memory::open(scratch.path(), OF).unwrap().1.unwrap_err().to_string();
    assert!(why.contains("holds the state of nobody that it names"), "{why}");
}

fn put_payload(name: &str) -> Vec<u8> {
    put(Kind::Address, name, &kept(name))
}

#[test]
fn a_torn_end_is_left_out_and_other_damage_refuses_the_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("istiod.state");
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    for n in 0..4u64 {
        memory
            .note(
                &[Entry::Put(Kind::Authorization, format!("shop/{n}").into(), kept("x"))],
                Some(at(n)),
            )
            .unwrap();
    }
    let whole = fs::read(&path).unwrap();
    let all = read(&whole).unwrap();
    for end in 0..whole.len() {
        let torn = read(&whole[..end]).expect("a torn end is none");
        assert!(torn.heard <= all.heard && torn.resources.len() <= 4);
        assert_eq!(
            torn.resources.len(),
            torn.heard
                .map_or(0, |t| t.duration_since(UNIX_EPOCH).unwrap().as_secs() as usize + 1)
        );
    }
    let last_mark = whole.len() - HEAD - 9;
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x40;
        let read = read(&damaged);
        // What was written last may have been written in part.
        let may_be_torn = place >= last_mark + HEAD;
        assert_eq!(read.is_ok(), may_be_torn, "at {place} of {}", whole.len());
        assert!(read.is_err() || read.unwrap().resources.len() == 3, "at {place}");
    }
    let mut room = whole.clone();
    room.resize(whole.len() + 100, 0);
    assert_eq!(read(&room).unwrap(), all);
    let mut damaged = whole;
    damaged[40] ^= 1;
    fs::write(&path, damaged).unwrap();
    let (_, remembered) = Memory::open(scratch.path(), OF).unwrap();
    let why = remembered.unwrap_err().to_string();
    assert!(why.contains("istiod.state is damaged at byte 16"), "{why}");
    assert_eq!(reopen(scratch.path()), Remembered::default(), "it is begun anew");
}

#[test]
fn a_file_is_made_anew_where_most_of_it_is_out_of_date_and_not_before() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.spare = 4096;
    let inode = || fs::metadata(scratch.path().join("istiod.state")).unwrap().ino();
    let names: Vec<Arc<str>> = (0..200).map(|n| Arc::from(format!("shop/{n}"))).collect();
    let put = |text: &str| -> Vec<Entry> {
        let put = |name: &Arc<str>| Entry::Put(Kind::Address, name.clone(), kept(text));
        names.iter().map(put).collect()
    };
    let first = inode();
    memory.note(&put("first"), Some(at(1))).unwrap();
    assert_eq!(inode(), first, "all of it counts");
    memory.note(&put("other")[..180], Some(at(2))).unwrap();
    assert_eq!(inode(), first, "most of it counts");
    memory.note(&put("third"), Some(at(3))).unwrap();
    assert_ne!(inode(), first);
    let second = inode();
    // What comes and goes under ever new names is out of date as well.
    for n in 0..2000 {
        let name: Arc<str> = format!("shop/new-{n}").into();
        memory
            .note(&[Entry::Put(Kind::Address, name.clone(), kept("x"))], Some(at(4)))
            .unwrap();
        memory.note(&[Entry::Remove(Kind::Address, name)], Some(at(4))).unwrap();
        if inode() != second {
            break;
        }
    }
    assert_ne!(inode(), second);
    assert_eq!((memory.records.len(), reopen(scratch.path()).resources.len()), (200, 200));
}

#[test]
fn places_that_others_can_write_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chmod(scratch.path(), 0o777);
    let error = Memory::open(scratch.path(), OF).unwrap_err().to_string();
    assert!(error.contains("others can write here"), "{error}");
    chmod(scratch.path(), 0o700);
    drop(Memory::open(scratch.path(), OF).unwrap());
    chmod(&scratch.path().join("istiod.state"), 0o666);
    assert!(
        Memory::open(scratch.path(), OF)
            .unwrap_err()
            .to_string()
            .contains("others can write it")
    );
}

/// As where there is no room: what is written does not come.
fn without_room(memory: &mut Memory) -> File {
    let no_room = OpenOptions::new().write(true).open("/dev/full").unwrap();
    memory.file.replace(no_room).unwrap()
}

#[test]
fn without_room_a_start_finds_nothing_and_with_room_all_of_it() {
    let scratch = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| Entry::Put(Kind::Address, name.into(), kept(text));
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.note(&[put("a", "1"), put("b", "1")], Some(at(5))).unwrap();
    let whole = fs::read(scratch.path().join("istiod.state")).unwrap();
    let file = without_room(&mut memory);
    let told = memory.note(&[], Some(at(6))).unwrap_err().to_string();
    assert!(told.contains("istiod.state: No space left on device"), "{told}");
    assert_eq!(
        fs::read(scratch.path().join("istiod.state")).unwrap(),
        whole,
        "nothing that was said is missing"
    );
    memory
        .note(&[put("a", "2"), Entry::Remove(Kind::Address, "b".into())], Some(at(7)))
        .unwrap_err();
    memory.note(&[put("a", "3"), put("c", "1")], Some(at(8))).unwrap_err();
    assert!(!memory.is_lost());
    let names = || -> Vec<String> {
        let entries = fs::read_dir(scratch.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(), ["istiod.state.behind"], "what is out of date is nowhere to be found");
    memory.file = Some(file);
    memory.note(&[], Some(at(9))).unwrap();
    memory.note(&[put("d", "1")], Some(at(10))).unwrap();
    assert_eq!(names(), ["istiod.state"]);
    drop(memory);
    let remembered = reopen(scratch.path());
    let found: Vec<_> = remembered
        .resources
        .iter()
        .map(|((_, name), kept)| format!("{name}{}", kept.version))
        .collect();
    assert_eq!((found.join(" "), remembered.heard), ("a3 c1 d1".into(), Some(at(10))));
    // A process that ends before there is room leaves nothing for the next.
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    without_room(&mut memory);
    memory.note(&[put("a", "4")], Some(at(11))).unwrap_err();
    drop(memory);
    assert_eq!(reopen(scratch.path()), Remembered::default());
    assert_eq!(names(), ["istiod.state"]);
}

#[test]
fn a_start_without_room_goes_on_with_the_file_that_is_there_or_waits_for_one() {
    let scratch = tempfile::tempdir().unwrap();
    let put = |name: &str| Entry::Put(Kind::Address, name.into(), kept("x"));
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    memory.note(&[put("a")], Some(at(5))).unwrap();
    drop(memory);
    let path = scratch.path().join("istiod.state");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&[7; 5]);
    fs::write(&path, &bytes).unwrap();
    let (said, end) = read_up_to(&bytes).unwrap();
    assert_eq!(end, bytes.len() as u64 - 5);
    let mut memory = Memory::go_on_with(path.clone(), OF, &said, end).unwrap();
    memory.note(&[put("b")], Some(at(6))).unwrap();
    drop(memory);
    let names: Vec<_> = reopen(scratch.path()).resources.into_keys().map(|(_, name)| name).collect();
    assert_eq!(names, ["a", "b"]);
    // Where there was none, all that is noted is owed.
    let elsewhere = scratch.path().join("not-yet");
    let mut memory = Memory::owing(elsewhere.join("istiod.state"), OF);
    fs::write(&elsewhere, "in the way").unwrap();
    memory.note(&[put("c")], Some(at(7))).unwrap_err();
    fs::remove_file(&elsewhere).unwrap();
    memory.note(&[put("d")], Some(at(8))).unwrap();
    drop(memory);
    let names: Vec<_> = reopen(&elsewhere).resources.into_keys().map(|(_, name)| name).collect();
    assert_eq!(names, ["c", "d"]);
}

#[test]
fn what_is_owed_is_bounded() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    without_room(&mut memory);
    let large = |name: &str| {
        let body = vec![0; 20 << 20];
        Entry::Put(Kind::Address, name.into(), Kept { version: "1".into(), body })
    };
    for _ in 0..5 {
        memory.note(&[large("the same")], Some(at(5))).unwrap_err();
        assert!(!memory.is_lost());
    }
    for name in ["a", "b", "c"] {
        memory.note(&[large(name)], Some(at(5))).unwrap_err();
    }
    assert!(memory.is_lost());
    memory.discard();
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// State and roots are written at the same time, into the same directory.
#[test]
fn no_file_is_written_through_another() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
    let (roots, _) = TrustFile::open(scratch.path(), "istiod.roots").unwrap();
    memory
        .note(&[Entry::Put(Kind::Address, "a".into(), kept("x"))], Some(at(5)))
        .unwrap();
    let root = Root {
        of: "cluster.local".parse().unwrap(),
        der: vec![1; 1000],
        until: at(100),
    };
    let known = KeptTrust {
        heard: at(5),
        roots: vec![root],
        lists: Vec::new(),
    };
    std::thread::scope(|scope| {
        let keeping = scope.spawn(|| (0..200).try_for_each(|_| roots.keep(&known)));
        for _ in 0..200 {
            memory.tidy().unwrap();
        }
        keeping.join().unwrap().unwrap();
    });
    assert_eq!(reopen(scratch.path()).resources.len(), 1);
    assert_eq!(TrustFile::open(scratch.path(), "istiod.roots").unwrap().1, Some(known));
}

proptest! {
    /// Whatever is noted, over whatever number of rewritings: the last word for each name is what is remembered.
    #[test]
    fn the_last_word_counts(notes in prop::collection::vec(prop::collection::vec((0..6u8, 0..50u8, any::<bool>()), 0..4), 0..60)) {
        let scratch = tempfile::tempdir().unwrap();
        let (mut memory, _) = Memory::open(scratch.path(), OF).unwrap();
        memory.spare = 4096;
        let mut truth = Remembered::default();
        for (time, note) in notes.into_iter().enumerate() {
            let mut entries = Vec::new();
            for (name, value, put) in note {
                let key = (if name % 2 == 0 { Kind::Address } else { Kind::Authorization }, name.to_string());
                let value = kept(&value.to_string().repeat(20));
                if put {
                    truth.resources.insert(key.clone(), value.clone());
                    entries.push(Entry::Put(key.0, key.1.into(), value));
                } else {
                    truth.resources.remove(&key);
                    entries.push(Entry::Remove(key.0, key.1.into()));
                }
            }
            truth.heard = Some(at(time as u64));
            memory.note(&entries, Some(at(time as u64))).unwrap();
        }
        drop(memory);
        prop_assert_eq!(reopen(scratch.path()), truth);
        prop_assert!(fs::metadata(scratch.path().join("istiod.state")).unwrap().len() < 20_000);
    }

    #[test]
    fn no_bytes_make_it_stumble(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&bytes);
        let _ = read(&file);
        let _ = read(&bytes);
        let mut file = MAGIC.to_vec();
        record(&mut file, &bytes);
        record(&mut file, &mark(at(1)));
        let _ = read(&file);
    }
}
