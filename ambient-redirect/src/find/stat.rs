//! `/proc/PID/stat`.

/// When a process began, in ticks since the machine's start: field 22 of its `stat` ([proc(5)]). With the process's number
/// it names one process and no later one.
///
/// ```
/// use ambient_redirect::find::started;
///
/// let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8123 0 0";
/// assert_eq!(started(stat), Some(8123));
/// assert_eq!(started("7 (cat"), None);
/// ```
///
/// [proc(5)]: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
pub fn started(stat: &str) -> Option<u64> {
    // The command stands in parentheses, and may have any in it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(START)?.parse().ok()
}

/// Its place after the command, which is field 2.
const START: usize = 22 - 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_command_is_called() {
        let rest = "S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8123 0 0";
        for command in ["cat", "a b", ")", "((", "x) R 1 2 3 4", ""] {
            assert_eq!(started(&format!("7 ({command}) {rest}")), Some(8123), "{command:?}");
        }
        for broken in ["", "7", "7 (cat)", "7 (cat) S 1", &format!("7 (cat) {}", rest.replace("8123", "x"))] {
            assert_eq!(started(broken), None, "{broken:?}");
        }
    }
}
