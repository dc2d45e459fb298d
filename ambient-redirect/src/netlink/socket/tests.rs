use std::thread;

use socket2::{Domain, Socket as Pair, Type};

use super::*;
use crate::netlink::codec::NLM_F_DUMP;

/// One who answers what he is asked for with these datagrams, then with the last again and again.
fn answering(datagrams: Vec<Vec<u8>>) -> Socket {
    let (ours, theirs) = Pair::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        let _ = io::Read::read(&mut &theirs, &mut buffer);
        let mut datagrams = datagrams.iter();
        let mut last = datagrams.next();
        while last.is_some_and(|bytes| theirs.send(bytes).is_ok()) {
            last = datagrams.next().or(last);
        }
    });
    Socket::over(ours.into())
}

fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.begin(kind, NLM_F_MULTI, payload);
    writer.finish(sequence).0
}

fn question() -> Writer {
    let mut writer = Writer::default();
    writer.begin(20, NLM_F_DUMP, &[0; 4]);
    writer
}

#[test]
fn the_error_that_ends_a_listing_is_one() {
    let done = |errno: i32| message(NLMSG_DONE, 0, &errno.to_ne_bytes());
    let one = || message(20, 0, &[0; 8]);
    type List = fn(&mut Socket) -> Result<usize, Error>;
    let some: List = |socket| Ok(socket.list_some("listing", question(), 10)?.0.len());
    let gathered: List = |socket| {
        socket.gather(
            "listing",
            question,
            || 0,
            |count, _, _| {
                *count += 1;
                Ok(())
            },
        )
    };
    let within: List = |socket| Ok(socket.list_within("listing", question(), 1024)?.len());
    for list in [some, within, gathered] {
        assert_eq!(list(&mut answering(vec![one(), done(0)])).unwrap(), 1);
        // Of nftables' kind: it says nothing.
        assert_eq!(list(&mut answering(vec![one(), message(NLMSG_DONE, 0, &[])])).unwrap(), 1);
        let error = list(&mut answering(vec![one(), done(-libc::ENOENT)])).unwrap_err();
        assert!(error.missing() && error.to_string().starts_with("listing: "), "{error}");
    }
    // As it is told: words may follow.
    let mut words = Writer::default();
    words.begin(NLMSG_DONE, 0, &(-libc::EINVAL).to_ne_bytes());
    words.text(NLMSGERR_ATTR_MSG, "no such thing");
    let error = answering(vec![words.finish(0).0]).list_some("listing", question(), 1).unwrap_err();
    assert!(error.to_string().contains("no such thing"), "{error}");
}

#[test]
fn more_than_is_read_of_a_listing_is_an_error() {
    let all = || {
        vec![
            message(20, 0, &[0; 484]),
            message(20, 0, &[0; 484]),
            message(NLMSG_DONE, 0, &[0; 4]),
        ]
    };
    assert_eq!(answering(all()).list_within("listing", question(), 1000).unwrap().len(), 2);
    let error = answering(all()).list_within("listing", question(), 999).unwrap_err();
    assert!(error.too_large() && !error.interrupted(), "{error}");
    // What never ends is not waited for.
    let endless = vec![message(20, 0, &[0; 484])];
    let error = answering(endless).list_within("listing", question(), 1 << 20).unwrap_err();
    assert!(error.too_large(), "{error}");
}

#[test]
fn an_answer_that_does_not_come_to_an_end_is_not_waited_for() {
    // Each of them comes at once, and none is to the question.
    let mut socket = answering(vec![message(20, 77, &[0; 8])]);
    socket.patience = Duration::ZERO;
    let error = socket.list_some("listing", question(), 1).unwrap_err();
    assert!(error.to_string().contains("does not end"), "{error}");
}

/// In the namespace of the test: nothing is changed in it.
#[test]
fn nobody_but_the_kernel_answers() {
    let mut socket = Socket::open(Speaks::Route, 0).unwrap();
    let address = rustix::net::getsockname(&socket.fd).unwrap();
    let forger = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    bind(&forger, &SocketAddrNetlink::new(0, 0)).unwrap();
    let forged = message(NLMSG_DONE, 0, &[0; 4]);
    let sent = rustix::net::sendto(&forger, &forged, SendFlags::empty(), &address);
    // EPERM for one who may not even try.
    assert!(
        matches!(sent, Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::PERM)),
        "{sent:?}"
    );
    let quiet = socket.is_quiet();
    assert!(quiet, "and nothing has come");
    // The kernel's own come.
    let mut all = Writer::default();
    all.begin(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
    socket.list_within("listing addresses", all, 1 << 20).unwrap();
}

const RTM_GETADDR: u16 = 22;
