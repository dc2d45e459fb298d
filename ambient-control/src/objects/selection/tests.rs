use serde_json::json;

use super::*;

const MODES: [Option<&str>; 5] = [None, Some("ambient"), Some("none"), Some("other"), Some("Ambient")];

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mode(mode: Option<&str>) -> Labels {
    labels(&mode.map(|mode| (DATAPLANE_MODE, mode)).into_iter().collect::<Vec<_>>())
}

fn enablement(value: serde_json::Value) -> Vec<Enablement> {
    let list: Vec<Enablement> = serde_json::from_value(value).unwrap();
    Enablement::check(&list).unwrap();
    list
}

/// The whole table: namespace label, pod label, host network, sidecar, excluded namespace, the proxy itself, phase.
#[test]
fn the_whole_table() {
    let selection = Selection::default();
    let mut rows = 0;
    for (of_namespace, of_pod) in MODES.iter().flat_map(|ns| MODES.iter().map(move |pod| (*ns, *pod))) {
        let labelled = match of_pod {
            Some("ambient") => true,
            Some("none") => false,
            _ => of_namespace == Some("ambient"),
        };
        for phase in [
            None,
            Some("Pending"),
            Some("Running"),
            Some("Unknown"),
            Some("Succeeded"),
            Some("Failed"),
        ] {
            for bits in 0..16 {
                let (host_network, sidecar) = (bits & 1 > 0, bits & 2 > 0);
                let (excluded, proxy) = (bits & 4 > 0, bits & 8 > 0);
                let mut pod_labels = mode(of_pod);
                if proxy {
                    pod_labels.insert("app".into(), "ztunnel".into());
                }
                let annotations = labels(if sidecar { &[(SIDECAR_STATUS, "")] } else { &[] });
                let namespace = if excluded { "kube-system" } else { "istio-system" };
                let namespace_labels = mode(of_namespace);
                let pod = Candidate {
                    namespace_labels: &namespace_labels,
                    host_network,
                    phase,
                    ..Candidate::new(namespace, &pod_labels, &annotations)
                };
                let wanted = match phase {
                    Some("Succeeded" | "Failed") => Err(Exclusion::Ended),
                    _ if host_network => Err(Exclusion::HostNetwork),
                    _ if sidecar => Err(Exclusion::Sidecar),
                    _ if excluded => Err(Exclusion::Namespace),
                    _ if proxy => Err(Exclusion::Proxy),
                    _ if !labelled => Err(Exclusion::NotSelected),
                    _ => Ok(()),
                };
                assert_eq!(selection.decide(&pod), wanted, "{pod:?}");
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 5 * 5 * 6 * 16);
}

#[test]
fn a_ztunnel_elsewhere_is_a_pod_like_others() {
    let (own, none) = (labels(&[("app", "ztunnel"), (DATAPLANE_MODE, "ambient")]), Labels::new());
    assert_eq!(Selection::default().decide(&Candidate::new("shop", &own, &none)), Ok(()));
    let elsewhere = Selection {
        system_namespace: "shop".into(),
        ..Selection::default()
    };
    assert_eq!(elsewhere.decide(&Candidate::new("shop", &own, &none)), Err(Exclusion::Proxy));
}

#[test]
fn what_is_asked_of_a_label() {
    // value, In [a b], NotIn [a b], Exists, DoesNotExist
    for (value, wanted) in [
        (None, [false, true, false, true]),
        (Some("a"), [true, false, true, false]),
        (Some("b"), [true, false, true, false]),
        (Some("c"), [false, true, true, false]),
        (Some(""), [false, true, true, false]),
    ] {
        let operators = [Operator::In, Operator::NotIn, Operator::Exists, Operator::DoesNotExist];
        for (operator, wanted) in operators.into_iter().zip(wanted) {
            let values = match operator {
                Operator::In | Operator::NotIn => vec!["a".to_owned(), "b".to_owned()],
                _ => Vec::new(),
            };
            let selector = LabelSelector {
                match_expressions: vec![Requirement {
                    key: "k".into(),
                    operator,
                    values,
                }],
                ..LabelSelector::default()
            };
            let own = labels(&value.map(|v| ("k", v)).into_iter().collect::<Vec<_>>());
            assert_eq!(selector.selects(&own), wanted, "{operator:?} of {value:?}");
        }
    }
}

#[test]
fn items_are_alternatives_and_their_parts_conditions() {
    let list = enablement(json!([
        { "podSelector": { "matchLabels": { "mesh": "in", "tier": "web" } },
          "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "In", "values": ["a", "b"] }] } },
        { "podSelector": { "matchExpressions": [{ "key": "always", "operator": "Exists" }] } },
    ]));
    let selection = Selection {
        enablement: list,
        ..Selection::default()
    };
    let none = Labels::new();
    for (pod, namespace, wanted) in [
        (&[("mesh", "in"), ("tier", "web")][..], &[("team", "a")][..], true),
        (&[("mesh", "in"), ("tier", "web")], &[("team", "b")], true),
        (&[("mesh", "in"), ("tier", "web")], &[("team", "c")], false),
        (&[("mesh", "in")], &[("team", "a")], false),
        (&[("always", "")], &[], true),
        (&[], &[("always", "")], false),
        (&[(DATAPLANE_MODE, "ambient")], &[], false),
    ] {
        let (pod, namespace) = (labels(pod), labels(namespace));
        let candidate = Candidate {
            namespace_labels: &namespace,
            ..Candidate::new("shop", &pod, &none)
        };
        assert_eq!(selection.decide(&candidate).is_ok(), wanted, "{candidate:?}");
    }
}

#[test]
fn an_empty_selector_selects_all_and_an_empty_list_nothing() {
    let (none, pod) = (Labels::new(), labels(&[("a", "b")]));
    for all in [
        json!([{}]),
        json!([{ "podSelector": {}, "namespaceSelector": {} }]),
        json!([{ "podSelector": null, "namespaceSelector": { "matchLabels": null, "matchExpressions": null } }]),
    ] {
        let selection = Selection {
            enablement: enablement(all),
            ..Selection::default()
        };
        assert_eq!(selection.decide(&Candidate::new("shop", &pod, &none)), Ok(()));
        assert_eq!(
            selection.decide(&Candidate::new("kube-system", &pod, &none)),
            Err(Exclusion::Namespace)
        );
    }
    let nothing = Selection {
        enablement: Vec::new(),
        ..Selection::default()
    };
    assert_eq!(nothing.decide(&Candidate::new("shop", &pod, &none)), Err(Exclusion::NotSelected));
}

#[test]
fn what_kubernetes_would_not_take_is_no_selector() {
    let expression = |e: serde_json::Value| json!([{}, { "namespaceSelector": { "matchExpressions": [e] } }]);
    for (value, wanted) in [
        (
            expression(json!({ "key": "k", "operator": "In" })),
            "[1].namespaceSelector.matchExpressions[0].values: In and NotIn need values",
        ),
        (
            expression(json!({ "key": "k", "operator": "NotIn", "values": [] })),
            "[1].namespaceSelector.matchExpressions[0].values: In and NotIn need values",
        ),
        (
            expression(json!({ "key": "k", "operator": "Exists", "values": ["a"] })),
            "[1].namespaceSelector.matchExpressions[0].values: Exists and DoesNotExist take no values",
        ),
        (
            expression(json!({ "key": "", "operator": "Exists" })),
            "[1].namespaceSelector.matchExpressions[0].key: a label without a name",
        ),
        (
            json!([{ "podSelector": { "matchLabels": { "": "a" } } }]),
            "[0].podSelector.matchLabels: a label without a name",
        ),
    ] {
        let list: Vec<Enablement> = serde_json::from_value(value).unwrap();
        assert_eq!(Enablement::check(&list).unwrap_err().to_string(), wanted);
    }
    for value in [
        json!([{ "podselector": {} }]),
        json!([{ "podSelector": { "matchLabel": {} } }]),
        json!([{ "podSelector": { "matchExpressions": [{ "key": "k", "operator": "in", "values": ["a"] }] } }]),
        json!([{ "podSelector": { "matchLabels": { "a": 1 } } }]),
        json!({ "podSelector": {} }),
    ] {
        serde_json::from_value::<Vec<Enablement>>(value.clone()).expect_err(&value.to_string());
    }
}
