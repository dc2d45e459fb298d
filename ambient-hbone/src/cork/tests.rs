use std::{
    sync::atomic::{AtomicBool, Ordering},
    task::{Wake, Waker},
};

use proptest::prelude::*;

use super::*;

/// A socket with room for some bytes, under a layer that takes a write at once and sends it when it is flushed, as TLS
/// does.
#[derive(Default)]
struct Layer {
    held: Vec<u8>,
    room: usize,
    sent: Vec<u8>,
    blocked: Option<Waker>,
}

#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Layer>>);

impl Socket {
    fn make_room(&self, bytes: usize) {
        let mut layer = self.0.lock().unwrap();
        layer.room += bytes;
        if let Some(waker) = layer.blocked.take() {
            waker.wake();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.lock().unwrap().held.len() > LAYER {
            ready!(self.as_mut().poll_flush(cx))?;
        }
        let taken = buf.len().min(LAYER);
        self.0.lock().unwrap().held.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let layer = &mut *self.0.lock().unwrap();
        let n = layer.held.len().min(layer.room);
        layer.sent.extend(layer.held.drain(..n));
        layer.room -= n;
        if layer.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        layer.blocked = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn corked() -> (Socket, Cork<Socket>, Arc<Woken>) {
    let socket = Socket::default();
    let cork = Cork::new(socket.clone(), Arc::default());
    cork.cork();
    (socket, cork, Arc::default())
}

#[test]
fn what_went_past_the_buffer_is_flushed_through() {
    let (socket, mut cork, woken) = corked();
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    socket.make_room(10_000);
    let written = Pin::new(&mut cork).poll_write(&mut cx, &[7; GATHERED + 1]);
    let Poll::Ready(Ok(written)) = written else { panic!("{written:?}") };
    assert!(
        Pin::new(&mut cork).poll_flush(&mut cx).is_ready(),
        "a flush from above does nothing"
    );
    assert!(
        cork.poll_drain(&mut cx).is_pending(),
        "nothing is gathered, yet the layer below holds the rest"
    );
    assert_eq!(socket.0.lock().unwrap().sent.len(), 10_000);
    socket.make_room(usize::MAX / 2);
    assert!(woken.0.load(Ordering::Relaxed));
    assert!(cork.poll_drain(&mut cx).is_ready());
    assert_eq!(socket.0.lock().unwrap().sent.len(), written);
}

#[test]
fn small_writes_become_one() {
    let (socket, mut cork, woken) = corked();
    let waker = Waker::from(woken);
    let mut cx = Context::from_waker(&waker);
    socket.make_room(1_000);
    for _ in 0..10 {
        assert!(Pin::new(&mut cork).poll_write(&mut cx, &[7; 9]).is_ready());
        assert!(Pin::new(&mut cork).poll_flush(&mut cx).is_ready());
    }
    assert!(socket.0.lock().unwrap().sent.is_empty());
    assert!(cork.poll_drain(&mut cx).is_ready());
    assert_eq!(socket.0.lock().unwrap().sent.len(), 90);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// A task that is polled only when it was woken sends everything, in order, however the socket blocks.
    #[test]
    fn nothing_stays_behind(
        writes in proptest::collection::vec(prop_oneof![1_usize..200, 1_usize..3 * GATHERED], 1..12),
        grants in proptest::collection::vec(1_usize..GATHERED, 1..8),
    ) {
        let (socket, mut cork, woken) = corked();
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let data: Vec<u8> = (0..writes.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect();
        let mut ends = writes.iter().scan(0, |end, n| { *end += n; Some(*end) }).peekable();
        let mut at = 0;
        let mut grants = grants.iter().cycle();
        woken.0.store(true, Ordering::Relaxed);
        while socket.0.lock().unwrap().sent.len() < data.len() {
            if !woken.0.swap(false, Ordering::Relaxed) {
                socket.make_room(*grants.next().unwrap());
                prop_assert!(woken.0.load(Ordering::Relaxed), "room was made, bytes wait, and nobody is told");
                continue;
            }
            // One poll of a connection: it writes until it is blocked, flushing after each frame.
            while let Some(&end) = ends.peek() {
                match Pin::new(&mut cork).poll_write(&mut cx, &data[at..end]) {
                    Poll::Ready(n) => at += n.unwrap(),
                    Poll::Pending => break,
                }
                if at == end {
                    ends.next();
                }
                prop_assert!(Pin::new(&mut cork).poll_flush(&mut cx).is_ready());
            }
            let _ = cork.poll_drain(&mut cx);
        }
        prop_assert!(socket.0.lock().unwrap().sent == data);
    }
}

/// What the layer holds before it sends.
const LAYER: usize = 90 << 10;
