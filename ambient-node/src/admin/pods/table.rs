//! As text.

use std::fmt::Write as _;

use ambient_redirect::linux::{Way, Ways};

use super::{Listed, OfFamily, Proven, Repair, Segmented, View, look};

const HEAD: [&str; 11] = [
    "POD",
    "DESIRED",
    "CAPTURED",
    "PROVEN",
    "OUT BY",
    "IN BY",
    "LISTENERS",
    "RULES",
    "IN/OUT",
    "KEPT",
    "REPAIRS",
];

/// A table, and below it what is wrong.
pub(super) fn of_all(listed: &Listed) -> String {
    let mut rows: Vec<[String; 11]> = vec![HEAD.map(str::to_owned)];
    rows.extend(listed.pods.iter().map(row));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    for pod in &listed.pods {
        for wrong in &pod.wrong {
            let _ = writeln!(text, "\n{}: {}\n  -> {}", pod.full_name(), wrong.what, wrong.remedy);
        }
    }
    let probes = &listed.probes;
    let _ = match (&probes.error, probes.let_through) {
        (Some(error), _) => writeln!(text, "\nprobes of the kubelet may be refused: {error}"),
        (None, true) => writeln!(
            text,
            "\nprobes of the kubelet are let through to {}{}",
            match probes.addresses {
                1 => "1 address".to_owned(),
                many => format!("{many} addresses"),
            },
            { repairs(probes.repairs, probes.last_repair.as_ref()) }
        ),
        (None, false) if listed.pods.is_empty() => Ok(()),
        (None, false) => writeln!(text, "\nprobes of the kubelet are judged by policies like all connections"),
    };
    text
}

fn row(pod: &View) -> [String; 11] {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let way = |way: fn(&Proven) -> Ways| pod.proof.as_ref().map_or("-", |proof| short(way(proof))).to_owned();
    [
        pod.full_name(),
        yes(pod.desired),
        if pod.captured { "yes".into() } else { pod.state.to_owned() },
        pod.proven_at.clone().unwrap_or_else(|| "-".into()),
        way(|p| p.outbound),
        way(|p| p.inbound),
        look::in_short(&pod.listeners),
        pod.rules.into(),
        match &pod.connections {
            Some(open) => format!("{}/{}", open.inbound, open.outbound),
            None => "-".into(),
        },
        pod.kept.len().to_string(),
        match &pod.last_repair {
            Some(last) => format!("{} (last {}: {})", pod.repairs, last.at, last.what),
            None => pod.repairs.to_string(),
        },
    ]
}

/// `connection`, `listing`, or both where the families differ.
fn short(ways: Ways) -> &'static str {
    let of = |way: Option<Way>| way.map(|way| way == Way::Listed);
    match (of(ways.v4), of(ways.v6)) {
        (Some(true), Some(false)) | (Some(false), Some(true)) => "connection, listing",
        (Some(true), _) | (_, Some(true)) => "listing",
        (Some(false), _) | (_, Some(false)) => "connection",
        (None, None) => "-",
    }
}

fn repairs(count: u64, last: Option<&Repair>) -> String {
    match last {
        Some(last) if count == 1 => format!("; mended once, at {}: {}", last.at, last.what),
        Some(last) => format!("; mended {count} times, last at {}: {}", last.at, last.what),
        None => String::new(),
    }
}

