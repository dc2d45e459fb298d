//! A root's key that is stolen, at whatever stage of a change of roots.

use super::*;

/// All that lies in a directory, as a thief has it.
fn copy(from: &Path, to: &Path) {
    directory::make(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn a_root_that_was_made_since_ends_what_a_stolen_key_is_worth() {
    for under_way in 0..3 {
        let mesh = Mesh::new();
        let node = mesh.node("a");
        let rotate = |dir: &Path| Authority::open(dir).unwrap().rotate(Duration::ZERO, mesh.now).unwrap();
        for _ in 0..under_way {
            rotate(&mesh.dir);
        }
        mesh.issue(&node, "cart");
        let stolen = mesh.dir.with_extension("stolen");
        copy(&mesh.dir, &stolen);
        // With each key that is there, and with what is signed by now.
        let forged: Vec<_> = (0..3)
            .map(|_| {
                let forged = mesh.issue(&mesh.node_in(&stolen, "a").unwrap(), "cart");
                rotate(&stolen);
                forged
            })
            .collect();
        let accepted = |trust: &TrustBundles| forged.iter().filter(|forged| mesh.verify(trust, forged).is_ok()).count();
        assert!(accepted(&mesh.trust(&node)) > 0, "{under_way}");
        let mut calls = 1;
        while !matches!(rotate(&mesh.dir), Rotation::Trusted { .. }) {
            calls += 1;
        }
        assert_eq!(calls, [1, 3, 2][under_way]);
        assert!(matches!(rotate(&mesh.dir), Rotation::Used { .. }));
        assert!(matches!(rotate(&mesh.dir), Rotation::Withdrawn { .. }));
        let trust = mesh.trust(&node);
        assert_eq!(accepted(&trust), 0, "{under_way}");
        mesh.verify(&trust, &mesh.issue(&node, "cart")).unwrap();
        assert!(!mesh.dir.join("old-key.pem").exists() && !mesh.dir.join("next-key.pem").exists());
    }
}
