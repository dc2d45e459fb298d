//! `ambient authz explain`.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use ambient_authz::{
    Conn, Explanation,
    explain::{Field, Mismatch, Origin},
    explain_all,
    kubernetes::{Labels, peer_authentication},
};
use ambient_core::PolicyKey;
use serde::Serialize;

use super::{
    Failure, Mode, Policies,
    address::{self, Hangs, Known},
    files::{Files, Found},
    open::{Open, Verdict},
    outside,
    peer::Peer,
    place::{Finding, Level},
    print,
    target::Target,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policies: Policies,
    /// Who asks: plaintext, a SPIFFE identity with or without `spiffe://`, NAMESPACE/ACCOUNT, or NAMESPACE/NAME of a pod in
    /// the files, where the name alone will do if it is in one namespace only.
    #[arg(long, value_name = "IDENTITY")]
    from: String,
    /// The address that the connection comes from.
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// Who is asked: NAMESPACE/NAME of a pod or workload in the files, or NAMESPACE with --labels. For a NAMESPACE alone it is
    /// told what holds for all of its pods, what for each of those in the files, and what was not asked.
    #[arg(long, value_name = "WORKLOAD")]
    to: String,
    /// The labels of the pod, such as app=web,version=v1; those in the files do not count then.
    #[arg(long, value_name = "K=V,…", value_parser = labels)]
    labels: Option<Labels>,
    /// The address of the pod.
    #[arg(long, value_name = "IP")]
    to_ip: Option<IpAddr>,
    /// The port of the pod, not that of a service.
    #[arg(long)]
    port: u16,
    /// Tell every policy and every rule, however many there are; else the ten that matter most, and how many more.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    mode: Mode,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Told<'a, E> {
    #[serde(flatten)]
    explanation: E,
    #[serde(flatten)]
    open: &'a Open,
    /// What of the policies that were asked is not in force as it is written.
    findings: &'a [&'a Finding],
}

/// An explanation where the answer hangs on the pod, or on an address that is not known.
#[derive(Debug, Serialize)]
struct Unsettled {
    allowed: Option<bool>,
    reason: String,
    /// All else is of a pod that nothing selects, or of no address.
    #[serde(flatten)]
    unselected: serde_json::Map<String, serde_json::Value>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let settings = args.mode.settings();
    let domain = settings.trust_domain.clone();
    let files = Files::read(&args.policies.files, settings)?;
    files.whole()?;
    let target = Target::find(&args.to, args.labels.clone(), &files)?;
    let peer = Peer::find(&args.from, &domain, &files)?;
    let asked = Asked {
        args,
        files: &files,
        policies: files.resources.policies(),
        source: args.from_ip.or(peer.ip),
        speaker: peer.identity.clone().into(),
    };
    let destination = args.to_ip.or(target.ip);
    let mut explanation = asked.explain(&target);
    let known = Known {
        source: asked.source.is_some(),
        destination: destination.is_some(),
    };
    let mut open = Open::of(&target, &files, &asked.policies, &asked.conn(&target), known);
    let mut hanging = None;
    if open.settled {
        hanging = told(
            &address::hangs(&asked.policies, &target.workload, &asked.conn(&target), known),
            explanation.allowed,
        );
        open.settled = hanging.is_none();
    } else {
        asked.pods(&target.workload.namespace, &mut open);
    }

