//! The kubelet's probes of this node's pods, let through by the node's own rules.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambient_redirect::{
    pods::PodState,
    probes::{self, HostProbes, ProbesState},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time,
};

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
    // What comes after the deadline is let go: what it may have left then, a later start takes over or takes away.
    if !wanted {
        let node = node.to_owned();
        let clear = || spawn_blocking(move || HostProbes::clear(&node).map_err(|error| error.to_string()));
        if let Err(error) = answer(&mut None, clear).await {
            tracing::warn!(error, "what an earlier node has left for the kubelet's probes cannot be taken away");
        }
        return None;
    }
    match answer(&mut None, || put(node, ipv6)).await {
        Ok(rules) => {
            let states = watch::Sender::new(rules.states().borrow().clone());
            Some(Prepared { rules, states })
        }
        Err(error) => {
            tracing::warn!(
                error,
                "the kubelet's probes are judged by policies like everybody's connections: the node's own rules cannot be put in \
                 force; --probes off is silent about it"
            );
            None
        }
    }
}

/// Work with the kernel, on a thread of its own.
type Attempt<T> = JoinHandle<Result<T, String>>;

fn put(node: &str, ipv6: bool) -> Attempt<HostProbes> {
    let settings = probes::Config {
        ipv6,
        ..probes::Config::new(node)
    };
    // Never on a thread that has been in another namespace: those of the runtime have not.
    spawn_blocking(|| HostProbes::prepare(settings).map_err(|error| error.to_string()))
}

/// What comes of an attempt within [`LONGEST`]. One that takes longer does not end by that: it stays under way, to be waited for
/// the next time, so that there are never two.
async fn answer<T>(under_way: &mut Option<Attempt<T>>, begin: impl FnOnce() -> Attempt<T>) -> Result<T, String> {
    let attempt = under_way.get_or_insert_with(begin);
    let ended = time::timeout(LONGEST, attempt)
        .await
        .map_err(|_| format!("the kernel has not answered within {LONGEST:?}"))?;
    *under_way = None;
    ended.unwrap_or_else(|error| Err(error.to_string()))
}

/// Puts the rules in force again, however often that fails: whoever reads how they stand is told meanwhile.
async fn put_again<T>(put: impl Fn() -> Attempt<T>, states: &watch::Sender<ProbesState>) -> T {
    let mut under_way = None;
    loop {
        let why = match answer(&mut under_way, &put).await {
            Ok(rules) => return rules,
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
                None => put_again(|| put(&node, ipv6), &states).await,
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

/// An attempt takes a millisecond, unless the kernel is at work on what others ask of it.
const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::SystemTime};

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

    #[tokio::test(start_paused = true)]
    async fn rules_are_put_in_force_again_however_often_that_fails_and_never_twice_at_once() {
        let states = watch::Sender::new(ProbesState {
            in_force: true,
            addresses: 2,
            ..ProbesState::default()
        });
        let mut reader = states.subscribe();
        let (begun, alive) = (Cell::new(0), Arc::new(()));
        let put = || {
            assert_eq!(Arc::strong_count(&alive), 1, "one is under way still");
            begun.set(begun.get() + 1);
            let (nth, alive) = (begun.get(), alive.clone());
            tokio::spawn(async move {
                let _alive = alive;
                match nth {
                    1 | 2 => Err("busy".to_owned()),
                    3 => panic!("a test"),
                    4 => {
                        // Silent for two deadlines, and the pauses after them.
                        time::sleep(LONGEST * 2 + AGAIN * 2).await;
                        Err("too late".to_owned())
                    }
                    _ => Ok(nth),
                }
            })
        };
        let heard = async {
            let mut heard = Vec::new();
            while reader.changed().await.is_ok() {
                let state = reader.borrow_and_update().clone();
                assert_eq!((state.in_force, state.addresses), (false, 2));
                heard.push(state.error.unwrap());
            }
            heard
        };
        let start = time::Instant::now();
        let again = async {
            let rules = put_again(put, &states).await;
            drop(states);
            rules
        };
        let (rules, heard) = tokio::join!(again, heard);
        assert_eq!((rules, begun.get()), (5, 5));
        assert_eq!(start.elapsed(), AGAIN * 6 + LONGEST * 2);
        assert_eq!((heard.len(), &*heard[0], &*heard[3]), (4, "busy", "too late"), "{heard:?}");
        assert!(heard[1].contains("panicked"), "{heard:?}");
        assert!(heard[2].contains("not answered within 10s"), "{heard:?}");
    }
}
