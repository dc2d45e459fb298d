//! Can this machine do it at all? Asked in a namespace made for the question.

mod parts;

use std::{io, sync::Arc, thread};

use ambient_core::PodUid;
use socket2::{Domain, Socket, Type};

use super::{ApplyError, Difference, Inside, Mark, Netns, NetnsError, Sought};
use crate::{
    netlink,
    plan::{IpFamily, Options, PROXY_MARK, Plan},
};

pub use parts::Part;

/// Why pods cannot be redirected on this machine, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// No network namespace can be made or entered.
    #[error("a network namespace cannot be made or entered: {0}; give the process CAP_SYS_ADMIN")]
    Namespace(io::Error),
    /// Sockets cannot be marked.
    #[error("a socket cannot be marked (SO_MARK): {0}; give the process CAP_NET_ADMIN")]
    Mark(io::Error),
    /// The kernel lacks parts of what is used.
    #[error("the kernel lacks {}: load these modules, or run a kernel that has them", lacking(.0))]
    Missing(Vec<(Part, netlink::Error)>),
    /// The rules cannot be loaded.
    #[error("the redirection's rules cannot be loaded: {0}; {remedy}", remedy = remedy(.0))]
    Rules(ApplyError),
    /// The rules can be loaded, and are not what they should be.
    #[error("the kernel lists other rules than it was given: {}; a kernel of 5.10 or later is needed", list(.0))]
    Differs(Vec<Difference>),
    /// No thread to ask with.
    #[error("a thread cannot be made: {0}")]
    Thread(io::Error),
}

/// Makes a namespace, loads into it the very rules that a pod gets, reads them back, marks a socket, and lets it all go.
/// Nothing of the machine is changed.
///
/// # Errors
/// Says what is missing: a capability, or a module of the kernel.
pub async fn preflight(options: &Options) -> Result<(), PreflightError> {
    // With what refuses, which a pod has at times.
    let plan = Plan::new(options).and_closed(options);
    let (answer, answered) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("netns-preflight".into())
        .spawn(move || {
            let _ = answer.send(ask(&plan));
        })
        .map_err(PreflightError::Thread)?;
    answered
        .await
        .unwrap_or_else(|_| Err(PreflightError::Thread(io::Error::other("it ended without an answer"))))
}

/// Leaves the calling thread in the namespace that it was in, or ends as an error.
fn ask(plan: &Plan) -> Result<(), PreflightError> {
    let entered = |e: NetnsError| PreflightError::Namespace(e.into());
    let home = Arc::new(Netns::current().map_err(entered)?);
    unshare().map_err(PreflightError::Namespace)?;
    Netns::current().and_then(|scratch| scratch.enter()).map_err(entered)?;

    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(PreflightError::Mark)?;
    socket.set_mark(PROXY_MARK).map_err(PreflightError::Mark)?;

    let mut inside = Inside::here(Arc::default()).map_err(PreflightError::Rules)?;
    inside.set_loopback_up().map_err(PreflightError::Rules)?;
    // Part by part first: of rules that are loaded together the kernel says no more than that they cannot be.
    // Where IPv6 is switched off there is none to be captured.
    let families = inside.families(&plan.rules).map_err(PreflightError::Rules)?;
    let missing = parts::missing(families.contains(&IpFamily::V6));
    if !missing.is_empty() && !missing.iter().any(|(_, e)| e.forbidden()) {
        return Err(PreflightError::Missing(missing));
    }

    let pod = Mark::new("preflight", &PodUid::from("preflight"));
    inside.apply(plan, &pod).map_err(PreflightError::Rules)?;
    let differences = inside.rules(plan, &pod).map_err(PreflightError::Rules)?;
    if !differences.is_empty() {
        return Err(PreflightError::Differs(differences));
    }
    inside.around(Sought::All, 1, |_, _| Ok(())).map_err(PreflightError::Rules)?;
    inside.tracked().map_err(PreflightError::Rules)?;
    inside.clear().map_err(PreflightError::Rules)?;
    home.enter().map_err(entered)
}

#[allow(
    unsafe_code,
    reason = "rustix calls unshare unsafe for the sake of CLONE_FILES, which is not asked for"
)]
fn unshare() -> io::Result<()> {
    // SAFETY: only the network namespace is left, and only by this thread; its descriptors stay shared with the others'.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn remedy(error: &ApplyError) -> &'static str {
    match error {
        ApplyError::Kernel(e) if e.forbidden() => "give the process CAP_NET_ADMIN",
        ApplyError::Kernel(_) => {
            "load the kernel modules nf_tables, nft_redir, nft_ct, nft_reject_inet, nf_conntrack, nf_conntrack_netlink and tcp_diag, and allow policy routing"
        }
        _ => "give the process CAP_SYS_ADMIN and CAP_NET_ADMIN",
    }
}

fn lacking(missing: &[(Part, netlink::Error)]) -> String {
    missing
        .iter()
        .map(|(part, e)| format!("{part}: {e}"))
        .collect::<Vec<_>>()
        .join("; ")
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
