//! What is wrong with a pod, in plain words, and what to do about it.

use ambient_core::PodUid;
use ambient_redirect::{
    linux::{RulePlace, Segments, Stranger, Way},
    plan::IpFamily,
    pods::{Cause, PodState, Refusal, State, Step, Unpaired},
    zds::{
        ClientState,
        workloads::{Readiness, Unserved},
    },
};
use serde::Serialize;

use super::look::{Listener, Listens, Look, in_short};
use crate::certificates::Flaw;

/// Something that is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Wrong {
    /// Its name for programs, which stays as it is.
    pub(super) code: &'static str,
    /// What.
    pub(super) what: String,
    /// What to do.
    pub(super) remedy: String,
}

/// All that is wrong with a pod's capture, the gravest first; empty where all is as it should be. What to do where it cannot be announced
/// is as whoever keeps that says.
pub(super) fn wrong(pod: &PodState, look: &Look, unannounced: &str) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut say = |code: &'static str, what: String, remedy: &str| {
        // Whatever was being done: it is not what failed.
        let remedy = if what.contains(NO_DESCRIPTOR) { DESCRIPTORS } else { remedy };
        found.push(Wrong {
            code,
            what,
            remedy: remedy.into(),
        });
    };
    match &pod.state {
        State::Pairing { why } => say(why.code(), format!("it is not captured: {why}"), pairing_remedy(why)),
        State::Refused { error } => say(
            error.code(),
            format!("it is not captured: {error}"),
            refusal_remedy(error, unannounced),
        ),
        _ => {}
    }
    let captured = matches!(pod.state, State::In { .. });
    if let Some(why) = &look.blind {
        say(
            "blind",
            format!("its network namespace cannot be looked into: {why}"),
            "give the node CAP_NET_ADMIN and CAP_SYS_ADMIN over the pod's user namespace",
        );
    }
    let bad: Vec<Listener> = look.listeners.iter().filter(|l| l.state != Listens::Up).cloned().collect();
    // Until it is captured, what is missing is on its way.
    if !bad.is_empty() && (captured || bad.iter().any(|l| l.state == Listens::Another)) {
        say(
            "listeners",
            format!("the proxy does not listen as it should: {}", in_short(&bad)),
            "stop what listens there in the pod, if that is it; the node brings its own up again by itself",
        );
    }
    if captured && !look.rules.is_empty() {
        let differences: Vec<String> = look.rules.iter().map(ToString::to_string).collect();
        say(
            "damaged",
            format!("its capture is damaged at this moment: {}", differences.join(", ")),
            "it is mended by itself, within a second; ask again",
        );
    }
    foreign(pod, &mut say);
    left(pod, &mut say);
    if pod.closed && !matches!(pod.state, State::Waiting) {
        say(
            "refused-until-proven",
            "its TCP is refused until its capture is proven".into(),
            "mend what keeps it from being captured; it is tried again by itself every few seconds",
        );
    }
    outside(pod, &mut say);
    if let Some(mended) = &pod.mended {
        say(
            "repaired",
            broken(pod.repairs, &mended.what),
            "it is mended. Find what changes rules, routes or listeners in its namespace: `nft monitor` there shows it",
        );
    }
    if let State::In { proof, .. } = &pod.state
        && [proof.inbound.v4, proof.inbound.v6].contains(&Some(Way::Listed))
    {
        say(
            "inbound-as-listed",
            "that what comes in is captured is known from the kernel's listings alone: no connection from the node comes through".into(),
            "a NetworkPolicy or the network plugin drops it; let the node reach the pod if you want it proven by a connection",
        );
    }
    for fault in &pod.spec.capture.faults {
        say(
            "annotation",
            fault.to_string(),
            "correct the annotation; it is followed while the pod runs",
        );
    }
    found
}

