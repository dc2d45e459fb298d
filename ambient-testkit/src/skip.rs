//! What could not be checked on this machine.

use std::{
    env,
    fmt::Display,
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

/// Says in one line, which begins with `SKIPPED:`, that a test passes without having checked something, and why.
///
/// What a test prints nobody sees if it passes, so the line is written to the end of the file that `AMBIENT_SKIPPED` names as well,
/// where it names one.
///
/// # Panics
/// When that file cannot be written: what is not told of would be taken for checked.
pub fn skipped(what: impl Display) {
    println!("SKIPPED: {what}");
    keep(what);
}

/// Keeps the line for whoever gathers them.
pub(crate) fn keep(what: impl Display) {
    let Some(file) = env::var_os(SKIPPED) else { return };
    if let Err(error) = append(Path::new(&file), &what.to_string()) {
        panic!("{SKIPPED} is {}: {error}", file.display());
    }
}

/// The name of the running test binary, without the hash that cargo gives it.
pub(crate) fn program() -> String {
    let path = env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or(&*name, |(name, _)| name).to_owned()
}

fn append(file: &Path, what: &str) -> io::Result<()> {
    let line = format!("{}\n", what.replace('\n', " "));
    // In one call, so that lines of several processes stay whole.
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(line.as_bytes())
}

const SKIPPED: &str = "AMBIENT_SKIPPED";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_one_line_each_at_the_end_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("skipped");
        append(&file, "the one").unwrap();
        append(&file, "the other,\nand why").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "the one\nthe other, and why\n");
        assert!(append(dir.path(), "nowhere").is_err());
    }
}
