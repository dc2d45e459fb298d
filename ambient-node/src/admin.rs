//! The node's own pages: metrics for Prometheus, readiness for the kubelet.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

/// How long a client may take over its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients at once.
const MOST_CLIENTS: usize = 8;

/// A page: path in, answer out.
pub(crate) type Page = Arc<dyn Fn(&str) -> Option<Written> + Send + Sync>;

/// Status, content type and text.
pub(crate) type Written = (StatusCode, &'static str, String);

/// Listens in the node's own namespace; on IPv4 alone where there is no IPv6.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip().is_unspecified() && crate::accept::has_no_such_address(&error) => {
            TcpListener::bind(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port())).await
        }
        bound => bound,
    }
}

/// Serves a page until it is dropped.
pub(crate) async fn serve(listener: TcpListener, page: Page) {
    let clients = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor left, or a client that went away: neither ends the listener.
            time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = clients.clone().try_acquire_owned() else {
            continue;
        };
        let page = page.clone();
        tokio::spawn(async move {
            // A whole exchange has a bound too: a reader that never reads must not keep its place.
            let _ = time::timeout(10 * PATIENCE, answer(stream, page)).await;
            drop(permit);
        });
    }
}

async fn answer(stream: TcpStream, page: Page) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let page = page.clone();
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            // A page of many series takes a while to write: not on the thread that accepts connections.
            let page = tokio::task::spawn_blocking(move || page(&path)).await;
            Ok::<_, Infallible>(respond(&method, page.unwrap_or_default()))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .half_close(true);
    http.serve_connection(TokioIo::new(stream), service).await
}

fn respond(method: &Method, page: Option<Written>) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, text) = match page {
        None => (StatusCode::NOT_FOUND, plain, "nothing is here\n".to_owned()),
        Some(_) if !matches!(*method, Method::GET | Method::HEAD) => (StatusCode::METHOD_NOT_ALLOWED, plain, "GET only\n".to_owned()),
        Some(answer) => answer,
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
