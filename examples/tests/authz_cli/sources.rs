//! Where policies are read from: plain files, standard input, and what the shell has opened.

use std::{
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

/// How it ends, which is at once: its code and what it says.
fn ended(dir: &Path, arguments: &[&str], input: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambient"));
    command.current_dir(dir).arg("authz").args(arguments);
    let mut child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..600 {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn what_is_no_plain_file_is_refused_and_never_waited_for() {
    let files = Files::new(&[("good.yaml", SHOP)]);
    let at = |name: &str| files.path(name);
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let refused = |source: &str, why: &str| {
        for verb in [
            &["check"][..],
            &["explain", "--from", "a/b", "--to", "shop", "--port", "1", "--policies"],
        ] {
            let (code, said) = ended(files.0.path(), &[verb, &[source]].concat(), Stdio::null());
            assert_eq!(code, Some(2), "{source}: {said}");
            assert!(said.contains(why) && said.contains(source), "{source}: {said}");
        }
    };
    refused("pipe", "it is a pipe, and no plain file; give it as standard input, as `-`");
    refused("/dev/zero", "it is a device");

    // Nothing of a directory is left out unsaid: it might have been a policy.
    for (name, of, why) in [
        ("link.yaml", Some("nowhere"), "No such file"),
        ("device.json", Some("/dev/zero"), "it is a device"),
        ("pipe.yml", None, "it is a pipe"),
    ] {
        fs::create_dir(at("d")).unwrap();
        fs::copy(at("good.yaml"), at("d/good.yaml")).unwrap();
        fs::create_dir(at("d/within.yaml")).unwrap();
        assert_eq!(ended(files.0.path(), &["check", "d"], Stdio::null()).0, Some(0));
        let odd = at("d").join(name);
        match of {
            Some(of) => symlink(of, odd).unwrap(),
            None => mknodat(CWD, odd, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        }
        let (code, said) = ended(files.0.path(), &["check", "d"], Stdio::null());
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.contains(&format!("d/{name}: {why}")), "{name}: {said}");
        fs::remove_dir_all(at("d")).unwrap();
    }
}

#[test]
fn what_the_shell_has_opened_is_read_to_its_end_and_no_further_than_can_be_meant() {
    let files = Files::new(&[("shop.yaml", SHOP)]);
    // As `<(…)` names it.
    let through_pipe = |name: &str| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(SHOP.as_bytes()));
        let ended = ended(files.0.path(), &["check", name], reader.into());
        writing.join().unwrap().unwrap();
        ended
    };
    let by_name = ended(files.0.path(), &["check", "shop.yaml"], Stdio::null());
    assert_eq!(by_name.0, Some(0), "{}", by_name.1);
    for name in ["-", "/dev/fd/0", "/dev/stdin", "/proc/self/fd/0"] {
        let told = through_pipe(name);
        assert_eq!(
            (told.0, told.1.lines().last()),
            (Some(0), by_name.1.lines().last()),
            "{name}: {}",
            told.1
        );
        let zero = fs::File::open("/dev/zero").unwrap();
        let (code, said) = ended(files.0.path(), &["check", name], zero.into());
        assert!(
            code == Some(2) && said.contains("it is longer than the 256 MiB that are read"),
            "{name}: {said}"
        );
    }
}
