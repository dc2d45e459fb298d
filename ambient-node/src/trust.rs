//! Roots, revocations and withdrawals, as far as they concern what lives.

use std::{sync::Arc, time::Duration};

use ambient_core::{Credentials as _, Identity};
use tokio::time;

use crate::node::Shared;

/// Looks whether the issuer's roots or CRLs have changed, and has live connections asked again then; ends those of identities
/// that were withdrawn. Handshakes look themselves.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut last = shared.certificates.trust();
    // It may have changed since the node was made.
    shared.locals.recheck();
    loop {
        time::sleep(BETWEEN_LOOKS).await;
        shared
            .certificates
            .take_withdrawn()
            .iter()
            .for_each(|identity| withdraw(&shared, identity));
        let now = shared.certificates.trust();
        // The same value is at the same address for as long as nothing changes.
        if Arc::ptr_eq(&now, &last) || *now == *last {
            // What has come since was issued by what may be in force no more.
            shared.certificates.judge();
            continue;
        }
        last = now;
        let roots: usize = last.domains().map(|domain| last.roots(domain).len()).sum();
        let lists: usize = last.domains().map(|domain| last.crls(domain).len()).sum();
        tracing::info!(roots, lists, "roots or revocations have changed");
        recheck(&shared);
    }
}

/// Ends the tunnels whose peer is revoked by the trust of now, and has certificates of this node that peers refuse by it replaced.
pub(crate) fn recheck(shared: &Shared) {
    let server = shared.server.recheck();
    let pools = shared
        .workers
        .iter()
        .map(|worker| worker.tunnels.recheck().ended + worker.inner.recheck().ended);
    let ended = server.ended + pools.sum::<usize>() + shared.locals.recheck();
    if ended > 0 {
        tracing::info!(ended, "tunnels ended: their peers are revoked");
    }
    // All share what was read.
    for fault in server.faults {
        tracing::error!(%fault, "a CRL cannot be used");
    }
    shared.certificates.judge();
}

/// Ends what pods of an identity have open by tunnel, in either direction: nobody vouches for it any more.
fn withdraw(shared: &Shared, identity: &Identity) {
    let pools = shared
        .workers
        .iter()
        .map(|worker| worker.tunnels.withdraw(identity) + worker.inner.withdraw(identity));
    let ended = pools.sum::<usize>() + shared.server.withdraw(identity) + shared.locals.withdraw(identity);
    if ended > 0 {
        tracing::info!(%identity, ended, "tunnels ended: the identity was withdrawn");
    }
}

/// A revocation or a withdrawal is in force for live connections after that, at most.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
