//! A stream of an agent's that is opened again whenever it ends.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, Response, Status, Streaming};

use super::svid::whole;
use crate::backoff::Backoff;

/// What a subscription brings.
pub(super) enum Came<R> {
    /// An answer.
    Answer(R),
    /// No stream, or the end of one. It is tried again.
    Failure(Failure),
}

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What the agent says, if it is the one who says it.
    pub(super) code: Option<Code>,
    pub(super) text: String,
}

impl Failure {
    fn of(status: &Status) -> Self {
        // What has a cause was not said by the agent but happened on the way to it.
        let on_the_way = std::error::Error::source(status);
        match on_the_way {
            Some(cause) => Self {
                code: None,
                text: whole(cause),
            },
            None => Self {
                code: Some(status.code()),
                text: format!("it says {:?}: {}", status.code(), status.message()),
            },
        }
    }

    fn local(text: String) -> Self {
        Self { code: None, text }
    }
}

/// Whether an agent is there, as its streams find out: one for all of them.
#[derive(Debug)]
pub(super) struct Presence {
    /// Nobody was there when one of them was opened last.
    away: AtomicBool,
    /// Counts how often it came back.
    back: watch::Sender<u64>,
}

impl Presence {
    pub(super) fn new() -> Self {
        Self {
            away: AtomicBool::new(false),
            back: watch::Sender::new(0),
        }
    }

    fn lost(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    fn heard(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            self.back.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// What a stream does while nobody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// It looks often whether somebody is. A socket on this machine costs nobody anything.
    Looks,
    /// It looks now and then, and waits for those that look often.
    Waits,
}

/// Keeps a subscription open for as long as it is polled: after every end it waits, longer each time that nothing has come, and
/// no longer once the agent has come back.
pub(super) async fn follow<R, F>(
    presence: &Presence,
    away: Away,
    open: impl Fn() -> F,
    mut hear: impl FnMut(Came<R>),
) -> std::convert::Infallible
where
    F: Future<Output = Result<Response<Streaming<R>>, Status>>,
{
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut spread = Backoff::new(BACK, BACK);
    let mut back = presence.back.subscribe();
    loop {
        back.mark_unchanged();
        let failure = match timeout(ANSWERING, open()).await {
            Ok(Ok(stream)) => {
                let mut stream = stream.into_inner();
                let mut heard = false;
                loop {
                    let deadline = if heard { FOR_EVER } else { ANSWERING };
                    match timeout(deadline, stream.message()).await {
                        Ok(Ok(Some(answer))) => {
                            heard = true;
                            backoff.reset();
                            presence.heard();
                            hear(Came::Answer(answer));
                        }
                        Ok(Ok(None)) => break Failure::local("it has closed the stream".into()),
                        Ok(Err(status)) => break Failure::of(&status),
                        Err(_) if heard => {}
                        Err(_) => break Failure::local(format!("it says nothing for {ANSWERING:?}")),
                    }
                }
            }
            Ok(Err(status)) => Failure::of(&status),
            Err(_) => Failure::local(format!("no answer within {ANSWERING:?}")),
        };
        let mut wait = backoff.next();
        if failure.code.is_none() {
            presence.lost();
            if away == Away::Looks {
                wait = wait.min(LOOKING);
            }
        }
        hear(Came::Failure(failure));
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = back.changed() => {
                backoff.reset();
                sleep(spread.next()).await;
            }
        }
    }
}

/// How long a first answer may take: an agent asks its server for an SVID that is new to it.
pub(super) const ANSWERING: Duration = Duration::from_secs(30);
/// How long a stream may say nothing once it has spoken: an SVID of a year is renewed after half of it. That the agent is
/// there at all is seen by pings.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);
/// The first wait after an end, doubled up to the longest; each is spread.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The longest wait of a stream that looks whether somebody is there.
const LOOKING: Duration = Duration::from_secs(1);
/// How long after an agent has come back its streams are opened at the latest: there may be a thousand, and not in one moment.
const BACK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::time::Instant;

    use super::*;

