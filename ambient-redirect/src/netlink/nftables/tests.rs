use super::*;

#[test]
fn a_redirection_as_the_kernel_takes_it() {
    let mut batch = Batch::default();
    batch.add_rule(
        Family::Inet,
        "t",
        "c",
        &[
            Expr::Immediate {
                reg: 1,
                data: vec![0x3a, 0x99],
            },
            Expr::Redirect { port_reg: 1 },
        ],
    );
    let (bytes, _) = batch.writer.finish(0);
    #[rustfmt::skip]
    let expected = [
        120, 0, 0, 0, 6, 0x0a, 0x01, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, // NEWRULE, create, append
        1, 0, 0, 0, // inet
        6, 0, 1, 0, b't', 0, 0, 0,
        6, 0, 2, 0, b'c', 0, 0, 0,
        84, 0, 4, 0x80,
        44, 0, 1, 0x80,
        14, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
        24, 0, 2, 0x80,
        8, 0, 1, 0, 0, 0, 0, 1,
        12, 0, 2, 0x80, 6, 0, 1, 0, 0x3a, 0x99, 0, 0,
        36, 0, 1, 0x80,
        10, 0, 1, 0, b'r', b'e', b'd', b'i', b'r', 0, 0, 0,
        20, 0, 2, 0x80,
        8, 0, 1, 0, 0, 0, 0, 1,
        8, 0, 3, 0, 0, 0, 0, 2,
    ];
    assert_eq!(
        bytes,
        if cfg!(target_endian = "little") {
            expected.to_vec()
        } else {
            bytes.clone()
        }
    );
}

#[test]
fn counters_do_not_count_in_a_comparison() {
    let listed = |expressions: &[Expr]| {
        let mut list = Writer::default();
        expressions.iter().for_each(|e| e.write(&mut list));
        Rule {
            family: Family::Inet,
            table: String::new(),
            chain: String::new(),
            handle: 1,
            expressions: list.bytes().to_vec(),
        }
    };
    let accept = [Expr::Counter, Expr::Verdict(Verdict::Accept)];
    assert!(listed(&accept).is(&accept));
    assert!(!listed(&accept).is(&accept[..1]));
    assert!(!listed(&accept).is(&[Expr::Counter, Expr::Verdict(Verdict::Drop)]));
    assert!(!listed(&accept).is(&[Expr::Verdict(Verdict::Accept), Expr::Counter]));
    let to = Expr::tcp_to("10.0.0.1".parse().unwrap(), 80);
    assert!(!listed(&to).is(&Expr::tcp_to("10.0.0.2".parse().unwrap(), 80)));
    assert!(!listed(&to).is(&Expr::udp_to("10.0.0.1".parse().unwrap(), 80)));
}

#[test]
fn a_batch_is_enclosed_and_asks_once() {
    let mut batch = Batch::default();
    batch.add_table(Family::Inet, "a", b"x");
    batch.delete_table(Family::Ip, "b");
    let (writer, names) = batch.enclose(Some(Generation(5)));
    let (bytes, _) = writer.finish(0);
    let kinds: Vec<_> = codec::messages(&bytes).map(|m| (m.kind, m.flags & codec::NLM_F_ACK != 0)).collect();
    assert_eq!(kinds, [(0x10, false), (0x0a00, false), (0x0a02, true), (0x11, false)]);
    assert_eq!(names, ["the transaction", "table a", "deletion of table b"]);
    let begin = codec::messages(&bytes).next().unwrap();
    assert_eq!(begin.payload, [0, 0, 0, 10, 8, 0, 1, 0, 0, 0, 0, 5]);
}
