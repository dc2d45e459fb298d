//! What a machine, and the processes of a failed test, are at: whether something hung, and on what, or nothing had its turn.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

/// Threads that are told of, at most: what is printed is read by people.
const MOST_THREADS: usize = 80;

/// Where these processes stand, those that began the others first; and how much waits for processors, memory and disks.
pub(super) fn of(root: u32) -> String {
    let mut text = format!("the machine: load {}\n", first_line(Path::new("/proc/loadavg")));
    for what in ["cpu", "io", "memory"] {
        let pressure = first_line(&Path::new("/proc/pressure").join(what));
        if !pressure.is_empty() {
            let _ = writeln!(text, "  waiting for {what}: {pressure}");
        }
    }
    let mut threads = 0;
    for pid in family(root) {
        let process = Path::new("/proc").join(pid.to_string());
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let words = words.join(" ").chars().take(120).collect::<String>();
        let _ = writeln!(text, "  process {pid}: {words}");
        for task in numbers(&process.join("task")) {
            threads += 1;
            if threads > MOST_THREADS {
                return text + "  and more\n";
            }
            let task = process.join("task").join(task.to_string());
            let waits = fs::read_to_string(task.join("wchan")).unwrap_or_default();
            if let Some(stat) = Stat::read(&task) {
                let Stat { name, state, ticks, .. } = stat;
                let _ = writeln!(text, "    {name}: {state} {waits} (ran for {ticks} ticks)");
            }
        }
    }
    text
}

/// A process and all that it has begun, and so on.
fn family(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in numbers(Path::new("/proc")) {
        if let Some(stat) = Stat::read(&Path::new("/proc").join(pid.to_string())) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut all, mut next) = (vec![root], 0);
    while let Some(pid) = all.get(next) {
        // A table that changes while it is read can hold a circle.
        let found = children.remove(pid).unwrap_or_default();
        all.extend(found);
        next += 1;
    }
    all
}

/// What proc(5) says of a process or a thread.
struct Stat {
    name: String,
    state: String,
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(dir.join("stat")).ok()?)
    }

    /// The name is in parentheses, and may hold any.
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            name: before.split_once('(')?.1.into(),
            state: (*fields.first()?).into(),
            parent: fields.get(1)?.parse().ok()?,
            ticks: ticks(11)? + ticks(12)?,
        })
    }
}

fn numbers(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn first_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = Stat::parse("12 (a) b (c) S 7 12 12 0 -1 4194560 1 2 3 4 50 6 0 0 20 0 1 0 99 0 0").unwrap();
        assert_eq!((&*stat.name, &*stat.state, stat.parent, stat.ticks), ("a) b (c", "S", 7, 56));
        assert!(Stat::parse("12 (a").is_none());
    }

    #[test]
    fn a_process_and_its_children_are_told_of() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let told = of(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        let line = format!("process {}: sleep 60", child.id());
        assert!(told.contains(&line), "{told}");
        assert!(told.contains("the machine: load "), "{told}");
    }
}
