//! A `resolv.conf` ([resolv.conf(5)]), read as glibc reads it.
//!
//! [resolv.conf(5)]: https://man7.org/linux/man-pages/man5/resolv.conf.5.html

use std::{net::IpAddr, time::Duration};

#[cfg(test)]
mod tests;

/// What a `resolv.conf` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolv {
    /// The nameservers in the order in which they are asked; the first three, as the resolver has it.
    pub nameservers: Vec<IpAddr>,
    /// The domains that are tried after a name that is not whole, in lower case and without a dot at the end; the last
    /// `search` or `domain` line counts.
    pub search: Vec<String>,
    /// A name with fewer dots than this is tried with the search domains first; 1 unless said, 15 at most.
    pub ndots: u8,
    /// How long one nameserver is waited for; 5 s unless said, 30 s at most.
    pub timeout: Duration,
    /// How often all nameservers are asked; twice unless said, five times at most.
    pub attempts: u8,
}

impl Default for Resolv {
    /// An empty file.
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        }
    }
}

/// Reads a `resolv.conf`. What is not understood is passed over, as the resolver does: unknown keywords and options, and
/// nameservers that are no addresses or are link-local ones with an interface (`fe80::1%eth0`), and lines that begin with a blank.
pub fn parse(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';', ' ', '\t'])) {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                if let Some(Ok(address)) = words.next().map(str::parse)
                    && resolv.nameservers.len() < MOST_NAMESERVERS
                {
                    resolv.nameservers.push(address);
                }
            }
            Some("search") => resolv.search = words.map(domain).filter(|d| !d.is_empty()).collect(),
            Some("domain") => resolv.search = words.take(1).map(domain).filter(|d| !d.is_empty()).collect(),
            Some("options") => words.for_each(|word| option(&mut resolv, word)),
            _ => {}
        }
    }
    resolv
}

fn domain(word: &str) -> String {
    word.trim_end_matches('.').to_ascii_lowercase()
}

fn option(resolv: &mut Resolv, word: &str) {
    let Some((name, value)) = word.split_once(':') else { return };
    // Of `5x` the number counts.
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let Ok(value) = value[..digits].parse::<u64>() else { return };
    let at_most = |most: u8| u8::try_from(value).unwrap_or(most).min(most);
    match name {
        "ndots" => resolv.ndots = at_most(15),
        "timeout" => resolv.timeout = Duration::from_secs(at_most(30).into()),
        "attempts" => resolv.attempts = at_most(5),
        _ => {}
    }
}

const MOST_NAMESERVERS: usize = 3;
