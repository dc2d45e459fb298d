//! What the workspace promises about itself: who may import whom, what stays pure, where `unsafe` may stand, how long
//! things may get, and that every promised number is shown by something that runs.
//!
//! It reads the sources as text. Each failure says what to do.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What a crate of ours may import of ours, outside of its own tests.
const ARROWS: [(&str, &[&str]); 11] = [
    ("ambient-core", &[]),
    ("ambient-authz", &["core"]),
    ("ambient-tls", &["core"]),
    ("ambient-hbone", &["core", "tls"]),
    ("ambient-redirect", &["core"]),
    ("ambient-dns", &["core"]),
    ("ambient-control", &["core", "authz", "tls"]),
    ("ambient-node", &["core", "authz", "tls", "hbone", "redirect", "dns", "control"]),
    ("ambient-testkit", &["core", "redirect"]),
    (
        "examples",
        &["core", "authz", "tls", "hbone", "redirect", "dns", "control", "node", "testkit"],
    ),
    (
        "benches",
        &["core", "authz", "tls", "hbone", "redirect", "dns", "control", "node", "testkit"],
    ),
];

/// Sources that do no I/O and read no clock.
const PURE: [&str; 3] = ["ambient-core/src", "ambient-authz/src", "ambient-hbone/src/proto"];

/// What no pure source names. Of `std`, see [`IMPURE_STD`] too.
const IMPURE: [&str; 11] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "tracing",
    "rustix",
    "socket2",
    "println!",
];
const IMPURE_STD: [&str; 5] = ["fs", "env", "process", "thread", "os"];

/// What no pure crate depends on, however far down.
const IMPURE_CRATES: [&str; 12] = [
    "tokio",
    "mio",
    "h2",
    "hyper",
    "rustls",
    "aws-lc-rs",
    "ring",
    "socket2",
    "rustix",
    "tracing",
    "prost",
    "serde-saphyr",
];

/// What a program has written, from `ambient-control/proto`.
const GENERATED: &str = "ambient-control/src/wire";

/// Where `unsafe` may stand.
const UNSAFE: [&str; 4] = [
    "ambient-redirect/src/linux",
    "ambient-redirect/src/netlink",
    "ambient-testkit/src",
    "ambient-testkit/tests",
];

const LONGEST_FILE: usize = 800;
const LONGEST_FUNCTION: usize = 100;

#[test]
fn pure_sources_name_no_io_clock_or_async_crate() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test() && PURE.iter().any(|room| s.is_of(room))) {
        let code = source.code();
        let text = code.join("\n");
        for word in IMPURE.iter().filter(|word| names(&text, word)) {
            found.push(format!("{} names `{word}`", source.path));
        }
        for module in IMPURE_STD.iter().filter(|module| names_std(&text, module)) {
            found.push(format!("{} names `std::{module}`", source.path));
        }
    }
    nothing(
        &found,
        "a pure room is handed time, bytes and randomness as arguments: move the call up to the room that does the I/O",
    );
}

#[test]
fn pure_crates_depend_on_nothing_that_does_io() {
    for package in ["ambient-core", "ambient-authz"] {
        let tree = tree(&["-p", package, "--all-features"]);
        let found: Vec<_> = IMPURE_CRATES.iter().filter(|name| tree.contains(**name)).collect();
        nothing(
            &found,
            &format!("{package} must build without these: see `cargo tree -e normal -p {package} -i CRATE` for who brings them"),
        );
    }
}

#[test]
fn without_features_no_crypto_library_is_in_the_tree() {
    for package in ["ambient-tls", "ambient-hbone"] {
        let tree = tree(&["-p", package, "--no-default-features"]);
        let found: Vec<_> = ["aws-lc-rs", "aws-lc-sys", "ring"]
            .into_iter()
            .filter(|name| tree.contains(*name))
            .collect();
        nothing(
            &found,
            &format!("{package} takes its crypto provider as a value: turn off the default features of what brings one"),
        );
    }
}

#[test]
fn arrows_point_down() {
    let mut found = Vec::new();
    for member in members() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == member) else {
            found.push(format!("{member} is not in ARROWS"));
            continue;
        };
        let manifest = read(&format!("{member}/Cargo.toml"));
        for dependency in section(&manifest, "[dependencies]").filter_map(|line| line.strip_prefix("ambient-")) {
            let name: String = dependency.chars().take_while(char::is_ascii_alphanumeric).collect();
            if !allowed.contains(&name.as_str()) {
                found.push(format!("{member} imports ambient-{name}"));
            }
        }
    }
    nothing(
        &found,
        "an import must point down (ARCHITECTURE.md, \"Rooms\"): take what is needed as a value or a trait instead, or draw the arrow there and in ARROWS",
    );
}