/// What is wrong with a pod that an agent of others enrols, or is to; `served` says whether the proxy serves it.
pub(super) fn unserved(agent: Option<&ClientState>, pod: Option<&PodUid>, served: bool) -> Option<Wrong> {
    let readiness = agent.map(|agent| &agent.readiness);
    let (told, count) = match readiness {
        Some(Readiness::Pending(told, count)) => (&told[..], *count),
        _ => (&[][..], 0),
    };
    if let Some((_, why)) = told.iter().find(|(uid, _)| Some(uid) == pod) {
        // Each is being begun for a moment: nothing is wrong with that.
        return (*why != Unserved::Begun).then(|| Wrong {
            code: "not-served",
            what: format!("the node agent has named it, and it is not served as that says: {why}"),
            remedy: "it is tried again every few seconds until the agent takes it back; an agent to which another proxy has connected since asks \
                     that one for it"
                .into(),
        });
    }
    let (what, remedy) = match readiness {
        _ if served => return None,
        Some(Readiness::Alone) => {
            let trouble = agent.and_then(|agent| agent.trouble.as_deref());
            let why = trouble.map(|why| format!(": {why}")).unwrap_or_default();
            (
                format!("no node agent is connected that could name it{why}"),
                "start the agent, or see where its socket is (--zds)",
            )
        }
        Some(Readiness::Naming) => (
            "the node agent has not named it yet, nor all others".to_owned(),
            "wait; an agent names all pods within seconds of its start",
        ),
        // Of a workload without a UID it is not known which of them it is.
        _ if told.len() < count || pod.is_none() && count > 0 => (
            format!("the node agent has not named it, or it is one of {count} that are not served"),
            "see the agent's log, and readiness, which says of some of them why",
        ),
        _ => ("the node agent has not named it".to_owned(), "see the agent's log"),
    };
    Some(Wrong {
        code: "not-named",
        what,
        remedy: remedy.into(),
    })
}

/// What is wrong with the certificate that a pod is served with, where something is.
pub(super) fn flawed(flaw: Option<Flaw>) -> Option<Wrong> {
    let asked = |failure: Option<String>| {
        failure
            .map(|why| format!("; the last request for another: {why}"))
            .unwrap_or_default()
    };
    let (code, what, remedy) = match flaw? {
        Flaw::Missing(failure) => (
            "no-certificate",
            format!("it has no certificate that holds, and what needs one is refused{}", asked(failure)),
            "one is asked for by itself: see that whoever issues them is there and knows the pod; readiness says what is wrong with that",
        ),
        Flaw::Refused(why, failure) => (
            "certificate-refused",
            format!("peers refuse its certificate: {why}{}", asked(failure)),
            "another is asked for by itself; where its identity is revoked nobody gives it one: give the pod another service account",
        ),
    };
    Some(Wrong {
        code,
        what,
        remedy: remedy.into(),
    })
}