    /// What an agent that never answers as it should is asked, by a virtual clock: when, and what is said of it.
    async fn asked<F>(of: impl Fn() -> F) -> (Vec<Duration>, Vec<Failure>)
    where
        F: Future<Output = Result<Response<Streaming<()>>, Status>>,
    {
        let start = Instant::now();
        let (times, failures) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(Vec::new()));
        let open = || {
            times.lock().unwrap().push(start.elapsed());
            of()
        };
        let hear = |came| match came {
            Came::Failure(failure) => failures.lock().unwrap().push(failure),
            Came::Answer(()) => unreachable!("it never answers"),
        };
        let presence = Presence::new();
        let ended = timeout(Duration::from_secs(600), follow(&presence, Away::Waits, open, hear)).await;
        assert!(ended.is_err());
        let times = times.lock().unwrap().clone();
        (times, failures.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_tried_again_after_waits_that_grow_to_a_bound() {
        let refuse = || std::future::ready(Err(Status::permission_denied("no")));
        let (times, failures) = asked(refuse).await;
        assert_eq!(failures[0].code, Some(Code::PermissionDenied));
        assert_eq!(failures[0].text, "it says PermissionDenied: no");
        let waits: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
        // A timer is a millisecond late at most.
        let slack = Duration::from_millis(2);
        assert!(waits[0] >= FIRST_WAIT / 2 && waits[0] <= FIRST_WAIT + slack, "{waits:?}");
        assert!(
            waits[10..].iter().all(|w| *w >= LONGEST_WAIT / 2 && *w <= LONGEST_WAIT + slack),
            "{waits:?}"
        );
        assert!((40..100).contains(&times.len()), "{}", times.len());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_hangs_is_given_up_in_time() {
        let (times, failures) = asked(std::future::pending).await;
        assert!(times[1] >= ANSWERING && times[1] <= ANSWERING + FIRST_WAIT * 2, "{times:?}");
        assert!(
            failures.iter().all(|f| f.code.is_none() && f.text.contains("no answer within 30s")),
            "{failures:?}"
        );
    }

    /// Nobody is there for ten minutes. Whoever looks finds the next one within a second, by which all others know.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_comes_back_is_found_in_a_second_and_by_all() {
        let (start, presence) = (Instant::now(), Presence::new());
        let away = Duration::from_secs(600);
        let (looks, waits) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let open = |asked: &Mutex<Vec<Duration>>| {
            asked.lock().unwrap().push(start.elapsed());
            let there = start.elapsed() >= away;
            async move {
                match there {
                    true => Ok(answering().await),
                    false => Err(gone()),
                }
            }
        };
        let (looking, waiting) = (
            follow(&presence, Away::Looks, || open(&looks), |_: Came<()>| {}),
            follow(&presence, Away::Waits, || open(&waits), |_: Came<()>| {}),
        );
        let until = away + Duration::from_secs(3);
        let ended = timeout(until, async { tokio::join!(looking, waiting) }).await;
        assert!(ended.is_err());
        let (looks, waits) = (looks.into_inner().unwrap(), waits.into_inner().unwrap());
        let found = *looks.last().unwrap();
        let slack = Duration::from_millis(5);
        assert!(found >= away && found <= away + LOOKING + slack, "{found:?}");
        let told = *waits.last().unwrap();
        assert!(told >= away && told <= found + BACK + slack, "{told:?} after {found:?}");
        assert!((300..1300).contains(&looks.len()), "{} looks", looks.len());
        assert!((40..100).contains(&waits.len()), "{} by the other", waits.len());
    }

    /// As tonic says it where nobody listens.
    fn gone() -> Status {
        Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::NotFound)))
    }

    /// A stream that has said one thing, and stays.
    async fn answering() -> Response<Streaming<()>> {
        let (mut says, body) = http_body_util::channel::Channel::<bytes::Bytes, Status>::new(1);
        says.send_data(bytes::Bytes::from_static(&[0; 5])).await.unwrap();
        // It is never ended.
        std::mem::forget(says);
        let decoder = tonic_prost::ProstCodec::<(), ()>::raw_decoder(Default::default());
        Response::new(Streaming::new_request(decoder, body, None, None))
    }
}
