use std::net::TcpListener;

use super::*;

#[test]
fn uris() {
    let uri: Uri = "http://web-api.demo:8080/a?b".parse().unwrap();
    assert_eq!((uri.host.as_str(), uri.port, uri.target.as_str()), ("web-api.demo", 8080, "/a?b"));
    let uri: Uri = "http://[fd00::1]:8080".parse().unwrap();
    assert_eq!((uri.host.as_str(), uri.port, uri.target.as_str()), ("fd00::1", 8080, "/"));
    assert_eq!(uri.to_string(), "http://[fd00::1]:8080/");
    assert_eq!("http://a/".parse::<Uri>().unwrap().port, 80);
    for odd in ["https://a/", "http:///", "http://a:b/", "http://a/ b"] {
        assert!(odd.parse::<Uri>().is_err(), "{odd}");
    }
}

#[test]
fn requests() {
    let request = Request::parse(b"GET /x HTTP/1.1\r\nHost: a\r\nX-Lab-Marker:  m \r\n\r\n").unwrap();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/x"));
    assert_eq!(request.header("x-lab-marker"), Some("m"));
    assert_eq!(Request::parse(b"GET /x HTTP/1.0\r\n\r\n").unwrap().headers, []);
    for odd in [
        &b"GET /x\r\n\r\n"[..],
        b"GET x HTTP/1.1\r\n\r\n",
        b"GET /x HTTP/1.1\r\nno colon\r\n\r\n",
        b"\xff / HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(Request::parse(odd), None);
    }
}

/// A server that does one thing to one connection.
fn against(serve: impl FnOnce(TcpStream) + Send + 'static) -> Result<Response, CallError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri: Uri = format!("http://{}/x", listener.local_addr().unwrap()).parse().unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    let result = call("GET", &uri, Family::Any, &[("X-A".into(), "b".into())], Duration::from_secs(2));
    server.join().unwrap();
    result
}

fn failure_of(serve: impl FnOnce(TcpStream) + Send + 'static) -> Failure {
    against(serve).unwrap_err().failure
}

#[test]
fn a_call_is_answered() {
    let response = against(|mut stream| {
        let request = Request::read(&mut stream).unwrap();
        assert_eq!(request.header("x-a"), Some("b"));
        respond(&mut stream, 200, "text/plain", b"hello", false).unwrap();
    });
    let response = response.unwrap();
    assert_eq!(
        (response.status, response.kind.as_str(), response.body.as_slice()),
        (200, "text/plain", &b"hello"[..])
    );
}

#[test]
fn the_ways_to_fail_are_told_apart() {
    assert_eq!(
        failure_of(|mut stream| {
            Request::read(&mut stream).unwrap();
        }),
        Failure::Empty
    );
    // What was not read turns the close into a reset.
    let close_unread = |stream: TcpStream| {
        std::thread::sleep(Duration::from_millis(50));
        drop(stream);
    };
    assert_eq!(failure_of(close_unread), Failure::Reset);
    assert_eq!(
        failure_of(|mut stream| {
            Request::read(&mut stream).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").unwrap();
        }),
        Failure::Other
    );
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uri: Uri = format!("http://{nobody}/").parse().unwrap();
    assert_eq!(
        call("GET", &uri, Family::V4, &[], Duration::from_secs(1)).unwrap_err().failure,
        Failure::Refused
    );
    assert_eq!(
        call("GET", &uri, Family::V6, &[], Duration::from_secs(1)).unwrap_err().failure,
        Failure::Resolve
    );
}