/// All of one pod.
pub(super) fn of_one(pod: &View) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<20} {value}");
    };
    let none = "-".to_owned();
    line("pod", &format!("{} ({})", pod.full_name(), pod.uid));
    line("service account", &pod.service_account);
    line("addresses", &pod.addresses.join(", "));
    line("network namespace", pod.network_namespace.as_ref().unwrap_or(&none));
    line("desired", if pod.desired { "yes" } else { "no" });
    if let Some(note) = &pod.note {
        line("", note);
    }
    let captured = match (&pod.captured_since, pod.captured) {
        (Some(since), true) => format!("yes, since {since}"),
        _ => format!("no ({})", pod.state),
    };
    line("captured", &captured);
    line("proven", pod.proven_at.as_ref().unwrap_or(&none));
    if let Some(proof) = &pod.proof {
        line("  what goes out", &proof.outbound.to_string());
        line("  what comes in", &proof.inbound.to_string());
    }
    line("listeners", &look::in_short(&pod.listeners));
    line("rules", pod.rules);
    line("put last", pod.put.as_ref().unwrap_or(&none));
    if pod.asks.bypass_inbound {
        line("asks", "what comes to it goes to the application, except by HBONE");
    }
    if let Some(dns) = pod.asks.dns {
        line("asks", if dns { "its DNS is captured" } else { "its DNS is left alone" });
    }
    if !pod.asks.virtual_interfaces.is_empty() {
        line(
            "asks",
            &format!("what comes from {} is sent by it", pod.asks.virtual_interfaces.join(", ")),
        );
    }
    if let Some(segments) = &pod.segments {
        line("segments", &whose(segments));
    }
    if let Some(open) = &pod.connections {
        line("connections", &format!("{} in, {} out", open.inbound, open.outbound));
    }
    line("kept connections", &pod.kept.len().to_string());
    for kept in pod.kept.iter().take(KEPT_SHOWN) {
        line("", kept);
    }
    if pod.kept.len() > KEPT_SHOWN {
        line("", "… and more, with --json");
    }
    line("gone around", &format!("{} connections, reset since", pod.strays));
    line("repairs", &pod.repairs.to_string());
    if let Some(last) = &pod.last_repair {
        line("  the last", &format!("{}: {}", last.at, last.what));
    }
    match pod.wrong.is_empty() {
        true => text.push_str("\nnothing is wrong\n"),
        false => pod.wrong.iter().for_each(|wrong| {
            let _ = writeln!(text, "\nwrong: {}\n   ->  {}", wrong.what, wrong.remedy);
        }),
    }
    text
}

/// Whose segments what is captured has, and why.
fn whose(segments: &Segmented) -> String {
    let of = |family: &OfFamily| match &family.why {
        Some(why) if family.in_force => format!("the loopback device's still: {why}"),
        _ if family.in_force => "the loopback device's".to_owned(),
        Some(why) => format!("the link's: {why}"),
        None => "the link's".to_owned(),
    };
    match &segments.families[..] {
        [] if !segments.wanted => "the link's: the loopback device's are not asked for".into(),
        [] => "-".into(),
        [first, rest @ ..] if segments.wanted && rest.iter().all(|family| of(family) == of(first)) => of(first),
        all => {
            let all: Vec<String> = all.iter().map(|family| format!("{} {}", family.family, of(family))).collect();
            all.join("; ")
        }
    }
}

const KEPT_SHOWN: usize = 20;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambient_core::Capture;
    use ambient_redirect::{
        PodSpec,
        linux::{Aside, Segments},
        plan::IpFamily,
        pods::{PodState, State},
    };

    use super::{super::Probes, *};

    #[test]
    fn segments_are_told_of_each_family_where_they_differ() {
        let spec = PodSpec {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "default".into(),
            addresses: Vec::new(),
            capture: Capture::default(),
            has_run: true,
        };
        let told = |wanted, v4: &Segments, v6: &Segments| {
            let mut pod = PodState::new(spec.clone(), State::Joining);
            pod.segments = Arc::from([(IpFamily::V4, v4.clone()), (IpFamily::V6, v6.clone())]);
            whose(&Segmented::of(&pod, wanted))
        };
        let (loopback, kept) = (Segments::Loopback, Segments::Link(Aside::Kept(2)));
        assert_eq!(told(true, &loopback, &loopback), "the loopback device's");
        let aside = "the link's: 2 connections from before the capture go around the proxy";
        assert_eq!(told(true, &kept, &kept), aside);
        assert_eq!(told(true, &loopback, &kept), format!("IPv4 the loopback device's; IPv6 {aside}"));
        let left = Segments::Left("no memory".into());
        let still = "the loopback device's still: they cannot be taken away: no memory";
        assert_eq!(told(true, &left, &kept), format!("IPv4 {still}; IPv6 {aside}"));
        let unseen = PodState::new(spec.clone(), State::Joining);
        assert_eq!(whose(&Segmented::of(&unseen, true)), "-");
        let not_asked_for = "the link's: the loopback device's are not asked for";
        assert_eq!(whose(&Segmented::of(&unseen, false)), not_asked_for);
        // Of which they are left is told even so.
        let mut pod = PodState::new(spec.clone(), State::Joining);
        pod.segments = Arc::from([(IpFamily::V6, left)]);
        assert_eq!(whose(&Segmented::of(&pod, false)), format!("IPv6 {still}"));
    }

    #[test]
    fn one_is_told_as_one() {
        let told = |addresses| {
            let probes = Probes {
                let_through: true,
                addresses,
                repairs: 0,
                last_repair: None,
                error: None,
            };
            of_all(&Listed { pods: Vec::new(), probes })
        };
        assert!(told(1).ends_with("let through to 1 address\n"), "{}", told(1));
        assert!(told(2).ends_with("let through to 2 addresses\n"), "{}", told(2));
    }
}
