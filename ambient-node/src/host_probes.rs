//! The kubelet's probes of this node's pods, let through by the node's own rules.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_redirect::{
    pods::PodState,
    probes::{self, HostProbes, ProbesState},
};
use tokio::{sync::watch, task::spawn_blocking, time};

use crate::{supervise::supervise, telemetry::Metrics};

/// The node's rules in force, and who hears how they stand, whoever upholds them at the time.
#[derive(Debug)]
pub(crate) struct Prepared {
    rules: HostProbes,
    states: watch::Sender<ProbesState>,
}

impl Prepared {
    pub(crate) fn states(&self) -> watch::Receiver<ProbesState> {
        self.states.subscribe()
    }
}

/// Puts the node's rules in force, or takes them away where they are switched off. `None` where there are none: what the
/// node's processes send to pods is then judged by policies like everybody's.
pub(crate) async fn prepare(node: &str, ipv6: bool, wanted: bool) -> Option<Prepared> {
    let why = match put(node, ipv6, wanted).await {
        Ok(rules) => {
            let states = watch::Sender::default();
            return rules.map(|rules| Prepared { rules, states });
        }
        Err(why) => why,
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

async fn put(node: &str, ipv6: bool, wanted: bool) -> Result<Option<HostProbes>, String> {
    let settings = probes::Config {
        ipv6,
        ..probes::Config::new(node)
    };
    // Never on a thread that has been in another namespace: those of the runtime have not.
    let put = spawn_blocking(move || match wanted {
        true => HostProbes::prepare(settings).map(Some),
        false => HostProbes::clear(&settings.node).map(|()| None),
    });
    match put.await {
        Ok(put) => put.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Puts the rules in force again, however often that fails: whoever reads how they stand is told meanwhile.
async fn put_again(node: &str, ipv6: bool, states: &watch::Sender<ProbesState>) -> HostProbes {
    loop {
        let why = match put(node, ipv6, true).await {
            Ok(Some(rules)) => return rules,
            Ok(None) => "there are none".to_owned(),
            Err(why) => why,
        };
        let is_news = states.send_if_modified(|state| {
            let error = Some(why.clone());
            let is_news = state.in_force || state.error != error;
            (state.in_force, state.error) = (false, error);
            is_news
        });
        if is_news {
            tracing::error!(
                error = why,
                "the kubelet's probes may be refused: the node's own rules cannot be put in force again"
            );
        }
        time::sleep(AGAIN).await;
    }
}

/// Upholds the rules, as pods come and go; with rules put in force anew where that panics. Never ends.
pub(crate) async fn uphold(
    (node, ipv6): (Arc<str>, bool),
    metrics: Arc<Metrics>,
    Prepared { rules, states }: Prepared,
    captures: watch::Receiver<Arc<[PodState]>>,
) {
    let prepared = Mutex::new(Some(rules));
    let begin = || {
        let prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (node, captures, states) = (node.clone(), captures.clone(), states.clone());
        async move {
            let rules = match prepared {
                Some(rules) => rules,
                None => put_again(&node, ipv6, &states).await,
            };
            tokio::select! {
                () = tell(rules.states(), &states) => {}
                () = rules.run(captures, std::future::pending()) => {}
            }
        }
    };
    supervise("the node's rules for probes", &metrics, begin).await;
    // Whom it follows has gone, with all of the node: its end is told elsewhere.
    std::future::pending().await
}

/// Puts into the log what becomes of the rules, and tells those who read it; of whoever upheld them before, the repairs count on.
async fn tell(mut own: watch::Receiver<ProbesState>, states: &watch::Sender<ProbesState>) {
    let before = states.borrow().clone();
    let mut told = before.clone();
    loop {
        let mut now = own.borrow_and_update().clone();
        now.repairs += before.repairs;
        now.last_repair = now.last_repair.or_else(|| before.last_repair.clone());
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
        states.send_replace(now.clone());
        told = now;
        if own.changed().await.is_err() {
            // Whoever upheld them has gone, with all of the node; its end is told elsewhere.
            return std::future::pending().await;
        }
    }
}

/// Between two attempts to put the rules in force again.
const AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_how_they_stand_hears_of_whoever_upholds_them_now() {
        let states = watch::Sender::default();
        let reader = states.subscribe();
        for nth in 1..=2 {
            let own = watch::Sender::new(ProbesState {
                in_force: true,
                addresses: nth,
                repairs: 1,
                last_repair: Some((SystemTime::UNIX_EPOCH, format!("{nth}"))),
                error: None,
            });
            // It ends as a task does that panics: all that it holds is dropped.
            let telling = time::timeout(Duration::from_millis(10), tell(own.subscribe(), &states));
            assert!(telling.await.is_err());
            let read = reader.borrow().clone();
            assert_eq!((read.addresses, read.repairs), (nth, nth as u64));
            assert_eq!(read.last_repair.unwrap().1, format!("{nth}"));
        }
    }
}
