//! Acknowledgements that an application may be waiting for.
//!
//! Nagle's algorithm (RFC 9293, 3.7.4) holds back what is smaller than a segment until what was sent before it is acknowledged, and
//! a receiver delays an acknowledgement (RFC 9293, 3.8.6.3), by 40 ms on Linux, to have it go along with an answer. An application
//! that writes twice before it reads, the head of a request and then its body, waits for the end of that delay. Between the
//! application and this process segments are as large as the loopback device has them, so that this would befall nearly all that
//! are longer than one write.
//!
//! Who reads cannot know whether more is held back, and most who write wait for nothing. To acknowledge each read at once would cost a
//! packet, and more, for each request. So what has been heard and neither answered nor gone on with is acknowledged after a moment; at
//! once, for a while, where that turned out to be what the other end waited for; and seldom where it has not time and again.

use std::{
    future::pending,
    io::{self, IoSlice},
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time,
};

use crate::clock;

/// How often it is looked at who waits, while anybody does. What is heard and not answered is acknowledged at the second look, and a
/// timer may be a millisecond late: after about five milliseconds. Most answers have come by then.
const TICK: Duration = Duration::from_millis(2);
/// So many looks in a row find nobody before they end: to be woken costs more than to look, and who has heard something now and been
/// answered will have heard something else soon.
const LINGERS: u32 = 2;
/// What comes so soon after an acknowledgement that was asked for has waited for it.
const SOON: Duration = Duration::from_millis(1);
/// So many exchanges are acknowledged at once after one that has waited.
const EAGER: u8 = 32;
/// So many acknowledgements in a row may be asked for in vain; after that ever fewer are: each costs some microseconds at both ends, and
/// would be needed least where they are dear, as many answers are late where there is much to do.
const IN_VAIN: u8 = 4;
/// After which every second is asked for, then every fourth, and so on up to two to the power of this.
const SELDOM: u8 = 5;
/// What goes on so long after it was not asked for has waited until the kernel acknowledged it, which is after 40 ms.
const WAITED: RangeInclusive<Duration> = Duration::from_millis(35)..=Duration::from_millis(70);
/// As many places are kept for those who wait while nobody does.
const KEPT: usize = 64;

/// Those of one thread's sockets whose other ends may be waiting. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Vec<Waiting>>,
    /// The same for all threads.
    rounds: Arc<Rounds>,
}

#[derive(Debug, Default)]
struct Rounds {
    /// Somebody waits where nobody did, on any of the threads, and nobody goes.
    begin: Notify,
    /// Whoever goes the rounds does so now, or has been told to, and comes by.
    going: AtomicBool,
}

/// One that has heard something lately.
#[derive(Debug)]
struct Waiting {
    heard: Arc<Heard>,
    /// How often it had when it was looked at last.
    seen: u32,
    socket: Waker,
}

/// What a socket has heard.
#[derive(Debug, Default)]
struct Heard {
    /// How often. Only whether it changes matters, so that it may begin anew.
    times: AtomicU32,
    /// It has not answered since.
    owes: AtomicBool,
    /// It stands among those who wait.
    listed: AtomicBool,
    /// Its moment is over.
    due: AtomicBool,
}

