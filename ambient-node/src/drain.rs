//! The end of a node: nothing new is taken, what is open goes on until a deadline, and then is reset.

use std::time::Duration;

use tokio::{task::JoinHandle, time};

use crate::{
    Shared,
    admin::{Stop, Urgency},
    clock,
    pod::Stage,
    pods::Pods,
};

/// How long connections that were cut have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long peers have to hear that they are to open nothing more: who answers has by then, and who does not holds nobody up.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two looks at what is open.
const GLANCE: Duration = Duration::from_millis(10);
/// Between two lines in the log about what is left.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Ends what the pods have open: peers are told by GOAWAY at once, and what is still open after the time for it is reset.
/// Whoever asks a second time, more urgently, has it now.
///
/// `enrolling` was told to end, and has the same time for the steps that are under way; what it leaves half done the next process
/// takes over.
pub(crate) async fn drain(shared: &Shared, pods: &Pods, told: &Stop, mut enrolling: JoinHandle<()>) {
    let begun = clock::steady();
    let patience = shared.config.drain;
    tracing::info!(
        open = pods.open_connections(),
        deadline = ?patience,
        "stopping: nothing new is taken, and open connections go on for a while"
    );
    pods.advance(Stage::Draining);
    let ended = async {
        tokio::join!(at_rest_within(pods, patience), end_within(&mut enrolling, patience));
    };
    tokio::select! {
        () = ended => {}
        () = tell_progress(pods, patience) => {}
        () = told.told(Urgency::Immediate) => {}
    }
    let took = clock::steady().duration_since(begun);
    match pods.open_connections() {
        0 => tracing::info!(?took, "stopped: every connection has ended by itself"),
        left => tracing::warn!(left, ?took, "stopped: what is still open is reset"),
    }
    pods.advance(Stage::Stopped);
    // What was cut tells of itself before the threads end.
    tokio::join!(idle_within(pods, LAST_WORDS), end_within(&mut enrolling, LAST_WORDS));
    enrolling.abort();
}

async fn end_within(enrolling: &mut JoinHandle<()>, patience: Duration) {
    // One that has been looked at cannot be again.
    if !enrolling.is_finished() {
        let _ = time::timeout(patience, enrolling).await;
    }
}

/// Says from time to time how much is left; never ends.
async fn tell_progress(pods: &Pods, patience: Duration) {
    let end = clock::steady() + patience;
    loop {
        time::sleep(TOLD_EVERY).await;
        let remaining = end.saturating_duration_since(clock::steady());
        tracing::info!(open = pods.open_connections(), ?remaining, "stopping: connections are still open");
    }
}

/// Waits until nothing is open and nothing can come any more: what was on its way to a listener is taken, and peers have heard.
async fn at_rest_within(pods: &Pods, patience: Duration) {
    let farewell = clock::steady() + FAREWELL;
    let rests = || {
        let heard = pods.peers() == 0 || clock::steady() >= farewell;
        !pods.any_accepts() && heard && pods.open_connections() == 0
    };
    let rest = async {
        // What is handed over from one thread to another is counted by neither for a moment: a second look, a little later, finds it
        // unless that thread is very busy.
        let mut before = false;
        loop {
            let now = rests();
            if before && now {
                return;
            }
            before = now;
            time::sleep(GLANCE).await;
        }
    };
    let _ = time::timeout(patience, rest).await;
}

async fn idle_within(pods: &Pods, patience: Duration) {
    let idle = async {
        while pods.open_connections() > 0 {
            time::sleep(GLANCE).await;
        }
    };
    let _ = time::timeout(patience, idle).await;
}