/// Rules of others that come before those that capture it.
fn foreign(pod: &PodState, say: &mut impl FnMut(&'static str, String, &str)) {
    let of = |routes: bool| {
        let is_there = |s: &&Stranger| matches!(s.place, RulePlace::RoutingRule { .. }) == routes;
        let rules: Vec<String> = pod.strangers.iter().filter(is_there).map(ToString::to_string).collect();
        (!rules.is_empty()).then(|| rules.join("; "))
    };
    if let Some(rules) = of(false) {
        say(
            "foreign-rules",
            format!(
                "rules of somebody else in its namespace come before those that capture it, and what they take does not reach the proxy: {rules}"
            ),
            "what they send out of the pod, or to another of its ports, is refused; what stays in the pod goes on. Remove them \
             (`nft list ruleset` in its namespace shows them), or take the pod out of the mesh",
        );
    }
    if let Some(rules) = of(true) {
        say(
            "foreign-routes",
            format!("routing of somebody else in its namespace comes before the proxy's, and what it takes is lost: {rules}"),
            "see `ip rule` and `ip route show table all` in its namespace: remove what comes before `fwmark 0x111/0xfff lookup 100`, or give \
             it a higher number, and leave table 100 to the proxy; else take the pod out of the mesh",
        );
    }
}

/// Segments as of the loopback device that are not to be any more.
fn left(pod: &PodState, say: &mut impl FnMut(&'static str, String, &str)) {
    for (family, whose) in pod.segments.iter() {
        let Segments::Left(why) = whose else { continue };
        let command = match family {
            IpFamily::V4 => "ip rule del pref 32765 lookup 65520",
            IpFamily::V6 => "ip -6 rule del pref 32765 lookup 65520",
        };
        say(
            "segments-left",
            format!(
                "what it sends by {family} around the proxy may be lost: its segments are the loopback device's, and they cannot be taken away: {why}"
            ),
            &format!("it is tried again by itself, once a minute at least; `{command}` in its namespace does the same"),
        );
    }
}

/// Connections that the mesh does not see, or did not.
fn outside(pod: &PodState, say: &mut impl FnMut(&'static str, String, &str)) {
    if !pod.kept.is_empty() {
        say(
            "kept-connections",
            format!(
                "{} of its connections are from before it joined: unencrypted, and outside of the mesh",
                pod.kept.len()
            ),
            "they end when either end closes them; restart the pod, or set existing connections to be closed, to be rid of them now",
        );
    }
    if pod.strays > 0 {
        say(
            "strays",
            format!(
                "{} connections went around the proxy while its capture was broken; they were reset",
                pod.strays
            ),
            "see the last repair for what was broken, and who in the pod or on the node changes its rules",
        );
    }
}

fn broken(times: u64, what: &str) -> String {
    match times {
        1 => format!("its capture was found broken once: {what}"),
        times => format!("its capture was found broken {times} times; the last time: {what}"),
    }
}

fn pairing_remedy(why: &Unpaired) -> &'static str {
    match why {
        Unpaired::Unseen(Cause::Rights(_)) => RIGHTS,
        Unpaired::Unseen(Cause::Hidden(_)) => HIDDEN,
        Unpaired::NoAddress => "wait until its status has an address, or write one",
        Unpaired::SameAddress { .. } => "two pods claim one address: delete the one that is stale, or correct the addresses in its status",
        Unpaired::NotLooked | Unpaired::LetGo { .. } | Unpaired::OwnLetGo | Unpaired::JustLeft => {
            "wait: it is captured as soon as that is over, which takes as long as a pod that leaves may take (--leave) at most"
        }
        Unpaired::Two(..) => {
            "take the address away from the namespace that is not the pod's, or delete whoever has it and start the pod anew after that; \
             a node that sees pods' processes (--proc) tells them apart by itself"
        }
        Unpaired::Doubtful(_) => {
            "start the pod anew, so that it has a network namespace that nobody else can have claimed; a node that sees pods' processes \
             (--proc), or that namespaces are handed to, knows a pod's own without that"
        }
        Unpaired::Anothers { .. } | Unpaired::NotAPods(_) => "correct the addresses in its status: they are another's",
        Unpaired::Lacks { .. } => "its status lists an address that its network namespace does not have: correct either",
        Unpaired::Nowhere | Unpaired::Unseen(_) => {
            "name the container runtime's directory of network namespaces with --netns-dir, or let the node see the pod's processes"
        }
    }
}

/// As the kernel's error is told.
const NO_DESCRIPTOR: &str = "(os error 24)";
const DESCRIPTORS: &str = "let the node's process have more descriptors (`ulimit -n`, LimitNOFILE=): half of them are for connections";

const RIGHTS: &str = "give the node's process CAP_NET_ADMIN and CAP_SYS_ADMIN, over the user namespace of the pod too, and start it anew if \
                      it had them; until then the rules stand as they are, and refuse what the proxy does not take";

const HIDDEN: &str = "give the node's process CAP_SYS_PTRACE, and with --proc a proc of the machine's own processes that is mounted without \
                      hidepid; or name the container runtime's directory of network namespaces with --netns-dir";

fn refusal_remedy<'a>(error: &Refusal, unannounced: &'a str) -> &'a str {
    match (&error.why, error.step) {
        (_, Step::Announce | Step::Withdraw) => unannounced,
        (Cause::Rights(_), _) => RIGHTS,
        (Cause::Hidden(_), _) => HIDDEN,
        (Cause::Ipv6(_), _) => "let IPv6 be captured, or take that address away: what went by it would go around the mesh",
        (Cause::NoProxy(_), _) => "start the proxy, and see in its log whether it reaches that socket",
        (Cause::PortTaken(_), _) => "free the ports 15001, 15006, 15008 and 15053 in the pod: they are the proxy's",
        (Cause::ForeignTable(_), _) => "remove or rename that table, which is somebody else's: `nft list tables` in its namespace shows it",
        (Cause::Diverted(_), _) => {
            "see `ip rule` and `ip route show table all` in its namespace: remove what comes before `fwmark 0x111/0xfff lookup 100`, \
             or give it a higher number, and leave table 100 to the proxy"
        }
        (Cause::Late(_) | Cause::Other(_), step) => step_remedy(step, unannounced),
    }
}

