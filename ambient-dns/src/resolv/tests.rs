use proptest::prelude::*;

use super::*;

#[test]
fn a_pods_file_is_read() {
    let resolv = parse(
        "# made by the kubelet\nsearch shop.svc.Cluster.Local. svc.cluster.local cluster.local\n\
         nameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 timeout:1 attempts:3 edns0\n",
    );
    assert_eq!(
        resolv.nameservers,
        ["10.96.0.10".parse::<IpAddr>().unwrap(), "fd00::a".parse().unwrap()]
    );
    assert_eq!(resolv.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
    assert_eq!((resolv.ndots, resolv.timeout, resolv.attempts), (5, Duration::from_secs(1), 3));
}

#[test]
fn what_is_no_nameserver_is_passed_over() {
    let resolv = parse(
        "nameserver\nnameserver x\nnameserver fe80::1%eth0\n nameserver 10.0.0.4\n\tnameserver 10.0.0.5\n;nameserver 10.0.0.1\n#nameserver 10.0.0.2\nNAMESERVER 10.0.0.3\n",
    );
    assert_eq!(resolv, Resolv::default());
}

#[test]
fn bounds_are_the_resolvers() {
    let resolv = parse(
        "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\noptions ndots:99 timeout:9999999 attempts:300 ndots:x\n",
    );
    assert_eq!(parse("options ndots:5x timeout:x2\n").ndots, 5);
    assert_eq!(resolv.nameservers.len(), 3);
    assert_eq!((resolv.ndots, resolv.timeout, resolv.attempts), (15, Duration::from_secs(30), 5));
}

#[test]
fn the_last_search_or_domain_counts() {
    assert_eq!(parse("search a b\ndomain c d\n").search, ["c"]);
    assert_eq!(parse("domain c\nsearch a b\n").search, ["a", "b"]);
    assert_eq!(parse("search a\nsearch .\n").search, Vec::<String>::new());
}

#[test]
fn spaces_and_line_ends_of_all_kinds_do_not_matter() {
    assert_eq!(parse("nameserver\t 10.0.0.1  \r\n\r\nnameserver 10.0.0.2").nameservers.len(), 2);
}

proptest! {
    #[test]
    fn any_text_is_read(text in ".*") {
        let resolv = parse(&text);
        prop_assert!(resolv.nameservers.len() <= 3 && resolv.ndots <= 15 && resolv.attempts <= 5);
    }
}
