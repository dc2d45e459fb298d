//! `ambient ca`: the certificate authority of a mesh in a directory, seen to by its administrator.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use ambient_control::ca::{Authority, Given, OpenError, Revocation, Rotation, Shown, Target, date};
use ambient_core::{Identity, TrustDomain};
use anyhow::Context as _;

use crate::{
    owned::owned,
    say,
    settings::{self, Setting, time},
};

/// What is done with the authority.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Make an authority, in a directory that is empty or not there.
    Init {
        #[command(flatten)]
        of: Directory,
        /// The trust domain of the mesh.
        #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
        trust_domain: TrustDomain,
    },
    /// Issue to a node what signs for its workloads, or to one workload a certificate.
    ///
    /// A node is given a directory that it names with --ca-dir: an intermediate, which lives 24 hours at most and is to be
    /// carried there again before that, and the roots; not the root's key. Whoever steals it can be any workload of the
    /// mesh until it ends or is revoked: let nodes ask `ambient control` where that can be.
    Issue {
        #[command(flatten)]
        of: Directory,
        #[command(flatten)]
        whom: Whom,
        /// The directory to write to; mode 0700 if it is made.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it is valid: 24 hours at most.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
        life: Duration,
    },
    /// Go on by one stage with a change of roots: a new root is trusted, then it signs, then the old one is withdrawn.
    ///
    /// Call it again when it says so, three times in all. Whatever asks this directory hears of each stage at once, and so does
    /// every `ambient node` on the stream of `ambient control`. ztunnel has no such stream: it hears with its next certificate, at
    /// half the life of the one that it has, so after 12 hours where that is 24 (--secret-ttl). Files that were copied elsewhere
    /// (root.pem as --xds-root-ca, directories of `ambient ca issue`) must be copied again after each stage. No handshake is
    /// refused where --grace covers all of them.
    ///
    /// Where the root's key is stolen: with --grace 0s, a few seconds apart, until it has said stage 1 since the theft, then stages 2 and
    /// 3. The old root, and whatever the thief signs with it, is refused from then on.
    Rotate {
        #[command(flatten)]
        of: Directory,
        /// How long two stages lie apart, at least.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
        grace: Duration,
    },
    /// Revoke an identity, a certificate, or what a node signs with; new connections are refused and open ones closed.
    ///
    /// Whatever asks this directory hears of it at once. crl.pem in it is for others: ztunnel takes it as CRL_PATH.
    Revoke {
        #[command(flatten)]
        of: Directory,
        #[command(flatten)]
        what: What,
        /// The serial number of the issuer, for a certificate that is not listed.
        #[arg(long, value_name = "HEX", requires = "serial")]
        issuer: Option<String>,
    },
    /// Show the roots, what signs below them, what was issued and revoked, and when each ends.
    Show {
        #[command(flatten)]
        of: Directory,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Directory {
    /// The directory of the certificate authority.
    #[arg(long, env = "AMBIENT_CA_DIR", value_name = "DIR")]
    ca: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whom {
    /// The node that is to sign for its workloads.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// The workload, as spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT: key.pem, cert-chain.pem and root-cert.pem.
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<Identity>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// An identity: all its certificates, and it gets no new ones.
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<Identity>,
    /// The certificate or intermediate with this serial number, as `ambient ca show` lists it.
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// All of a node: its intermediates and all that they have signed, by what `ambient control` knows it, and what that has signed
    /// for it and its pods.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Let an identity that was revoked have certificates again; those revoked stay so.
    #[arg(long, value_name = "SPIFFE-ID")]
    lift: Option<Identity>,
}

/// What goes wrong is one line on standard error.
pub(crate) fn main(verb: Verb, settings: &[Setting]) -> ExitCode {
    let done = owned(&verb.directory().ca, &settings::by(settings, "ca")).and_then(|()| run(verb));
    let done = done.and_then(|text| say::print(&format!("{}\n", text.trim_end())));
    say::ended("ca", done)
}

impl Verb {
    fn directory(&self) -> &Directory {
        match self {
            Self::Init { of, .. } | Self::Issue { of, .. } | Self::Rotate { of, .. } | Self::Revoke { of, .. } | Self::Show { of } => of,
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<String> {
    match verb {
        Verb::Init { of, trust_domain } => {
            let authority = Authority::init(&of.ca, trust_domain, now())?;
            let shown = authority.show(now())?;
            answer(&of, &shown, |shown| {
                format!(
                    "an authority of the trust domain {} is in {}; its root {} is valid until {}",
                    shown.trust_domain,
                    of.ca.display(),
                    shown.roots[0].serial,
                    date(shown.roots[0].expires)
                )
            })
        }
        Verb::Issue { of, whom, out, life } => {
            anyhow::ensure!(
                (Duration::from_secs(1)..=Authority::GRACE).contains(&life),
                "--life must be from one second to 24 hours"
            );
            let authority = Authority::open(&of.ca)?;
            let given = match (&whom.node, &whom.identity) {
                (Some(node), _) => authority.issue_to_node(node, life, &out, now())?,
                (None, Some(identity)) => authority.issue_to_workload(identity, life, &out, now())?,
                (None, None) => anyhow::bail!("--node or --identity says to whom"),
            };
            answer(&of, &given, given_text)
        }
        Verb::Rotate { of, grace } => answer(&of, &Authority::open(&of.ca)?.rotate(grace, now())?, rotation_text),
        Verb::Revoke { of, what, issuer } => {
            let authority = Authority::open(&of.ca)?;
            if let Some(identity) = &what.lift {
                authority.lift(identity)?;
                return answer(&of, &serde_json::json!({ "lifted": identity.as_str() }), |_| {
                    format!("{identity} gets certificates again; those that were revoked stay so")
                });
            }
            let target = match (what.identity, what.serial, what.node) {
                (Some(identity), ..) => Target::Identity(identity),
                (_, Some(serial), _) => Target::Serial { serial, issuer },
                (.., Some(node)) => return revoke_node(&of, &authority, node),
                _ => anyhow::bail!("--identity, --serial or --node says what"),
            };
            answer(&of, &authority.revoke(&target, now())?, revocation_text)
        }
        Verb::Show { of } => answer(&of, &Authority::open(&of.ca)?.show(now())?, shown_text),
    }
}

/// What was revoked of a node: what it signs with, and by what it is known.
#[derive(serde::Serialize)]
struct OfNode {
    #[serde(flatten)]
    signing: Option<Revocation>,
    tokens: usize,
    node_certificates: usize,
}

fn revoke_node(of: &Directory, authority: &Authority, node: String) -> anyhow::Result<String> {
    let (tokens, node_certificates) = known(of, &node)?;
    let signing = match authority.revoke(&Target::Node(node), now()) {
        Ok(revocation) => Some(revocation),
        // A node that lives on `ambient control` signs nothing, and may have asked for nothing.
        Err(OpenError::Unknown { .. }) if tokens + node_certificates > 0 => None,
        Err(error) => return Err(error.into()),
    };
    let revoked = OfNode {
        signing,
        tokens,
        node_certificates,
    };
    answer(of, &revoked, |revoked| {
        let signing = revoked.signing.as_ref().map(revocation_text);
        let known = format!(
            "of what `ambient control` knows it by: {} tokens and {} certificates revoked",
            revoked.tokens, revoked.node_certificates
        );
        signing.into_iter().chain([known]).collect::<Vec<_>>().join("\n")
    })
}

/// Ends what `ambient control` knows a node by: tokens and certificates.
#[cfg(feature = "control")]
fn known(of: &Directory, node: &str) -> anyhow::Result<(usize, usize)> {
    let revoked = crate::control::nodes(&of.ca).revoke(node, now())?;
    Ok((revoked.tokens, revoked.certificates))
}

#[cfg(not(feature = "control"))]
fn known(_: &Directory, _: &str) -> anyhow::Result<(usize, usize)> {
    Ok((0, 0))
}

fn answer<T: serde::Serialize>(of: &Directory, what: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<String> {
    match of.json {
        true => serde_json::to_string_pretty(what).context("no JSON"),
        false => Ok(text(what)),
    }
}

fn given_text(given: &Given) -> String {
    let files: Vec<_> = given.files.iter().map(|file| format!("\n  {}", file.display())).collect();
    format!(
        "issued {}, valid until {}; written:{}",
        given.serial,
        date(given.expires),
        files.concat()
    )
}

fn rotation_text(rotation: &Rotation) -> String {
    match rotation {
        Rotation::Trusted { root, next } => format!(
            "stage 1 of 3: the new root {root} is trusted, and the old one still signs; `ambient ca rotate` from {} on has it sign",
            date(*next)
        ),
        Rotation::Used { root, next } => format!(
            "stage 2 of 3: the root {root} signs, and the old one is still trusted; `ambient ca rotate` from {} on withdraws that",
            date(*next)
        ),
        Rotation::Withdrawn { roots } => format!("stage 3 of 3: no longer trusted: {}", roots.join(", ")),
        Rotation::Waits { until } => format!(
            "nothing was done: nodes may use what is of the stage before until {}; --grace says otherwise",
            date(*until)
        ),
    }
}

fn revocation_text(revocation: &Revocation) -> String {
    let mut text = match &revocation.certificates[..] {
        [] if !revocation.unreadable.is_empty() => "revoked: none that is known".to_owned(),
        [] => "no certificate was valid that was not revoked already".to_owned(),
        some => format!("revoked: {}", some.len()),
    };
    for one in &revocation.certificates {
        text.push_str(&format!("\n  {}  {}", one.serial, one.name));
    }
    for one in &revocation.unreadable {
        text.push_str(&format!(
            "\n{one}: what it tells of was not revoked; put the right one back and revoke again, or revoke its issuer, whose serial number \
             the file bears, with --serial"
        ));
    }
    if let Some(barred) = &revocation.barred {
        text.push_str(&format!("\n{barred} gets no certificate any more; --lift takes that back"));
    }
    if !revocation.nodes.is_empty() {
        text.push_str(&format!(
            "\na node with a directory of its own that was issued to it here signs for it still, and what that has signed is not \
             listed here: `ambient ca issue --node` again and carry it there, `ambient ca revoke --identity` there, or revoke all of \
             the node with --node: {}",
            revocation.nodes.join(", ")
        ));
    }
    text.push_str(&format!("\nwritten: {}", revocation.lists.display()));
    text
}

fn shown_text(shown: &Shown) -> String {
    let mut text = format!(
        "trust domain {}\n\n{:<34}{:<10}{:<22}NAME\n",
        shown.trust_domain, "ROOT", "ROLE", "ENDS"
    );
    for root in &shown.roots {
        let line = format!("{:<34}{:<10}{:<22}{}\n", root.serial, root.role, date(root.expires), root.name);
        text.push_str(&line);
    }
    text.push_str(&format!(
        "\n{:<34}{:<10}{:<22}{:<8}NODE\n",
        "INTERMEDIATE", "STATE", "ENDS", "ISSUED"
    ));
    for one in &shown.intermediates {
        let (state, ends) = (state(one.revoked, one.trusted), date(one.expires));
        text.push_str(&format!("{:<34}{state:<10}{ends:<22}{:<8}{}\n", one.serial, one.issued, one.node));
    }
    text.push_str(&format!("\n{:<34}{:<10}{:<22}NAME\n", "CERTIFICATE", "STATE", "ENDS"));
    for one in &shown.issued {
        let line = format!(
            "{:<34}{:<10}{:<22}{}\n",
            one.serial,
            state(one.revoked, one.trusted),
            date(one.expires),
            one.name
        );
        text.push_str(&line);
    }
    for one in &shown.unreadable {
        text.push_str(&format!("\n{one}: what it tells of is not listed here, and may be valid"));
    }
    for barred in &shown.barred {
        text.push_str(&format!("\nrevoked, and gets no certificate any more: {barred}"));
    }
    for (issuer, next) in &shown.lists {
        text.push_str(&format!("\nrevocation list of {issuer}, to be signed anew by {}", date(*next)));
    }
    for path in &shown.foreign {
        text.push_str(&format!("\nnone of an authority's files: {}", path.display()));
    }
    text
}

fn state(revoked: bool, trusted: bool) -> &'static str {
    match (revoked, trusted) {
        (true, _) => "revoked",
        (false, true) => "good",
        (false, false) => "untrusted",
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates bear the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}
