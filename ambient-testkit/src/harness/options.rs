//! libtest's arguments.

use std::ffi::OsString;

/// What the arguments ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) list: bool,
    pub(super) terse: bool,
    pub(super) nocapture: bool,
    exact: bool,
    only_ignored: bool,
    filters: Vec<String>,
    skips: Vec<String>,
}

impl Options {
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args
            .into_iter()
            .map(|arg| arg.into_string().map_err(|arg| format!("{arg:?} is not Unicode")));
        let mut only_names = false;
        while let Some(arg) = args.next().transpose()? {
            if only_names || !arg.starts_with('-') {
                options.filters.push(arg);
                continue;
            }
            let (flag, value) = arg
                .split_once('=')
                .map_or((arg.as_str(), None), |(flag, value)| (flag, Some(value.to_owned())));
            let mut value = || {
                value
                    .clone()
                    .map_or_else(|| args.next().unwrap_or_else(|| Err(format!("{flag} needs a value"))), Ok)
            };
            match flag {
                "--" => only_names = true,
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--ignored" => options.only_ignored = true,
                "--nocapture" | "--no-capture" => options.nocapture = true,
                "-q" | "--quiet" => options.terse = true,
                "--format" => options.terse = value()? == "terse",
                "--skip" => options.skips.push(value()?),
                "--test-threads" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => drop(value()?),
                "--include-ignored" | "--show-output" | "--test" | "--report-time" | "--ensure-time" | "--shuffle" => {}
                "--bench" | "--exclude-should-panic" | "--force-run-in-process" | "--fail-fast" => {}
                _ => return Err(format!("unknown argument {arg}")),
            }
        }
        Ok(options)
    }

    /// Whether a test of this name is asked for. None is ever ignored beforehand.
    pub(crate) fn takes(&self, name: &str) -> bool {
        let hit = |pattern: &String| {
            if self.exact {
                name == pattern
            } else {
                name.contains(pattern.as_str())
            }
        };
        !self.only_ignored && (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skips.iter().any(hit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options, String> {
        Options::parse(args.split_whitespace().map(OsString::from))
    }

    #[test]
    fn names_are_filtered_as_libtest_does() {
        for (args, taken) in [
            ("", vec!["a", "ab", "b"]),
            ("a", vec!["a", "ab"]),
            ("a --exact", vec!["a"]),
            ("--exact a --nocapture", vec!["a"]),
            ("a b", vec!["a", "ab", "b"]),
            ("--skip a", vec!["b"]),
            ("--skip=a --exact", vec!["ab", "b"]),
            ("--test-threads 3 b", vec!["ab", "b"]),
            ("--test-threads=3 -- b", vec!["ab", "b"]),
            ("--ignored", vec![]),
            ("--include-ignored", vec!["a", "ab", "b"]),
        ] {
            let options = parse(args).unwrap();
            assert_eq!(
                ["a", "ab", "b"].into_iter().filter(|n| options.takes(n)).collect::<Vec<_>>(),
                taken,
                "{args}"
            );
        }
    }

    #[test]
    fn lists_as_nextest_asks() {
        let options = parse("--list --format terse").unwrap();
        assert!(options.list && options.terse && !options.only_ignored);
        assert!(parse("--list --format terse --ignored").unwrap().only_ignored);
        assert!(parse("--format").is_err() && parse("--unknown").is_err());
    }
}