fn step_remedy(step: Step, unannounced: &str) -> &str {
    match step {
        Step::Announce | Step::Withdraw => unannounced,
        Step::Listen => "free the ports 15001, 15006, 15008 and 15053 in the pod, and see that it has a certificate",
        Step::Close | Step::Enforce | Step::Open => {
            "start the node anew: it asks the kernel for each part of what it needs, and names those that are missing"
        }
        Step::Prove | Step::Verify => {
            "see what in its namespace changes rules or keeps connections from the proxy: `nft list ruleset` there"
        }
        Step::Release | Step::Drain | Step::Cut | Step::Clear | Step::Remove => {
            "it is tried again by itself; the node's log says how it goes on"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use ambient_core::Capture;
    use ambient_redirect::{
        PodSpec,
        linux::{Difference, NetnsId, Proof, Ways},
        pods::{Direction, Repair},
    };

    use super::*;

    fn wrong(pod: &PodState, look: &Look) -> Vec<Wrong> {
        super::wrong(pod, look, "ask whoever keeps its status")
    }

    fn pod(state: State) -> PodState {
        let spec = PodSpec {
            uid: "uid".into(),
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "default".into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            capture: Capture::default(),
            has_run: true,
        };
        PodState::new(spec, state)
    }

    fn captured(inbound: Way) -> State {
        let ways = |way| Ways { v4: Some(way), v6: None };
        State::In {
            captured_at: SystemTime::UNIX_EPOCH,
            proof: Proof {
                outbound: ways(Way::Recognised),
                inbound: ways(inbound),
            },
        }
    }

    #[test]
    fn who_is_captured_and_never_was_broken_has_nothing_wrong() {
        assert_eq!(wrong(&pod(captured(Way::Recognised)), &Look::default()), []);
        assert_eq!(wrong(&pod(State::Joining), &Look::default()), []);
        assert_eq!(wrong(&pod(State::Waiting), &Look::default()), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let why = |state: State| wrong(&pod(state), &Look::default()).remove(0);
        let refused = |step| State::Refused {
            error: Refusal {
                step,
                why: "it is so".into(),
            },
        };
        for (step, remedy) in [
            (Step::Listen, "15001"),
            (Step::Enforce, "names those that are missing"),
            (Step::Prove, "nft list ruleset"),
            (Step::Announce, "ask whoever keeps its status"),
            (Step::Withdraw, "ask whoever keeps its status"),
        ] {
            let said = why(refused(step));
            assert!(said.what.contains("it is so") && said.remedy.contains(remedy), "{said:?}");
        }
        assert!(why(captured(Way::Listed)).what.contains("listings"));
        let mut sick = pod(refused(Step::Listen));
        sick.closed = true;
        sick.repairs = 2;
        sick.mended = Some(Arc::new(Repair {
            what: "table ambient-nat is missing or changed".into(),
            held: SystemTime::UNIX_EPOCH,
            noticed: SystemTime::UNIX_EPOCH,
            repaired: SystemTime::UNIX_EPOCH,
            around: 0,
        }));
        sick.strays = 3;
        let said = wrong(&sick, &Look::default());
        assert_eq!(said.len(), 4);
        assert!(said[1].what.contains("refused") && said[2].what.starts_with("3 connections") && said[3].what.contains("2 times"));
        let mut beside = pod(captured(Way::Recognised));
        beside.strangers = Arc::from([Stranger {
            place: RulePlace::Chain {
                table: "ip nat".into(),
                chain: "OUTPUT".into(),
            },
            direction: Direction::Outbound,
            does: "TCP to port 5432 is redirected to the pod itself".into(),
        }]);
        let said = wrong(&beside, &Look::default()).remove(0);
        assert!(
            said.what.contains("ip nat, chain OUTPUT") && said.what.contains("5432") && said.remedy.contains("refused"),
            "{said:?}"
        );
        beside.strangers = Arc::from([Stranger {
            place: RulePlace::RoutingRule { priority: 100, ipv6: true },
            direction: Direction::Inbound,
            does: "answers of applications do not go back to the proxy".into(),
        }]);
        let said = wrong(&beside, &Look::default());
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].code == "foreign-routes" && said[0].what.contains("IPv6 routing rule 100: ") && said[0].remedy.contains("`ip rule`"),
            "{said:?}"
        );
        let mut large = pod(captured(Way::Recognised));
        large.segments = Arc::from([
            (IpFamily::V4, Segments::Loopback),
            (IpFamily::V6, Segments::Left("no memory".into())),
        ]);
        let said = wrong(&large, &Look::default());
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].code == "segments-left"
                && said[0].what.contains("IPv6")
                && said[0].remedy.contains("`ip -6 rule del pref 32765 lookup 65520`"),
            "{said:?}"
        );
        let mut odd = pod(captured(Way::Recognised));
        let spec = PodSpec {
            capture: Capture::read(|key| (key == "istio.io/reroute-virtual-interfaces").then_some("a/b")),
            ..(*odd.spec).clone()
        };
        odd.spec = Arc::new(spec);
        let said = wrong(&odd, &Look::default()).remove(0);
        assert!(said.what.contains("a/b") && said.remedy.contains("annotation"), "{said:?}");
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_with_why_there_is_no_other() {
        assert_eq!(flawed(None), None);
        let refused = flawed(Some(Flaw::Refused("it is revoked".into(), Some("nobody answers".into())))).unwrap();
        assert_eq!(refused.code, "certificate-refused");
        assert_eq!(
            refused.what,
            "peers refuse its certificate: it is revoked; the last request for another: nobody answers"
        );
        let missing = flawed(Some(Flaw::Missing(None))).unwrap();
        assert_eq!(missing.code, "no-certificate");
        assert!(missing.what.ends_with("what needs one is refused"), "{}", missing.what);
    }

    #[test]
    fn where_descriptors_are_lacking_more_of_them_are_the_remedy() {
        let lacking = std::io::Error::from_raw_os_error(24);
        let error = Refusal {
            step: Step::Enforce,
            why: lacking.into(),
        };
        let blind = Look {
            blind: Some(std::io::Error::from_raw_os_error(24).to_string()),
            ..Look::default()
        };
        for said in wrong(&pod(State::Refused { error }), &blind) {
            assert!(said.remedy.contains("ulimit -n"), "{said:?}");
        }
    }

    #[test]
    fn each_reason_has_a_remedy_of_its_own() {
        let said = |state: State| wrong(&pod(state), &Look::default()).remove(0);
        let (namespace, address) = (NetnsId { dev: 4, ino: 1 }, "10.0.0.2".parse().unwrap());
        let other = || "shop/b (y)".to_owned();
        let rights = || Cause::Rights("asking for the generation of nftables: Operation not permitted".into());
        for (why, code, remedy) in [
            (Unpaired::NotLooked, "not-looked", "wait"),
            (Unpaired::NoAddress, "no-address", "until its status"),
            (
                Unpaired::NotAPods("127.0.0.1".parse().unwrap()),
                "not-a-pods-address",
                "correct the addresses",
            ),
            (Unpaired::Nowhere, "no-namespace", "--netns-dir"),
            (Unpaired::Unseen(rights()), "namespace-unseen", "CAP_SYS_ADMIN"),
            (Unpaired::Unseen("so".into()), "namespace-unseen", "--netns-dir"),
            (
                Unpaired::Unseen(Cause::Hidden("so".into())),
                "namespace-unseen",
                "give the node's process CAP_SYS_PTRACE",
            ),
            (
                Unpaired::SameAddress {
                    pod: other(),
                    address,
                    namespace: None,
                },
                "same-address",
                "stale",
            ),
            (Unpaired::LetGo { namespace, address }, "namespace-let-go", "wait"),
            (Unpaired::OwnLetGo, "namespace-let-go", "wait"),
            (Unpaired::JustLeft, "namespace-just-left", "wait"),
            (Unpaired::Two(namespace, namespace), "two-namespaces", "--proc"),
            (Unpaired::Doubtful(namespace), "doubtful-namespace", "start the pod anew"),
            (
                Unpaired::Anothers { namespace, pod: other() },
                "anothers-namespace",
                "correct the addresses",
            ),
            (
                Unpaired::Lacks {
                    namespace,
                    missing: address,
                },
                "address-missing",
                "correct either",
            ),
        ] {
            let (text, said) = (why.to_string(), said(State::Pairing { why }));
            assert!(
                said.what.ends_with(&text) && said.code == code && said.remedy.contains(remedy),
                "{said:?}"
            );
        }
        for step in [Step::Listen, Step::Close, Step::Enforce, Step::Prove, Step::Verify] {
            for (why, code, remedy) in [
                (rights(), "rights-missing", "give the node's process CAP_NET_ADMIN"),
                (
                    Cause::Ipv6("fd00::2".parse().unwrap()),
                    "ipv6-not-captured",
                    "take that address away",
                ),
                (Cause::ForeignTable("so".into()), "foreign-table", "nft list tables"),
                (Cause::PortTaken("so".into()), "port-taken", "free the ports"),
                (Cause::Diverted("so".into()), "replies-diverted", "`ip rule`"),
                (Cause::NoProxy("so".into()), "no-proxy", "reaches that socket"),
            ] {
                let error = Refusal { step, why };
                let (text, said) = (error.to_string(), said(State::Refused { error }));
                assert!(
                    said.what.ends_with(&text) && said.code == code && said.remedy.contains(remedy),
                    "{said:?}"
                );
            }
        }
        let error = Refusal {
            step: Step::Listen,
            why: Cause::Late(Duration::from_secs(10)),
        };
        let said = said(State::Refused { error });
        assert!(said.what.ends_with("no answer within 10 s") && said.code == "no-answer", "{said:?}");
    }

    #[test]
    fn of_a_pod_that_an_agent_enrols_it_is_said_whether_it_was_named_and_why_it_is_not_served() {
        let (a, b): (PodUid, PodUid) = ("a".into(), "b".into());
        let said = |readiness: Readiness, trouble: Option<&str>, pod: &PodUid, served| {
            let agent = ClientState {
                readiness,
                served: 0,
                trouble: trouble.map(str::to_owned),
            };
            unserved(Some(&agent), Some(pod), served).map(|wrong| (wrong.code, wrong.what))
        };
        let taken = || Unserved::Failed("listening on port 15001: Address in use".into());
        let pending = |count| Readiness::Pending(vec![(a.clone(), taken())], count);
        for served in [false, true] {
            let (code, what) = said(pending(1), None, &a, served).unwrap();
            assert!(code == "not-served" && what.ends_with("Address in use"), "{what}");
        }
        let not_named = |readiness, trouble, words: &str| {
            let (code, what) = said(readiness, trouble, &b, false).unwrap();
            assert!(code == "not-named" && what.contains(words), "{what}");
        };
        let begun = Readiness::Pending(vec![(a.clone(), Unserved::Begun)], 1);
        assert_eq!(said(begun, None, &a, false), None);
        not_named(pending(1), None, "has not named it");
        not_named(pending(40), None, "one of 40");
        not_named(Readiness::Ready, None, "has not named it");
        not_named(Readiness::Naming, None, "nor all others");
        not_named(Readiness::Alone, Some("Connection refused"), "Connection refused");
        assert_eq!(said(Readiness::Alone, Some("Connection refused"), &b, true), None);
        assert_eq!(said(pending(1), None, &b, true), None);
        assert!(unserved(None, None, false).is_some_and(|wrong| wrong.code == "not-named"));
        // Of whom the mesh tells no UID.
        let agent = ClientState {
            readiness: pending(1),
            served: 0,
            trouble: None,
        };
        assert!(unserved(Some(&agent), None, false).is_some_and(|wrong| wrong.what.contains("one of 1")));
    }

    #[test]
    fn what_the_kernel_tells_is_said_once_the_pod_is_captured() {
        let listener = |port, state| Listener {
            port,
            protocol: "TCP",
            state,
        };
        let look = Look {
            listeners: vec![listener(15001, Listens::Up), listener(15008, Listens::Missing)],
            rules: vec![Difference::Table("ambient-nat")],
            blind: None,
        };
        let said = wrong(&pod(captured(Way::Recognised)), &look);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].what.ends_with("15008:missing") && said[1].what.contains("ambient-nat"),
            "{said:?}"
        );
        assert_eq!(wrong(&pod(State::Joining), &look), []);
        let look = Look {
            listeners: vec![listener(15006, Listens::Another)],
            ..Look::default()
        };
        let said = wrong(&pod(State::Joining), &look).remove(0);
        assert!(
            said.what.ends_with("15006:another's") && said.remedy.contains("in the pod"),
            "{said:?}"
        );
        let look = Look {
            blind: Some("no right".into()),
            ..Look::default()
        };
        assert!(wrong(&pod(State::Joining), &look)[0].what.ends_with("no right"));
    }
}