    let mut notes = target.notes.clone();
    notes.extend(peer.note);
    notes.extend(outside::notes(peer.outside.as_ref(), target.outside.as_ref()));
    notes.extend(target.port_note(args.port, &files));
    for (known, field, flag) in [
        (asked.source.is_some(), Field::SourceIps, "--from-ip"),
        (destination.is_some(), Field::DestinationIps, "--to-ip"),
    ] {
        if !known && compares(&explanation, field) {
            notes.push(match open.settled {
                true => format!("the {field} is not known: no other would turn the answer"),
                false => format!("the {field} counts here and is not known: give {flag}"),
            });
        }
    }
    match (open.settled || hanging.is_some(), open.unasked.len()) {
        (false, _) | (true, 0) => {}
        (true, 1) => notes.push("1 policy that selects pods by their labels was not asked: it would not turn the answer".into()),
        (true, all) => notes.push(format!(
            "{all} policies that select pods by their labels were not asked: none of them would turn the answer"
        )),
    }
    if files.authorization_policies + files.peer_authentications == 0 {
        notes.push("no AuthorizationPolicy and no PeerAuthentication is in the files".into());
    }
    explanation.notes = notes;
    let findings = concerning(&explanation, &files);
    if args.json {
        print(&json(&explanation, (&open, hanging.as_deref()), &findings)?)?;
    } else {
        if let Some(hanging) = hanging {
            print(&format!(
                "DEPENDS ON AN ADDRESS: {hanging}\n\nfor the address {UNKNOWN} in its place:\n\n"
            ))?;
        } else if !open.settled {
            print(&open.text(&target.workload.namespace, asked.most()))?;
        }
        print(&text(&explanation, &findings, &files))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The question, whichever pod it is put to.
struct Asked<'a> {
    args: &'a Args,
    files: &'a Files,
    policies: ambient_authz::Policies,
    source: Option<IpAddr>,
    speaker: ambient_authz::Peer,
}

impl Asked<'_> {
    fn conn(&self, target: &Target) -> Conn<'_> {
        let destination = self.args.to_ip.or(target.ip);
        Conn {
            peer: &self.speaker,
            source: self.source.unwrap_or(UNKNOWN),
            destination: SocketAddr::new(destination.unwrap_or(UNKNOWN), self.args.port),
        }
    }

    fn explain(&self, target: &Target) -> Explanation {
        let explain = if self.args.all { explain_all } else { ambient_authz::explain };
        let mut explanation = explain(&self.policies, &target.workload, &self.conn(target));
        explanation.trace_to(&Written {
            files: self.files,
            target,
            port: self.args.port,
        });
        explanation
    }

    /// Asks for the pods of a namespace one by one.
    fn pods(&self, namespace: &str, open: &mut Open) {
        let of_namespace = self.files.workloads.iter().filter(|w| w.namespace == namespace);
        let by_name: BTreeMap<&str, &Found> = of_namespace.map(|w| (w.name.as_str(), w)).collect();
        let most = self.most().min(by_name.len());
        open.more_pods = by_name.len() - most;
        open.pods.extend(by_name.values().take(most).map(|found| {
            let explanation = self.explain(&Target::of(found, self.files));
            Verdict {
                pod: format!("{namespace}/{}", found.name),
                allowed: explanation.allowed,
                reason: explanation.to_string().lines().next().unwrap_or_default().to_owned(),
                outside: self.files.outside(found).and_then(|outside| outside.of_itself()),
            }
        }));
    }

    /// So many pods and policies are told.
    fn most(&self) -> usize {
        if self.args.all { usize::MAX } else { MOST_TOLD }
    }
}

/// What the answer hangs on, where it hangs on an address.
fn told(hangs: &Hangs, allowed: bool) -> Option<String> {
    let answer = if allowed { "refused" } else { "allowed" };
    match hangs {
        Hangs::Not => None,
        Hangs::Perhaps => Some("it is not known, and policies name too many to try them all".into()),
        Hangs::On(addresses) => {
            let each = addresses.iter().map(|(field, address)| format!("the {field} {address}"));
            let each = each.collect::<Vec<_>>().join(" and ");
            Some(format!("it is not known, and with {each} it is {answer}"))
        }
    }
}

fn json(explanation: &Explanation, (open, hanging): (&Open, Option<&str>), findings: &[&Finding]) -> Result<String, Failure> {
    let json = if open.settled {
        let told = Told {
            explanation,
            open,
            findings,
        };
        serde_json::to_string_pretty(&told)
    } else {
        serde_json::to_value(explanation).and_then(|value| {
            let mut unselected = match value {
                serde_json::Value::Object(fields) => fields,
                _ => serde_json::Map::new(),
            };
            for told in ["allowed", "reason"] {
                unselected.remove(told);
            }
            let explanation = Unsettled {
                allowed: None,
                reason: match hanging {
                    Some(hanging) => format!("an address counts: {hanging}"),
                    None => open.reason(&explanation.connection.namespace),
                },
                unselected,
            };
            let told = Told {
                explanation,
                open,
                findings,
            };
            serde_json::to_string_pretty(&told)
        })
    };
    Ok(json.map_err(|error| Failure::input(error.to_string()))? + "\n")
}

