use std::os::unix::fs::{PermissionsExt as _, symlink};

use ambient_core::TrustDomain;
use ambient_testkit::ca::Ca;
use proptest::prelude::*;

use super::*;
use crate::clock;

/// An authority, and what it has issued.
struct Issued {
    scratch: tempfile::TempDir,
    memory: Memory,
    trust: TrustBundles,
    ca: Ca,
}

impl Issued {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let ca = Ca::new(&TrustDomain::default()).unwrap();
        Self {
            memory: Memory::open_anywhere(&scratch.path().join("keys"), "node-1").unwrap(),
            trust: ca.trust(),
            scratch,
            ca,
        }
    }

    fn issue(&self, name: &str) -> Credential {
        self.ca.issue(&id(name)).unwrap()
    }

    fn load(&self) -> Loaded {
        self.memory.load(&TrustBundles::default(), clock::wall())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.memory.file(&id(name)).unwrap()
    }

    /// Nothing is loaded, and one thing is said; what was there is gone.
    fn drops(&self, name: &str, why: &str) {
        let loaded = self.load();
        assert_eq!(loaded.credentials.len(), 0, "{why}");
        assert_eq!(loaded.dropped.len(), 1, "{why}: {:?}", loaded.dropped);
        assert!(loaded.dropped[0].contains(why), "{why}: {:?}", loaded.dropped);
        assert!(self.path(name).symlink_metadata().is_err(), "{why}");
    }
}

fn id(name: &str) -> Identity {
    Identity::new(&TrustDomain::default(), "shop", name).unwrap()
}

#[test]
fn a_nodes_own_certificate_comes_back_and_stands_beside_those_of_its_pods() {
    use ambient_control::istiod::{KeepNode as _, NodeCredential};
    let issued = Issued::new();
    let cart = issued.issue("cart");
    issued.memory.put_trust(&issued.trust).unwrap();
    issued.memory.put(&cart).unwrap();
    let keys = NodeKeys::of(Memory::open_anywhere(&issued.scratch.path().join("keys"), "node-1").unwrap());
    assert!(keys.load().is_none());
    let own = NodeCredential {
        chain: cart.chain.clone(),
        key: cart.key.clone(),
        not_before: cart.not_before,
        not_after: cart.not_after,
        roots: vec![vec![1, 2], vec![3]],
    };
    keys.put(&own).unwrap();
    let loaded = issued.load();
    assert_eq!((loaded.credentials.len(), loaded.dropped.len()), (1, 0), "{:?}", loaded.dropped);
    let back = keys.load().unwrap();
    assert_eq!((&back.chain, back.key.der(), &back.roots), (&own.chain, own.key.der(), &own.roots));
    let path = issued.scratch.path().join("keys/node-1/node");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // One octet that is another makes it none.
    let mut damaged = fs::read(&path).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(keys.load().is_none());
    keys.wipe();
    assert!(!path.exists());
}

#[test]
fn what_is_kept_comes_back_and_nothing_else() {
    let issued = Issued::new();
    let (cart, stock) = (issued.issue("cart"), issued.issue("stock"));
    issued.memory.put_trust(&issued.trust).unwrap();
    issued.memory.put(&issued.issue("cart")).unwrap();
    issued.memory.put(&cart).unwrap();
    issued.memory.put(&stock).unwrap();
    issued.memory.remove(&stock.identity).unwrap();
    issued.memory.remove(&id("nobody")).unwrap();
    let loaded = issued.load();
    assert_eq!(loaded.dropped, Vec::<String>::new());
    assert_eq!(loaded.trust.as_ref(), Some(&issued.trust));
    let [back] = &loaded.credentials[..] else { panic!("{loaded:?}") };
    assert_eq!((&back.identity, &back.chain), (&cart.identity, &cart.chain));
    assert_eq!(back.key.der(), cart.key.der());
    assert_eq!(
        (seconds(back.not_before), seconds(back.not_after)),
        (seconds(cart.not_before), seconds(cart.not_after))
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&issued.path("cart")), mode(&issued.memory.0)), (0o600, 0o700));
}

