//! The counts of a control plane, for Prometheus.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

use super::Counts;

/// Serves `GET /metrics` until it is dropped.
pub async fn serve_metrics(listener: TcpListener, counts: Arc<Counts>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, room.clone().try_acquire_owned()) else {
            sleep(BREATH).await;
            continue;
        };
        let counts = counts.clone();
        connections.spawn(async move {
            let answering =
                service_fn(move |request: Request<Incoming>| std::future::ready(Ok::<_, Infallible>(answer(&request, &counts))));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answering);
            let _ = tokio::time::timeout(2 * PATIENCE, served).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, counts: &Counts) -> Response<String> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, counts.text()),
        _ => (StatusCode::NOT_FOUND, "there is /metrics\n".into()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Scrapes at a time.
const CONNECTIONS: usize = 16;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// After what cannot be helped at once.
const BREATH: Duration = Duration::from_millis(100);