fn text(explanation: &Explanation, findings: &[&Finding], files: &Files) -> String {
    let mut text = explanation.to_string();
    // An error that refuses has been told.
    let told = |f: &Finding| f.level == Level::Error && explanation.refusals.iter().any(|r| Some(r.key.as_str()) == f.key.as_deref());
    let mut untold = findings.iter().filter(|f| !told(f)).peekable();
    if untold.peek().is_some() {
        text += "\nnot in force as written:\n";
        untold.for_each(|finding| text += &format!("  {finding}\n"));
    }
    let elsewhere = files.errors().count() - findings.iter().filter(|f| f.level == Level::Error).count();
    match elsewhere {
        0 => {}
        1 => text += "\n1 error in a policy that does not apply here: see `ambient authz check`\n",
        more => text += &format!("\n{more} errors in policies that do not apply here: see `ambient authz check`\n"),
    }
    text
}

/// The policies of an explanation where they stand in the files.
struct Written<'a> {
    files: &'a Files,
    target: &'a Target,
    port: u16,
}

impl Origin for Written<'_> {
    fn rule(&self, policy: &PolicyKey, rule: usize) -> usize {
        self.files.resources.written_rule(policy, rule)
    }

    fn place(&self, policy: &PolicyKey, rule: Option<usize>) -> Option<String> {
        let rule = rule.map(|rule| self.rule(policy, rule));
        self.files.place_of(policy.as_str(), rule)
    }

    fn made_from(&self, policy: &PolicyKey) -> Option<String> {
        let (namespace, name) = policy.as_str().split_once('/')?;
        let own = name.strip_prefix("converted_peer_authentication_");
        if own.is_none() && name != "istio_converted_static_strict" {
            return None;
        }
        // Its own ports have no say where all of a workload is strict.
        let port = own.map(|_| self.port);
        let set = self.files.resources.peer_authentications();
        let none = Labels::new();
        let labels = self.target.labels.as_ref().unwrap_or(&none);
        let strict = peer_authentication::strict_by(set, &self.target.workload.namespace, labels, port);
        let (namespace, name) = match strict {
            Some(object) => (object.namespace(), object.name()),
            None => (namespace, own?),
        };
        let place = self.files.place_of_peer_authentication(namespace, name);
        let place = place.map_or(String::new(), |place| format!(" ({place})"));
        Some(format!("PeerAuthentication {namespace}/{name}{place}"))
    }
}

/// Whether an address was compared that nobody has told.
fn compares(explanation: &Explanation, field: Field) -> bool {
    let rules = || explanation.policies.iter().flat_map(|p| &p.rules);
    let failed = rules().flat_map(|r| &r.failures).any(|failure| match &failure.mismatch {
        Mismatch::NoneHits { field: of, .. } | Mismatch::Excluded { field: of, .. } => *of == field,
        Mismatch::Empty => false,
    });
    failed || rules().flat_map(|r| &r.hits).any(|hit| hit.field == field)
}

/// What is wrong with the policies that were asked.
fn concerning<'a>(explanation: &Explanation, files: &'a Files) -> Vec<&'a Finding> {
    let policies = explanation.policies.iter().map(|p| p.key.as_str());
    let asked: HashSet<&str> = policies.chain(explanation.refusals.iter().map(|r| r.key.as_str())).collect();
    let concerned = |f: &&Finding| f.key.as_deref().is_some_and(|key| asked.contains(key));
    files.findings.iter().filter(concerned).collect()
}

fn labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Stands for an address that nobody has told.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Of pods, and of policies that were not asked, so many are told.
const MOST_TOLD: usize = 10;