#[test]
fn every_member_inherits_the_lint_table() {
    let missing: Vec<_> = members()
        .into_iter()
        .filter(|m| section(&read(&format!("{m}/Cargo.toml")), "[lints]").next() != Some("workspace = true"))
        .collect();
    nothing(
        &missing,
        "add `[lints]` with `workspace = true` to the manifest; what differs goes into `lib.rs` with a reason",
    );
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !UNSAFE.iter().any(|room| s.is_of(room))) {
        for (number, line) in source.code().iter().enumerate() {
            if names(&unquoted(line), "unsafe") {
                found.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    nothing(
        &found,
        "move it to ambient-redirect's linux or netlink, or to the testkit, behind a safe function",
    );

    let members = members();
    let rooms = members
        .iter()
        .filter(|m| m.starts_with("ambient-") && !UNSAFE.iter().any(|room| room.starts_with(&format!("{m}/"))));
    let open: Vec<_> = rooms
        .filter(|m| !read(&format!("{m}/src/lib.rs")).contains("#![forbid(unsafe_code)]"))
        .collect();
    nothing(&open, "add `#![forbid(unsafe_code)]` to its lib.rs");
}

#[test]
fn files_and_functions_stay_short() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test() && !s.is_of(GENERATED)) {
        let lines: Vec<_> = source.text.lines().collect();
        if lines.len() > LONGEST_FILE {
            found.push(format!("{} has {} lines of {LONGEST_FILE}", source.path, lines.len()));
        }
        for (number, length) in functions(&lines).filter(|(_, length)| *length > LONGEST_FUNCTION) {
            found.push(format!(
                "{}:{number}: a function of {length} lines of {LONGEST_FUNCTION}",
                source.path
            ));
        }
    }
    nothing(
        &found,
        "give a part of it a name: a file becomes `foo.rs` and `foo/`, a function becomes the list of its steps",
    );
}

#[test]
fn modules_and_names_keep_the_manners() {
    let mut found = Vec::new();
    for source in sources() {
        // A module that tests share has to be one: a file beside them would be a test of its own.
        if source.path.ends_with("/mod.rs") && !source.is_test() {
            found.push(format!("{}: a module is `foo.rs`, its parts `foo/`", source.path));
        }
        for line in source.code() {
            let mut words = line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .skip_while(|w| !["struct", "enum", "trait", "mod", "fn"].contains(w));
            let (Some(kind), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            let vague = ["manager", "helper", "util", "common"]
                .iter()
                .any(|word| kind != "fn" && name.to_lowercase().contains(word));
            if vague || (kind == "fn" && name.starts_with("get_")) {
                found.push(format!("{}: {kind} {name}", source.path));
            }
        }
    }
    nothing(
        &found,
        "name it after what it is or does; an accessor has the name of what it gives",
    );
}

/// A row of a table in PROMISES.md must name in backticks what shows it: `FILE`, `FILE::TEST` or `FILE::BENCH`, the file
/// as a path from the root.
#[test]
fn every_promise_is_shown_by_something_that_runs() {
    let text = read("PROMISES.md");
    let lines: Vec<_> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with('|') && line.chars().all(|c| "|-: ".contains(c));
    let (mut found, mut rows) = (Vec::new(), 0);
    for (at, line) in lines.iter().enumerate() {
        let is_head = lines.get(at + 1).is_some_and(|next| is_rule(next));
        if !line.starts_with('|') || is_rule(line) || is_head {
            continue;
        }
        rows += 1;
        let shown: Vec<_> = line.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains(".rs")).collect();
        if shown.is_empty() {
            found.push(format!("PROMISES.md:{}: names no file that shows it", at + 1));
        }
        for reference in shown.into_iter().filter(|reference| !runs(reference)) {
            found.push(format!("PROMISES.md:{}: `{reference}` is not there", at + 1));
        }
    }
    nothing(
        &found,
        "a promise without a bench or a test is none: write `path/from/root.rs::name` of what shows it, or take the promise back",
    );
    assert!(
        rows > 0,
        "PROMISES.md has no table with promises: `| promise | shown by | measured |`"
    );
}

/// Whether `FILE` exists, and `NAME` of `FILE::…::NAME` is a function or a bench in it.
fn runs(reference: &str) -> bool {
    let (file, name) = match reference.split_once(".rs::") {
        Some((file, path)) => (format!("{file}.rs"), path.rsplit("::").next()),
        None => (reference.to_owned(), None),
    };
    let Ok(text) = fs::read_to_string(root().join(file)) else {
        return false;
    };
    name.is_none_or(|name| text.contains(&format!("fn {name}(")) || text.contains(&format!("\"{name}\"")))
}

