//! The thread that serves pages.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context as Waker, Poll},
    thread,
    time::Duration,
};

use ambient_redirect::linux::cut_when_dropped;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    runtime,
    sync::{mpsc, oneshot},
    time,
};

use super::{
    Answer, Asked, Doors, Route, Site, Takes,
    answer::Sent,
    clients::{self, Clients, Course},
};
use crate::{clock, supervise::supervise};

/// How long a client may take over its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take to read a page: one of the whole mesh is long, and a reader that never reads must not keep
/// its place, nor the version of the mesh that it is being told of.
const READING: Duration = Duration::from_secs(60);
/// What of a page may wait in memory for a client that does not read for a while, beside the pieces on their way there; and the
/// most that a request's head may have. In bytes.
const BUFFERED: usize = 64 << 10;
/// Threads that write pages, for all listeners.
const MOST_WRITERS: usize = 2 * 3 * clients::MOST;
/// How long to wait when the process has no descriptor left, and between two looks whether there is a place for who waits.
const BREATH: Duration = Duration::from_millis(50);
/// A year: longer than any thread is idle.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long whoever is being answered when it ends has for that: one of them may have asked for the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Pages that are being served, until dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
}

/// What is served at a listener.
struct Door<C: 'static> {
    routes: &'static [Route<C>],
    /// Whether it is for who is on the node alone: then a page of somebody else's that a browser shows may not ask either.
    private: bool,
}

impl Pages {
    /// Starts the thread, in the network namespace of the calling one.
    pub(crate) fn start(doors: Doors, context: impl Site) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MOST_WRITERS)
            // One that is there is had again, also where the system makes no other.
            .thread_keep_alive(FOR_EVER)
            .thread_name("page")
            .on_thread_start(step_back)
            .build()?;
        thread::Builder::new().name("pages".into()).spawn(move || {
            runtime.block_on(async {
                let _ = tokio::task::spawn_blocking(|| ()).await;
                let (busy, mut idle) = mpsc::channel(1);
                serve_all(doors, &Arc::new(context), &busy.downgrade());
                // Ends when the other half is dropped: that error is the signal.
                let _ = stopped.await;
                drop(busy);
                let _ = time::timeout(FAREWELL, idle.recv()).await;
            });
            // Not for writers whose clients do not read: they end by themselves, as nobody takes what they write.
            runtime.shutdown_background();
            let _ = end.send(());
        })?;
        Ok(Self { stop: Some(stop), ended })
    }

    /// Ends it, and waits until its ports are free.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        // An error says that the thread has ended already.
        let _ = (&mut self.ended).await;
    }
}

/// What is written is long, and connections come first: where processors are short, this thread has what they leave.
fn step_back() {
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "a page is written with the priority of connections");
    }
}

/// Held by whoever is being answered; nothing is sent.
type Busy = mpsc::Sender<Infallible>;

fn serve_all<C: Site>(doors: Doors, context: &Arc<C>, busy: &mpsc::WeakSender<Infallible>) {
    let Doors { metrics, readiness, admin } = doors;
    let public = |listener, routes| (listener, Door { routes, private: false });
    let private = |listener| {
        let (routes, private) = (C::ADMIN, true);
        (listener, Door { routes, private })
    };
    let sites = [public(metrics, C::METRICS), public(readiness, C::READINESS)];
    for (listener, door) in sites.into_iter().chain(admin.into_iter().map(private)) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => Arc::new(listener),
            Err(error) => {
                tracing::error!(%error, "a page's listener cannot be served");
                continue;
            }
        };
        let (door, context, busy) = (Arc::new(door), context.clone(), busy.clone());
        tokio::spawn(async move {
            let metrics = context.standing().metrics.clone();
            supervise("pages", &metrics, || {
                serve(listener.clone(), door.clone(), context.clone(), busy.clone())
            })
            .await;
        });
    }
}

/// Serves a listener until it is dropped. One request, whatever becomes of it, ends no other.
async fn serve<C: Site>(listener: Arc<TcpListener>, door: Arc<Door<C>>, context: Arc<C>, busy: mpsc::WeakSender<Infallible>) {
    let mut clients = Clients::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            () = time::sleep(BREATH), if clients.has_waiting() => None,
        };
        match accepted {
            Some(Ok((stream, peer))) => clients.come(peer.ip().to_canonical(), stream),
            Some(Err(_)) => {
                // No descriptor left, or a client that went away: neither ends the listener.
                context.standing().metrics.accept_failed();
                time::sleep(BREATH).await;
            }
            None => {}
        }
        while let Some((from, stream)) = clients.admit(clock::steady()) {
            let (door, context, busy) = (door.clone(), context.clone(), busy.clone());
            let course = Course::default();
            let client = Client {
                stream,
                course: course.clone(),
                is_answered: false,
            };
            let serving = tokio::spawn(async move {
                let _ = time::timeout(READING, exchange(client, door, context, busy)).await;
            });
            clients.enter(from, course, serving.abort_handle());
            // Its request is here, as a rule, and is seen before the next one is.
            tokio::task::yield_now().await;
        }
    }
}

