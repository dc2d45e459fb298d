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

fn ways(clauses: Vec<Clause>) -> Vec<Way> {
    let packed = pack(&mut Terms::default(), &[Rule { clauses }]).1;
    packed.into_iter().map(|(_, way)| way).collect()
}

#[test]
fn clauses_are_multiplied_out_while_that_stays_small() {
    let counts = |clauses| {
        let ways = ways(clauses);
        (ways.len(), ways.iter().filter(|way| way.partial).count())
    };
    assert_eq!(counts(vec![]), (1, 0), "without clauses a rule always matches");
    assert_eq!(counts(vec![clause(0..0)]), (1, 0), "so it does where a clause has no matches");
    assert_eq!(counts(vec![clause(0..8), clause(0..1), clause(0..8)]), (64, 0));
    assert_eq!(counts(vec![clause(0..8), clause(0..9)]), (8, 8));
    assert_eq!(counts(vec![clause(0..100), clause(0..1)]), (100, 0));
    let never = Clause {
        matches: vec![Match::default()],
    };
    assert_eq!(
        counts(vec![clause(0..8), never.clone(), clause(0..90)]),
        (0, 0),
        "one that is never true leaves nothing"
    );
    let or = Clause {
        matches: vec![Match::default(), port(1)],
    };
    assert_eq!(counts(vec![or]), (1, 0));
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
    assert_eq!(numbers, [0, 1, 1, 1, 3], "the third never matches");
    assert_eq!(Reader::new(&words, 0).rules(&terms), rules);
}

#[test]
fn a_clause_left_out_is_asked_for_what_all_its_matches_ask() {
    let mut two = clause(0..9);
    two.matches.iter_mut().for_each(|m| m.namespaces = vec![StringMatch::Presence]);
    two.matches[0].not_destination_ports = vec![1];
    let ways = ways(vec![clause(100..108), two.clone()]);
    let wanted: Vec<_> = all_groups(ways[0].words()).map(<[Word]>::len).collect();
    assert_eq!((ways.len(), wanted), (8, vec![1, 1, 9]), "a port, a namespace, any of nine ports");
    assert!(
        ways.iter()
            .all(|way| way.partial && way.words().iter().all(|word| !word.is_refused()))
    );
    two.matches[3].destination_ports.clear();
    let ways = self::ways(vec![clause(100..108), two]);
    assert_eq!(all_groups(ways[0].words()).count(), 2, "one of them asks for no port");
}