/// Every field that is registered as a metric is also counted with, somewhere outside of tests.
#[test]
fn every_metric_moves() {
    let sources = sources();
    let node: Vec<_> = sources.iter().filter(|s| s.is_of("ambient-node/src") && !s.is_test()).collect();
    let code: String = node
        .iter()
        .flat_map(|s| s.code())
        .flat_map(|line| line.chars().filter(|c| !c.is_whitespace()).collect::<Vec<_>>())
        .collect();
    let (mut found, mut registered) = (Vec::new(), 0);
    for call in code
        .split(".register")
        .skip(1)
        .filter(|call| call.starts_with("(\"") || call.starts_with("_with_unit(\""))
    {
        let call = call.split(");").next().unwrap_or(call);
        let name = call.split('"').nth(1).unwrap_or_default();
        // The last argument: `new.opened.clone()`, `opened.clone()` or `opened`.
        let last = call.rsplit(',').find(|part| !part.is_empty()).unwrap_or_default();
        let field = last
            .trim_end_matches(".clone(")
            .trim_end_matches(".clone()")
            .rsplit(['.', '&'])
            .next()
            .unwrap_or_default();
        registered += 1;
        let moved = code.split(&format!(".{field}.")).skip(1).any(|rest| {
            let statement = rest.split(';').next().unwrap_or(rest);
            [".inc(", ".inc_by(", ".set(", ".dec(", ".observe("]
                .iter()
                .any(|call| format!(".{statement}").contains(call))
        });
        // A counter that is made elsewhere, `log_lines_lost: super::log::lines_lost()`, is counted with there.
        let made = code
            .split(&format!("{field}:super::"))
            .nth(1)
            .and_then(|rest| rest.split("::").next());
        let moved_there = made.is_some_and(|module| {
            node.iter()
                .any(|s| s.path.ends_with(&format!("/{module}.rs")) && s.text.contains(".inc"))
        });
        if !moved && !moved_there {
            found.push(format!("{name} (field `{field}`)"));
        }
    }
    nothing(
        &found,
        "a metric that never moves is worse than none: count with it, or take it out of the registry",
    );
    assert!(
        registered > 0,
        "no metric was found: if registering looks different now, teach this test how"
    );
}

#[test]
fn the_project_speaks_of_itself_alone() {
    // In pieces, so that this file may be read too.
    let paths = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("DESI", "GN.md"),
        concat!("STY", "LE.md"),
        concat!("fac", "ts/"),
    ];
    let words = [
        concat!("this ses", "sion"),
        concat!("previous ses", "sion"),
        concat!("a ses", "sion of"),
        concat!("other ses", "sions"),
    ];
    let mut found = Vec::new();
    for path in files(&root())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e != "lock") || path.ends_with(".ci/run"))
    {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            // One of another project is named with that project.
            let mut before = "";
            let numbered = lower.split(concat!("iss", "ue ")).any(|part| {
                let ours = !before.is_empty() && !before.ends_with("istio ");
                before = part;
                ours && part.trim_start_matches('#').starts_with(|c: char| c.is_ascii_digit())
            });
            if numbered || paths.iter().any(|word| line.contains(word)) || words.iter().any(|word| lower.contains(word)) {
                found.push(format!("{}:{}: {}", relative(&path), number + 1, line.trim()));
            }
        }
    }
    nothing(
        &found,
        "say it in terms of the project, which knows nothing of where and how it was written",
    );
}

