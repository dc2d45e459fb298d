//! What peers write into headers.

use ambient_core::{
    Workload,
    headers::{Baggage, baggage, forwarded, forwarded_host, read_traceparent, traceparent},
};
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::input::Input;
use crate::proto::{
    connect::{self, FieldList},
    hpack::{Decoder, FIELD_OVERHEAD},
};

/// Texts of any bytes: they are read or they are not, and what is written is read as it was.
pub(crate) fn headers(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => read_baggage(input),
        1 => read_forwarded(input),
        2 => {
            let text = input.take(data.len());
            if let Some((trace, span)) = read_traceparent(text) {
                assert_eq!(read_traceparent(traceparent(trace, span).as_bytes()), Some((trace, span)));
            }
        }
        _ => fields(input),
    }
}

fn read_baggage(mut input: Input<'_>) {
    let mut values = Vec::new();
    while !input.is_empty() {
        let n = input.size();
        values.push(input.take(n));
    }
    let read = Baggage::read(values);
    // Said of oneself, it says the same to the next.
    let mut workload = Workload::new("uid", read.namespace.as_deref().unwrap_or_default(), "w");
    workload.cluster = read.cluster.as_deref().unwrap_or_default().into();
    if let Some((kind, name)) = &read.workload {
        (workload.kind, workload.workload_name) = (*kind, name.as_str().into());
    }
    workload.canonical_name = read.service.as_deref().unwrap_or_default().into();
    workload.canonical_revision = read.revision.as_deref().unwrap_or_default().into();
    for (place, text) in workload.locality.iter_mut().zip([&read.region, &read.zone]) {
        *place = text.as_deref().unwrap_or_default().into();
    }
    let written = baggage(&workload);
    assert!(HeaderValue::from_str(&written).is_ok(), "{written}");
    let again = Baggage::read([written.as_bytes()]);
    // A blank or a quote within a value is not written.
    let plain = |text: &Option<String>| {
        text.as_ref()
            .map(|t| t.replace([' ', '\t', '"', '\\'], ""))
            .filter(|t| !t.is_empty())
    };
    assert_eq!(plain(&read.cluster), again.cluster);
    assert_eq!(plain(&read.namespace), again.namespace);
    assert_eq!(plain(&read.service), again.service);
    assert_eq!(plain(&read.revision), again.revision);
    assert_eq!([plain(&read.region), plain(&read.zone)], [again.region, again.zone]);
}

fn read_forwarded(mut input: Input<'_>) {
    let text = input.take(usize::MAX);
    let Some(host) = forwarded_host(text) else { return };
    assert!(!host.is_empty() && text.windows(host.len()).any(|part| part == host.as_bytes()));
    let source = ([10, 0, 0, 1], 80).into();
    let written = forwarded(source, Some(host));
    assert!(HeaderValue::from_str(&written).is_ok());
    let again = forwarded_host(written.as_bytes());
    // Quotes and blanks are taken off once.
    assert!(again.is_none_or(|again| host.contains(again)), "{host:?} {again:?}");
}

/// A header list, field by field.
fn fields(mut input: Input<'_>) {
    let limit = input.size();
    let (mut size, mut wanted) = (0, HeaderMap::new());
    let lists = || FieldList::new(limit);
    let (mut request, mut answer) = (lists(), lists());
    let mut method = false;
    while !input.is_empty() {
        let (name, value) = match input.below(8) {
            0 => (&b":method"[..], &b"CONNECT"[..]),
            1 => (&b":authority"[..], input.text()),
            2 => (&b":status"[..], input.text()),
            3 => (&b":path"[..], input.text()),
            _ => (input.text(), input.text()),
        };
        method |= name == b":method";
        size += name.len() + value.len() + FIELD_OVERHEAD;
        request.add(name, value);
        answer.add(name, value);
        if let (Ok(name), Ok(value)) = (HeaderName::from_lowercase(name), HeaderValue::from_bytes(value)) {
            wanted.append(name, value);
        }
    }
    let _ = request.is_trailers();
    if let Ok(request) = request.into_request() {
        assert!(method && size <= limit);
        assert_eq!(request.headers, wanted);
        // Sent on, it is the same request.
        let mut block = BytesMut::new();
        connect::write_request(&mut block, &request.authority, &request.headers);
        let mut list = FieldList::new(usize::MAX);
        assert_eq!(Decoder::default().decode(&block, |name, value| list.add(name, value)), Ok(()));
        let again = list.into_request().expect("it was one");
        assert_eq!((again.authority, again.headers), (request.authority, request.headers));
    }
    if let Ok(answer) = answer.into_answer() {
        assert!(size <= limit);
        assert_eq!(answer.headers, wanted);
        let mut block = BytesMut::new();
        connect::write_answer(&mut block, answer.status, &answer.headers);
        let mut list = FieldList::new(usize::MAX);
        assert_eq!(Decoder::default().decode(&block, |name, value| list.add(name, value)), Ok(()));
        let again = list.into_answer().expect("it was one");
        assert_eq!((again.status, again.headers), (answer.status, answer.headers));
    }
}
