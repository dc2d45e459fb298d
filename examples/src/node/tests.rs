use ambient_node::OwnPod;
use clap::FromArgMatches as _;

use super::*;

#[test]
fn the_pod_of_the_process_itself_is_who_its_variables_say() {
    let command = Args::augment_args(clap::Command::new("node"));
    let matches = command.get_matches_from(["node", "--node", "n", "--manifests", "/m", "--ca-dir", "/c", "--no-dns-capture"]);
    let args = Args::from_arg_matches(&matches).unwrap();
    let said = Said {
        trust_domain: None,
        trust_domain_aliases: Vec::new(),
        root_namespace: None,
    };
    let mesh = Mesh::of(said, None, "Kubernetes").unwrap();
    let own = |variables: &[(String, String)]| config(&args, &mesh, variables).unwrap().own_pod;
    let chart = ztunnel::chart::ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let wanted = OwnPod {
        namespace: "istio-system".into(),
        name: "ztunnel-x".into(),
        service_account: "ztunnel".into(),
    };
    assert_eq!(own(&chart), Some(wanted));
    // Whoever is told a part of it alone is nobody's pod.
    for without in ["POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"] {
        let mut others = chart.clone();
        let variable = others.iter_mut().find(|(name, _)| name == without).unwrap();
        variable.1.clear();
        assert_eq!(own(&others), None, "an empty {without}");
        let others: Vec<_> = chart.iter().filter(|(name, _)| name != without).cloned().collect();
        assert_eq!(own(&others), None, "no {without}");
        let mut others = chart.clone();
        others.iter_mut().find(|(name, _)| name == without).unwrap().1 = "A B".into();
        let why = config(&args, &mesh, &others).unwrap_err().to_string();
        assert!(why.contains(&format!("variable {without}: ")) && why.contains("\"A B\""), "{why}");
    }
}
