use super::*;

fn port(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn clause(ports: std::ops::Range<u16>) -> Clause {
    Clause {
        matches: ports.map(port).collect(),
    }
}

fn ways(clauses: Vec<Clause>) -> Ways {
    let mut packed = pack(&mut Terms::default(), &[Rule { clauses }]).1;
    packed.remove(0).1
}

fn named(clause: Clause) -> Clause {
    let named = |m: Match| Match {
        namespaces: vec![StringMatch::Exact(m.destination_ports[0].to_string().as_str().into())],
        ..Match::default()
    };
    Clause {
        matches: clause.matches.into_iter().map(named).collect(),
    }
}

#[test]
fn clauses_are_multiplied_out_where_that_is_small_and_no_field_is_asked_twice() {
    let counts = |clauses| match ways(clauses) {
        Ways::One(ways) => vec![ways.len()],
        Ways::OneOfEach(clauses) => clauses.iter().map(Vec::len).collect(),
    };
    assert_eq!(counts(vec![]), [1], "without clauses a rule always matches");
    assert_eq!(counts(vec![clause(0..0)]), [1], "so it does where a clause has no matches");
    assert_eq!(counts(vec![clause(0..4), named(clause(0..4))]), [16]);
    assert_eq!(counts(vec![clause(0..4), named(clause(0..5))]), [4, 5]);
    assert_eq!(
        counts(vec![clause(0..100), named(clause(0..1))]),
        [100],
        "the rows are no more than the matches"
    );
    assert_eq!(counts(vec![clause(0..2), clause(0..1)]), [2, 1], "a port is asked for twice");
    let never = Clause {
        matches: vec![Match::default()],
    };
    assert_eq!(
        counts(vec![clause(0..8), never.clone(), clause(0..90)]),
        [0],
        "one that is never true leaves nothing"
    );
    let or = Clause {
        matches: vec![Match::default(), port(1)],
    };
    assert_eq!(counts(vec![or]), [1]);
}

#[test]
fn the_place_of_a_rule_tells_its_number() {
    let rule = |clauses| Rule { clauses };
    let rules = [
        rule(vec![]),
        rule(vec![clause(0..3), clause(0..1)]),
        rule(vec![Match::default().into()]),
        rule(vec![]),
    ];
    let mut terms = Terms::default();
    let (words, ways) = pack(&mut terms, &rules);
    let numbers: Vec<_> = ways.iter().map(|(begin, _)| Reader::rules_before(&words, *begin)).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert_eq!(Reader::new(&words, 0).rules(&terms), rules);
}