async fn exchange<C: Site>(client: Client, door: Arc<Door<C>>, context: Arc<C>, busy: mpsc::WeakSender<Infallible>) -> hyper::Result<()> {
    // From the request on, until the answer has gone.
    let answering: OnceLock<Option<Busy>> = OnceLock::new();
    let course = client.course.clone();
    let service = service_fn(|request: Request<Incoming>| {
        course.has_asked();
        answering.get_or_init(|| busy.upgrade());
        let (door, context) = (door.clone(), context.clone());
        async move { Ok::<_, Infallible>(respond(&door, &context, &request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(BUFFERED);
    http.serve_connection(TokioIo::new(client), service).await
}

/// A client's connection, which takes note of whether the client reads. Dropped between an answer's first byte and its end it is a
/// reset: to a client of HTTP/1.0 what was cut off would else look complete.
struct Client {
    stream: TcpStream,
    course: Course,
    is_answered: bool,
}

impl Client {
    fn write(&mut self, write: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if !self.is_answered {
            self.is_answered = true;
            cut_when_dropped(&self.stream, true)?;
        }
        let written = write(Pin::new(&mut self.stream));
        match &written {
            Poll::Ready(taken) => self.course.takes(taken.as_ref().map_or(0, |bytes| *bytes), clock::steady()),
            Poll::Pending => self.course.stalls(clock::steady()),
        }
        written
    }
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(waker, buffer)
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write(waker, bytes))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, waker: &mut Waker<'_>, all: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write(|stream| stream.poll_write_vectored(waker, all))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(waker)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, waker: &mut Waker<'_>) -> Poll<io::Result<()>> {
        cut_when_dropped(&self.stream, false)?;
        Pin::new(&mut self.stream).poll_shutdown(waker)
    }
}

async fn respond<C: Site>(door: &Door<C>, context: &Arc<C>, request: &Request<Incoming>) -> Response<Sent> {
    let path = request.uri().path();
    let answer = match door.routes.iter().find(|route| route.path == path) {
        _ if door.private && is_of_another_origin(request.headers()) => {
            Answer::text(StatusCode::FORBIDDEN, "only for clients on this node that name it by its address\n")
        }
        None => Answer::text(StatusCode::NOT_FOUND, "nothing is here\n"),
        Some(route) if !takes(route.takes, request.method()) => return not_so(route),
        Some(route) => {
            let (answer, context) = (route.answer, context.clone());
            let asked = Asked::new(request.method().clone(), request.uri().query(), request.headers());
            // Off this thread: what one page takes long over, the others must not wait for.
            let answered = tokio::task::spawn_blocking(move || answer(&context, &asked)).await;
            answered.unwrap_or_else(|error| {
                tracing::error!(path, %error, "a page cannot be made");
                Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be made; the log says more\n")
            })
        }
    };
    answer.into_response()
}

fn takes(takes: Takes, method: &Method) -> bool {
    let (reads, posts) = (matches!(*method, Method::GET | Method::HEAD), *method == Method::POST);
    match takes {
        Takes::Get => reads,
        Takes::Post => posts,
        Takes::Both => reads || posts,
    }
}

fn not_so<C>(route: &Route<C>) -> Response<Sent> {
    let (methods, word) = match route.takes {
        Takes::Get => ("GET, HEAD", "GET only"),
        Takes::Post => ("POST", "POST only"),
        Takes::Both => ("GET, HEAD, POST", "GET or POST only"),
    };
    let answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, format!("{word}: {}\n", route.about));
    let mut response = answer.into_response();
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static(methods));
    response
}

/// Whether a browser asks for a page of somebody else's: through a name that leads here (the `Host` is then no address),
/// or by a script or a form (it then has an `Origin`).
fn is_of_another_origin(headers: &HeaderMap) -> bool {
    if headers.contains_key(header::ORIGIN) {
        return true;
    }
    let Some(host) = headers.get(header::HOST) else { return false };
    let Ok(host) = host.to_str() else { return true };
    let name = match host.rsplit_once(':') {
        // Not the last part of a bare IPv6 address.
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    !name.eq_ignore_ascii_case("localhost") && address.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests;
