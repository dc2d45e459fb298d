//! The CONNECT request (RFC 9113 8.5): written and read.

use ambient_core::{Authority, AuthorityError};
use http::{HeaderMap, Method, Request, Uri, request::Parts};

/// The head that asks for a connection to `authority`.
pub(crate) fn head(authority: &Authority, headers: &HeaderMap) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder().authority(authority.to_string()).build();
    // A URI of nothing but an authority is what CONNECT has; the builder insists on more, its parser does not.
    let uri = uri.or_else(|_| authority.to_string().parse::<Uri>().map_err(http::Error::from))?;
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
    headers.clone_into(request.headers_mut());
    Ok(request)
}

/// What a request asks to be connected to.
pub(crate) fn target(head: &Parts) -> Result<Authority, MalformedRequest> {
    if head.method != Method::CONNECT {
        // Methods are the peer's text: at most 16 characters of it are repeated.
        let method = head.method.as_str().chars().take(16).collect();
        return Err(MalformedRequest::Method { method });
    }
    let authority = head.uri.authority().ok_or(MalformedRequest::NoAuthority)?;
    authority.as_str().parse().map_err(|source| MalformedRequest::Authority { source })
}

/// A request that is not a CONNECT to a host and port. It is answered 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedRequest {
    /// The method is not CONNECT.
    #[error("the peer sent the method {method}; a tunnel takes CONNECT alone")]
    Method {
        /// What it sent.
        method: String,
    },
    /// There is no `:authority`.
    #[error("the peer's CONNECT names no authority")]
    NoAuthority,
    /// The `:authority` is not `host:port`.
    #[error("the peer's CONNECT names what cannot be connected to: {source}")]
    Authority {
        /// What is wrong with it.
        source: AuthorityError,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for text in ["10.0.0.1:8080", "[fd00::1]:15008", "web.shop.svc.cluster.local:80", "a:65535"] {
            let authority: Authority = text.parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("baggage", "k8s.namespace.name=shop".parse().unwrap());
            let (parts, ()) = head(&authority, &headers).unwrap().into_parts();
            assert_eq!(parts.uri.authority().unwrap().as_str(), text);
            assert!(parts.uri.scheme().is_none() && parts.uri.path_and_query().is_none());
            assert_eq!(parts.headers, headers);
            assert_eq!(target(&parts).unwrap(), authority);
        }
    }

    #[test]
    fn what_is_no_connect_is_refused() {
        let read = |method: &str, uri: &str| {
            let (parts, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            target(&parts)
        };
        assert!(matches!(read("GET", "https://a:80/"), Err(MalformedRequest::Method { .. })));
        assert!(matches!(read("CONNECT", "/x"), Err(MalformedRequest::NoAuthority)));
        for uri in ["https://a/", "user@a:80", "a:0", "10.0.0:80"] {
            assert!(matches!(read("CONNECT", uri), Err(MalformedRequest::Authority { .. })), "{uri}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(method in "[A-Z]{1,40}", uri in "\\PC{0,60}") {
            if let Ok(request) = Request::builder().method(method.as_str()).uri(uri).body(()) {
                let _ = target(&request.into_parts().0);
            }
        }
    }
}