impl Acks {
    /// For the sockets of another thread, looked after together.
    pub(crate) fn beside(&self) -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::default(),
            rounds: self.0.rounds.clone(),
        }))
    }

    /// A socket whose other end waits for no acknowledgement, while somebody goes the [`rounds`].
    pub(crate) fn prompt(&self, stream: TcpStream) -> Prompt {
        Prompt {
            stream,
            heard: Arc::default(),
            acks: self.clone(),
            habit: Habit::default(),
        }
    }

    /// Wakes those who have heard nothing new since the last time.
    fn look(&self) {
        let mut waiting = std::mem::take(&mut *self.lock());
        waiting.retain_mut(Waiting::goes_on);
        if waiting.is_empty() {
            waiting.shrink_to(KEPT);
        }
        let mut now = self.lock();
        waiting.append(&mut now);
        *now = waiting;
    }

    fn add(&self, waiting: Waiting) {
        let mut all = self.lock();
        all.push(waiting);
        // One of those who come at the same time tells of all.
        if all.len() == 1 && !self.0.rounds.going.swap(true, SeqCst) {
            self.0.rounds.begin.notify_one();
        }
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after those who wait, of all threads, for ever; while nobody does it sleeps. None of those threads is to do it: one that moves
/// bytes sleeps and wakes for each piece of them, and to have the kernel set a timer each time is dear.
pub(crate) async fn rounds(all: Vec<Acks>) {
    let Some(Acks(shared)) = all.first() else {
        return pending().await;
    };
    let going = &shared.rounds.going;
    loop {
        going.store(false, SeqCst);
        // Who comes after this finds nobody going.
        if all.iter().all(Acks::is_empty) {
            shared.rounds.begin.notified().await;
        }
        going.store(true, SeqCst);
        let mut lingers = LINGERS;
        while lingers > 0 {
            time::sleep(TICK).await;
            all.iter().for_each(Acks::look);
            lingers = match all.iter().all(Acks::is_empty) {
                true => lingers - 1,
                false => LINGERS,
            };
        }
    }
}

impl Waiting {
    /// Whether it is looked at again: who has heard nothing new is not, and is woken if it has not answered. Who hears and answers all
    /// the time stays, which is less to do than to come and go.
    fn goes_on(&mut self) -> bool {
        let times = self.heard.times.load(SeqCst);
        if times != self.seen {
            self.seen = times;
            return true;
        }
        self.heard.listed.store(false, SeqCst);
        if self.heard.owes.load(SeqCst) {
            self.heard.due.store(true, SeqCst);
            self.socket.wake_by_ref();
            return false;
        }
        // It may have heard something since, and have found itself listed.
        self.heard.times.load(SeqCst) != self.seen && !self.heard.listed.swap(true, SeqCst)
    }
}

/// Whether a socket's other end is one that waits for acknowledgements.
#[derive(Debug, Default)]
struct Habit {
    /// So many exchanges are acknowledged at once.
    eager: u8,
    /// How many acknowledgements were asked for in vain, up to the number from which on it makes no difference.
    in_vain: u8,
    /// So many exchanges are left to the kernel, or all of one that is never answered, until it has waited.
    passes: u8,
    /// Something was answered since it was found to wait.
    answers: bool,
    /// What was done about what was heard last,
    done: Done,
    /// and when, if nothing has come or gone since.
    when: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Done {
    /// An acknowledgement was asked for.
    Asked,
    /// It was left to the kernel.
    #[default]
    Passed,
}

impl Habit {
    fn does(&mut self, done: Done, now: Instant) {
        (self.done, self.when) = (done, Some(now));
    }

    fn heard(&mut self, now: impl FnOnce() -> Instant) {
        let Some(when) = self.when.take() else { return };
        let since = now().duration_since(when);
        let has_waited = match self.done {
            Done::Asked => since < SOON,
            Done::Passed => WAITED.contains(&since),
        };
        // Who goes on and is never answered, as a transfer does, comes soon after whatever was done.
        if has_waited && (self.eager == 0 || self.answers) {
            *self = Self {
                eager: EAGER,
                ..Self::default()
            };
        } else if self.done == Done::Asked {
            self.was_in_vain();
        }
    }

    fn answered(&mut self) {
        self.answers = true;
        match self.when.take().map(|_| self.done) {
            Some(Done::Asked) => self.was_in_vain(),
            Some(Done::Passed) => self.passes = self.passes.saturating_sub(1),
            None => {}
        }
    }

    fn was_in_vain(&mut self) {
        if self.eager > 0 {
            self.eager -= 1;
            return;
        }
        self.in_vain = (self.in_vain + 1).min(IN_VAIN + SELDOM);
        // Of each two, four, and so on all but one.
        self.passes = (1 << self.in_vain.saturating_sub(IN_VAIN)) - 1;
    }
}

/// A connection whose other end waits for no acknowledgement. All else is the connection's own.
#[derive(Debug)]
pub(crate) struct Prompt {
    stream: TcpStream,
    heard: Arc<Heard>,
    acks: Acks,
    habit: Habit,
}

impl Prompt {
    /// The connection itself, for what is asked of a socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    fn heard(&mut self) {
        self.habit.heard(clock::steady);
        // Nobody else counts.
        let times = self.heard.times.load(SeqCst).wrapping_add(1);
        self.heard.times.store(times, SeqCst);
        self.heard.owes.store(true, SeqCst);
    }

    /// Nothing more comes for now.
    fn waits(&mut self, cx: &Context<'_>) {
        if !self.heard.owes.load(SeqCst) {
            return;
        }
        if self.habit.eager > 0 || self.heard.due.load(SeqCst) {
            // All that was heard, unless the kernel has done so. Without it the kernel does so later.
            let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
            self.does(Done::Asked);
        } else if self.habit.passes > 0 {
            self.does(Done::Passed);
        } else if !self.heard.listed.swap(true, SeqCst) {
            self.acks.add(Waiting {
                heard: self.heard.clone(),
                // As it was before: the first look begins its moment.
                seen: self.heard.times.load(SeqCst).wrapping_sub(1),
                socket: cx.waker().clone(),
            });
        }
    }

    fn does(&mut self, done: Done) {
        self.habit.does(done, clock::steady());
        self.nothing_is_owed();
    }

    /// What was sent has acknowledged all that was heard.
    fn answered(&mut self) {
        self.habit.answered();
        self.nothing_is_owed();
    }

    fn nothing_is_owed(&self) {
        self.heard.owes.store(false, SeqCst);
        self.heard.due.store(false, SeqCst);
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            Poll::Ready(Ok(())) if buf.filled().len() > before => self.heard(),
            Poll::Ready(_) => {}
            Poll::Pending => self.waits(cx),
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.answered();
        }
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.answered();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
