//! The kubelet's probes of this node's pods, let through by the node's own rules.

use std::sync::{Arc, Mutex, PoisonError};

use ambient_redirect::{
    pods::PodState,
    probes::{self, HostProbes, ProbesState},
};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{supervise::supervise, telemetry::Metrics};

/// Puts the node's rules in force, or takes them away where they are switched off. `None` where there are none: what the
/// node's processes send to pods is then judged by policies like everybody's.
pub(crate) async fn prepare(node: &str, ipv6: bool, wanted: bool) -> Option<HostProbes> {
    let settings = probes::Config {
        ipv6,
        ..probes::Config::new(node)
    };
    // Never on a thread that has been in another namespace: those of the runtime have not.
    let prepared = spawn_blocking(move || match wanted {
        true => HostProbes::prepare(settings).map(Some),
        false => HostProbes::clear(&settings.node).map(|()| None),
    });
    let why = match prepared.await {
        Ok(Ok(probes)) => return probes,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    match wanted {
        true => tracing::warn!(
            error = why,
            "the kubelet's probes are judged by policies like everybody's connections: the node's own rules cannot be put in \
             force; --probes off is silent about it"
        ),
        false => tracing::warn!(
            error = why,
            "what an earlier node has left for the kubelet's probes cannot be taken away"
        ),
    }
    None
}

/// Upholds the rules, as pods come and go; with rules put in force anew where that panics. Never ends.
pub(crate) async fn uphold(
    (node, ipv6): (Arc<str>, bool),
    metrics: Arc<Metrics>,
    probes: HostProbes,
    captures: watch::Receiver<Arc<[PodState]>>,
) {
    let prepared = Mutex::new(Some(probes));
    let begin = || {
        let prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (node, captures) = (node.clone(), captures.clone());
        async move {
            let probes = match prepared {
                Some(probes) => Some(probes),
                None => prepare(&node, ipv6, true).await,
            };
            if let Some(probes) = probes {
                tokio::select! {
                    () = tell(probes.states()) => {}
                    () = probes.run(captures, std::future::pending()) => {}
                }
            }
        }
    };
    supervise("the node's rules for probes", &metrics, begin).await;
    // Whom it follows has gone, with all of the node: its end is told elsewhere.
    std::future::pending().await
}

/// Puts into the log what becomes of the rules.
async fn tell(mut states: watch::Receiver<ProbesState>) {
    let mut told = ProbesState::default();
    loop {
        let now = states.borrow_and_update().clone();
        if let Some(error) = now.error.as_ref().filter(|_| now.error != told.error) {
            tracing::error!(error, "the kubelet's probes may be refused: the node's own rules cannot be upheld");
        }
        if let Some((_, what)) = now.last_repair.as_ref().filter(|_| now.repairs != told.repairs) {
            tracing::warn!(
                what,
                repairs = now.repairs,
                "the node's rules for the kubelet's probes were changed, and are mended"
            );
        }
        told = now;
        if states.changed().await.is_err() {
            // Whoever upheld them has gone, with all of the node; its end is told elsewhere.
            return std::future::pending().await;
        }
    }
}