#[test]
fn the_scanners_see_what_they_look_for() {
    assert!(names("use tokio::net;", "tokio") && !names("use tokiox::net;", "tokio") && !names("my_tokio", "tokio"));
    assert!(names("Instant::now()", "Instant::now") && names("println!(x)", "println!"));
    assert!(names_std("std::fs::read", "fs") && names_std("use std::{\n    fmt,\n    fs,\n};", "fs"));
    assert!(!names_std("use std::{fmt, ffi::OsStr};\nlet fs = 1;", "fs"));
    let source = Source {
        path: "a/src/b.rs".into(),
        text: "a();\n#[cfg(test)]\nmod tests {\n    b();\n}\nc();\n".into(),
    };
    assert_eq!(source.code(), ["a();", "#[cfg(test)]", "", "", "}", "c();"]);
    assert!(source.is_of("a/src") && source.is_of("a/src/b") && !source.is_of("a/sr") && !source.is_test());
    assert_eq!(bare("let x = 1; // unsafe"), "let x = 1; ");
    assert_eq!(unquoted(r#"a("loop", 'b', "\"c") loop"#), "a(, 'b', ) loop");
    let source = [
        "impl X {",
        "    pub(crate) const fn a(",
        "        b: u8,",
        "    ) -> u8 {",
        "        b",
        "    }",
        "}",
        "fn c() {}",
        "// a fn d",
    ];
    assert_eq!(functions(&source).collect::<Vec<_>>(), [(2, 5), (8, 1)]);
    assert_eq!(
        section("[a]\nx\n[b]\n# c\n\ny = 1\nz\n[d]\nw", "[b]").collect::<Vec<_>>(),
        ["y = 1", "z"]
    );
    assert!(runs("examples/tests/house.rs::runs") && !runs("examples/tests/house.rs::walks") && !runs("examples/none.rs"));
}

/// A Rust source of a member.
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Whether it is a room or lies in it: `a/b` holds `a/b.rs` and `a/b/c.rs`.
    fn is_of(&self, room: &str) -> bool {
        self.path
            .strip_prefix(room)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
            || self.path.starts_with("benches/")
            || self.text.starts_with("// @generated")
    }

    /// Its lines without comments; those of its inline tests are empty.
    fn code(&self) -> Vec<String> {
        let mut in_tests = false;
        let lines = self.text.lines().map(|line| {
            in_tests = (in_tests && line != "}") || line == "mod tests {";
            if in_tests { String::new() } else { bare(line) }
        });
        lines.collect()
    }
}

/// A line without its comment. What stands in a text is left: a text that looks like code is rare, and easily written another way.
fn bare(line: &str) -> String {
    let code = match line.find("//") {
        // Not the `//` of an address in a text.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    };
    code.to_owned()
}

/// A line with what stands between its quotes left out.
fn unquoted(line: &str) -> String {
    let mut quoted = false;
    let mut previous = ' ';
    let mut kept = String::new();
    for c in line.chars() {
        if c == '"' && previous != '\\' && previous != '\'' {
            quoted = !quoted;
        } else if !quoted {
            kept.push(c);
        }
        // An escaped backslash escapes nothing.
        previous = if previous == '\\' { ' ' } else { c };
    }
    kept
}

/// Whether a word stands in a code on its own; the ends of `word` that are not letters need nothing around them.
fn names(code: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(letter);
        let after = code[at + word.len()..].chars().next().is_some_and(letter);
        !(before || after && word.ends_with(letter))
    })
}

/// Whether a module of `std` is named, by its path or in the braces of a `use`.
fn names_std(code: &str, module: &str) -> bool {
    let by_path = names(code, &format!("std::{module}"));
    let imports = code.split("use std::").skip(1).filter_map(|rest| rest.split(';').next());
    by_path || imports.into_iter().any(|import| names(import, module))
}

/// The functions of a formatted source: the number of the first line, and how many lines there are.
fn functions<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = (usize, usize)> + 'a {
    let starts = lines.iter().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        let head = line.split("fn ").next().unwrap_or(line);
        line.len() > head.len()
            && head
                .split_whitespace()
                .all(|w| w.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&w))
    });
    starts.map(|(at, line)| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let signature = lines[at..]
            .iter()
            .position(|line| line.ends_with('{') || line.ends_with(';') || line.ends_with('}'))
            .unwrap_or(0);
        if !lines[at + signature].ends_with('{') {
            return (at + 1, signature + 1);
        }
        let length = lines[at + signature..].iter().position(|line| *line == end).unwrap_or(0);
        (at + 1, signature + length + 1)
    })
}

/// The lines of a section of a manifest that say something.
fn section<'a>(manifest: &'a str, title: &str) -> impl Iterator<Item = &'a str> {
    let mut lines = manifest.lines().skip_while(move |line| *line != title);
    lines.next();
    lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
}

fn members() -> Vec<String> {
    let manifest = read("Cargo.toml");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("the root manifest lists its members");
    members.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for member in members() {
        for path in files(&root().join(member)) {
            if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
                sources.push(Source {
                    path: relative(&path),
                    text,
                });
            }
        }
    }
    assert!(sources.len() > 20, "the sources were not found under {}", root().display());
    sources
}

/// Every file below a directory, but for what is built and what git keeps for itself.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "target" && name != ".git" => found.extend(files(&path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found.sort();
    found
}

/// The names of the crates that a crate of ours is built with on this machine.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args([
            "tree",
            "--locked",
            "--offline",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(arguments)
        .output()
        .expect("cargo runs, as it runs this test");
    assert!(
        output.status.success(),
        "cargo tree {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let crates: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(crates.len() > 1, "cargo tree {arguments:?} lists no crates");
    crates
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .to_owned()
}

#[track_caller]
fn nothing(found: &[impl std::fmt::Display], what_to_do: &str) {
    let list: Vec<_> = found.iter().map(|item| format!("  {item}")).collect();
    assert!(found.is_empty(), "\n{}\n{what_to_do}\n", list.join("\n"));
}
