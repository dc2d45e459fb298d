//! What the nodes say of the traffic: their access logs and their metrics, read as an operator's tools would.

use std::collections::BTreeMap;

/// One line of an access log, by key.
pub(crate) type Entry = BTreeMap<String, String>;

/// The lines of a log that report the end of a connection.
pub(crate) fn connections(log: &str) -> Vec<Entry> {
    let ends = |line: &&str| {
        ["connection complete", "connection failed", "connection closed"]
            .iter()
            .any(|m| line.contains(m))
    };
    log.lines().filter(ends).map(fields).collect()
}

/// The `key=value` pairs of a line; a quoted value may hold blanks and escaped quotes.
pub(crate) fn fields(line: &str) -> Entry {
    let mut entry = Entry::new();
    let mut rest = line;
    while let Some(at) = rest.find('=') {
        let key = rest[..at].rsplit(char::is_whitespace).next().unwrap_or_default();
        rest = &rest[at + 1..];
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, after) = rest.find(char::is_whitespace).map_or((rest, ""), |end| rest.split_at(end));
                (value.to_owned(), after)
            }
        };
        if !key.is_empty() {
            entry.insert(key.to_owned(), value);
        }
        rest = after;
    }
    entry
}

fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// One sample of a metrics page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Entry,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// The samples of a page in Prometheus' or OpenMetrics' text form; lines that are none are passed over.
pub(crate) fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = match line.rfind('}') {
        Some(end) => (&line[..end], line[end + 1..].split_ascii_whitespace().next()?),
        None => {
            let mut words = line.split_ascii_whitespace();
            (words.next()?, words.next()?)
        }
    };
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    Some(Sample {
        name: name.into(),
        labels: pairs(labels),
        value: value.parse().ok()?,
    })
}

fn pairs(labels: &str) -> Entry {
    let mut entry = Entry::new();
    let mut rest = labels;
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = unquote(after);
        entry.insert(key.trim_start_matches(',').trim().to_owned(), value);
        rest = after;
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines() {
        let line = r#"2026-11-23T20:00:00.000001Z	info	access	connection complete	src.addr=10.244.1.5:41234 src.workload="sleep" dst.addr=[fd00::1]:15008 bytes_sent=12 duration="3ms" waypoint=false error="closed: \"a\" = b""#;
        let entry = connections(line).remove(0);
        assert_eq!(entry["src.addr"], "10.244.1.5:41234");
        assert_eq!(entry["src.workload"], "sleep");
        assert_eq!(entry["dst.addr"], "[fd00::1]:15008");
        assert_eq!(entry["duration"], "3ms");
        assert_eq!(entry["waypoint"], "false");
        assert_eq!(entry["error"], "closed: \"a\" = b");
        assert!(connections("info\tpod captured\tpod=\"a\"").is_empty());
        assert_eq!(fields("a=\"unended"), Entry::from([("a".into(), "unended".into())]));
    }

    #[test]
    fn metrics() {
        let page = "# HELP x y\nx_total{a=\"b\",c=\"d, {e}\"} 42 1.5\nplain 1\n# EOF\n";
        let all = samples(page);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name.as_str(), all[0].value), ("x_total", 42.0));
        assert_eq!((all[0].label("a"), all[0].label("c"), all[0].label("z")), ("b", "d, {e}", ""));
        assert_eq!(
            all[1],
            Sample {
                name: "plain".into(),
                labels: Entry::new(),
                value: 1.0
            }
        );
    }
}