#[test]
fn what_no_start_would_read_is_not_kept_and_leaves_what_is_there() {
    let issued = Issued::new();
    issued.memory.put_trust(&issued.trust).unwrap();
    issued.memory.put(&issued.issue("cart")).unwrap();
    let mut long = issued.trust.clone();
    long.add_crl(TrustDomain::default(), vec![0; usize::try_from(MOST).unwrap()]);
    let refused = issued.memory.put_trust(&long).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
    assert!(refused.to_string().contains("longer than the 4194304 bytes"), "{refused}");
    let loaded = issued.load();
    assert_eq!((loaded.credentials.len(), loaded.dropped), (1, vec![]));
    assert_eq!(loaded.trust, Some(issued.trust));
    // As long as may be.
    let payload = vec![0; usize::try_from(MOST).unwrap() - HEADER.len() - 8];
    let path = issued.memory.0.join("long");
    Memory::write(&path, &payload).unwrap();
    assert_eq!(issued.memory.read("long").unwrap().unwrap().len() as u64, MOST);
}

#[test]
fn a_certificate_that_nobody_would_accept_is_dropped() {
    let issued = Issued::new();
    issued.memory.put_trust(&issued.trust).unwrap();
    let (cart, stock) = (issued.issue("cart"), issued.issue("stock"));
    let put = |change: &dyn Fn(&mut Credential)| {
        let mut changed = cart.clone();
        change(&mut changed);
        issued.memory.put(&changed).unwrap();
    };
    put(&|one| one.key = stock.key.clone());
    issued.drops("cart", "key");
    put(&|one| one.chain = stock.chain.clone());
    issued.drops("cart", "expected spiffe://cluster.local/ns/shop/sa/cart");
    put(&|one| one.not_after = clock::wall() - Duration::from_secs(5));
    issued.drops("cart", "has ended");
    put(&|one| one.chain.clear());
    issued.drops("cart", "no certificate");
    // Its dates are those of the certificate, whatever the file says.
    issued.memory.put(&cart).unwrap();
    let later = cart.not_after + Duration::from_secs(60);
    let mut long = cart.clone();
    long.not_after = later + Duration::from_secs(60);
    issued.memory.put(&long).unwrap();
    let loaded = issued.memory.load(&TrustBundles::default(), later);
    assert!(
        loaded.credentials.is_empty() || loaded.credentials[0].is_valid_at(clock::wall()),
        "{loaded:?}"
    );
    issued.memory.remove(&cart.identity).unwrap();
    // Another authority's, once the present roots are known.
    issued.memory.put(&cart).unwrap();
    let others = Ca::new(&TrustDomain::default()).unwrap().trust();
    let loaded = issued.memory.load(&others, clock::wall());
    assert_eq!((loaded.credentials.len(), loaded.dropped.len()), (0, 1), "{loaded:?}");
    // The certificate of one in the file of another.
    issued.memory.put(&stock).unwrap();
    fs::rename(issued.path("stock"), issued.path("cart")).unwrap();
    issued.drops("cart", "sa/stock");
}

/// This machine's clock is behind when it starts, and is set then.
#[test]
fn what_has_not_begun_is_no_less_good() {
    let issued = Issued::new();
    issued.memory.put_trust(&issued.trust).unwrap();
    let cart = issued.issue("cart");
    issued.memory.put(&cart).unwrap();
    let behind = cart.not_before - Duration::from_secs(3600);
    let loaded = issued.memory.load(&TrustBundles::default(), behind);
    assert_eq!((loaded.credentials.len(), loaded.dropped.len()), (1, 0), "{loaded:?}");
    assert!(issued.path("cart").exists());
}

#[test]
fn files_that_are_not_ours_are_dropped_and_what_they_lead_to_is_left_alone() {
    let issued = Issued::new();
    issued.memory.put_trust(&issued.trust).unwrap();
    let cart = issued.issue("cart");
    let put = || issued.memory.put(&cart).unwrap();
    let path = issued.path("cart");
    put();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    issued.drops("cart", "others can read or write it");
    // A link to a good one.
    put();
    let elsewhere = issued.scratch.path().join("elsewhere");
    fs::copy(&path, &elsewhere).unwrap();
    let good = fs::read(&elsewhere).unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&elsewhere, &path).unwrap();
    issued.drops("cart", "link");
    assert_eq!(fs::read(&elsewhere).unwrap(), good);
    fs::create_dir(&path).unwrap();
    let loaded = issued.load();
    assert_eq!(loaded.credentials.len() + loaded.dropped.len(), 1, "{loaded:?}");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, vec![0; usize::try_from(MOST).unwrap() + 1]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    issued.drops("cart", "longer");
    // What a process left that was killed while it wrote.
    let draft = path.with_extension("new");
    fs::write(&draft, &good[..40]).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    let loaded = issued.load();
    assert_eq!((loaded.credentials.len(), loaded.dropped.len()), (0, 1), "{loaded:?}");
    assert!(!draft.exists());
    if rustix::process::geteuid().is_root() {
        put();
        // Where one user alone is mapped there is no other.
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            issued.drops("cart", "belongs to the user 12345");
        }
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let issued = Issued::new();
    let cart = issued.issue("cart");
    let says_where = |put: io::Result<()>, path: &Path| {
        let told = put.unwrap_err().to_string();
        assert!(told.starts_with(&format!("{}: ", path.display())), "{told}");
    };
    fs::remove_dir_all(&issued.memory.0).unwrap();
    says_where(issued.memory.put(&cart), &issued.path("cart"));
    says_where(issued.memory.put_trust(&issued.trust), &issued.memory.0.join(TRUST));
    // A directory in the place of the file: the draft is written, and cannot be put there.
    fs::create_dir_all(issued.path("cart").join("x")).unwrap();
    says_where(issued.memory.put(&cart), &issued.path("cart"));
    says_where(issued.memory.remove(&cart.identity), &issued.path("cart"));
    let left: Vec<_> = fs::read_dir(&issued.memory.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let long = Identity::new(&TrustDomain::default(), &"n".repeat(200), &"s".repeat(60)).unwrap();
    let mut named = cart;
    named.identity = long;
    says_where(issued.memory.put(&named), &issued.memory.0);
}

