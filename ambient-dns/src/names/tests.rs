use ambient_core::Network;

use super::*;

fn all(name: &str, search: &[&str]) -> Vec<(String, Origin)> {
    let search: Vec<_> = search.iter().map(|domain| (*domain).to_owned()).collect();
    let client = Client {
        namespace: "ns",
        network: &Network::default(),
        search: &search,
    };
    let mut seen = Vec::new();
    let none: Option<()> = candidates(&Zone::new("dom"), &client, name, |name, origin| {
        seen.push((name.to_owned(), origin));
        None
    });
    assert_eq!(none, None);
    seen
}

#[test]
fn what_a_name_may_stand_for_in_order() {
    use Origin::{Asked, Completed, Stripped};
    let cases: [(&str, &[(&str, Origin)]); 10] = [
        ("", &[]),
        ("a", &[("a", Asked), ("a.ns.svc.dom", Completed)]),
        ("a.b", &[("a.b", Asked), ("a.b.svc.dom", Completed), ("a.b.ns.svc.dom", Completed)]),
        ("a.b.c", &[("a.b.c", Asked), ("a.b.c.svc.dom", Completed)]),
        (
            "a.b.svc",
            &[("a.b.svc", Asked), ("a.b.svc.dom", Completed), ("a.b.svc.svc.dom", Completed)],
        ),
        ("a.b.c.svc", &[("a.b.c.svc", Asked), ("a.b.c.svc.dom", Completed)]),
        ("a.b.c.d", &[("a.b.c.d", Asked)]),
        (
            "a.b.ns.svc.dom",
            &[
                ("a.b.ns.svc.dom", Asked),
                ("a.b.svc.dom", Stripped),
                ("a.b", Stripped),
                ("a.b.ns", Stripped),
                ("a.b.ns.svc", Stripped),
            ],
        ),
        // A domain that was passed over is not gone back to.
        ("a.b.dom", &[("a.b.dom", Asked), ("a.b", Stripped), ("a.b.dom.svc.dom", Completed)]),
        // The domain itself is nobody's short form.
        ("dom", &[("dom", Asked), ("dom.ns.svc.dom", Completed)]),
    ];
    for (name, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|(name, origin)| ((*name).to_owned(), *origin)).collect();
        assert_eq!(all(name, &[]), expected, "{name}");
    }
}

#[test]
fn a_search_domain_of_ones_own_hides_whole_names_only() {
    let stripped = |name, search: &[&str]| -> Vec<String> {
        let seen = all(name, search).into_iter().filter(|(_, origin)| *origin == Origin::Stripped);
        seen.map(|(name, _)| name).collect()
    };
    assert_eq!(stripped("api.example.com.corp", &["corp"]), ["api.example.com"]);
    assert_eq!(
        stripped("api.example.com.corp", &["Corp."]),
        ["api.example.com"],
        "however it is written"
    );
    assert_eq!(stripped("a.b.dom", &["DOM."]), ["a.b"]);
    assert_eq!(stripped("web.corp", &["corp"]), [""; 0]);
    assert_eq!(stripped("corp", &["corp"]), [""; 0]);
    assert_eq!(stripped("xcorp", &["corp", ""]), [""; 0]);
    assert_eq!(stripped("a.b.dom", &["dom"]), ["a.b"], "those that all have count once");
}

#[test]
fn wildcards_from_the_most_specific_on() {
    let all = |name: &str| {
        let mut seen = Vec::new();
        let none: Option<()> = wildcards(name, |wildcard| {
            seen.push(wildcard.to_owned());
            None
        });
        assert_eq!(none, None);
        seen
    };
    assert_eq!(all("a.b.c"), ["*.b.c", "*.c"]);
    assert_eq!(all("a"), [""; 0]);
    let long = all(&("a.".repeat(100) + "z"));
    assert_eq!(long.len(), WILDCARD_LABELS);
    assert_eq!((long[0].matches('.').count(), long[15].as_str()), (16, "*.z"));
    assert_eq!(wildcards("a.b.c", |wildcard| (wildcard == "*.c").then_some(1)), Some(1));
}