#[test]
fn only_directories_of_ones_own_in_memory_are_taken() {
    let scratch = tempfile::tempdir().unwrap();
    for node in ["", ".", "..", "a/b", ".hidden"] {
        assert!(
            matches!(Memory::open_anywhere(scratch.path(), node), Err(KeysError::Unsafe { .. })),
            "{node}"
        );
    }
    let shared = scratch.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Memory::open_anywhere(&shared, "n").unwrap_err();
    assert!(error.to_string().contains("mode 0777"), "{error}");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(shared.join("n")).unwrap();
    fs::set_permissions(shared.join("n"), fs::Permissions::from_mode(0o750)).unwrap();
    let error = Memory::open_anywhere(&shared, "n").unwrap_err();
    assert!(error.to_string().contains("mode 0750"), "{error}");
    fs::remove_dir(shared.join("n")).unwrap();
    symlink(scratch.path(), shared.join("n")).unwrap();
    assert!(matches!(Memory::open_anywhere(&shared, "n"), Err(KeysError::Unsafe { .. })));
    // The file systems themselves, where they are what they are everywhere.
    let is_memory =
        |path: &Path| rustix::fs::statfs(path).is_ok_and(|of| [i128::from(TMPFS), i128::from(RAMFS)].contains(&i128::from(of.f_type)));
    let disk = scratch.path().join("disk");
    assert_eq!(Memory::open(&disk, "n").is_ok(), is_memory(scratch.path()));
    let shm = Path::new("/dev/shm");
    match tempfile::tempdir_in(shm) {
        Ok(own) if is_memory(shm) => drop(Memory::open(own.path(), "n").unwrap()),
        _ => ambient_testkit::skipped("an identity kept in /dev/shm: that is not in memory, or not ours"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to a file, what is loaded is what was kept, or nothing.
    #[test]
    fn a_damaged_file_is_dropped(cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0_u8..8, flip: bool) {
        let issued = Issued::new();
        issued.memory.put_trust(&issued.trust).unwrap();
        issued.memory.put(&issued.issue("cart")).unwrap();
        let path = issued.path("cart");
        let mut bytes = fs::read(&path).unwrap();
        if flip {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        } else {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        let loaded = issued.load();
        prop_assert_eq!((loaded.credentials.len(), loaded.dropped.len()), (0, 1));
        prop_assert!(!path.exists());
    }

    #[test]
    fn whatever_is_there_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), headed: bool) {
        let mut content = bytes.clone();
        if headed {
            content = [&HEADER[..], &fnv(&bytes).to_be_bytes(), &bytes].concat();
        }
        let _ = decode(&content);
        let _ = decode_trust(&content);
    }
}

/// Keys never touch a disk, and nothing is made there for them.
#[test]
fn a_place_that_is_refused_is_left_as_it_is() {
    let executable = std::env::current_exe().unwrap();
    let disk = tempfile::tempdir_in(executable.parent().unwrap()).unwrap();
    for place in [disk.path().to_owned(), disk.path().join("keys/below")] {
        let error = Memory::open(&place, "node-1").unwrap_err();
        assert!(matches!(error, KeysError::Disk { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    // Nor where others may write, wherever that is.
    let open = disk.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Memory::open_anywhere(&open, "node-1").unwrap_err();
    assert!(matches!(error, KeysError::Unsafe { .. }), "{error}");
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
}
