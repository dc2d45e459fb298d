//! What the files say of who is in the mesh: nobody else proves an identity, and for nobody else policies are asked.

use ambient_authz::kubernetes::Labels;
use ambient_control::objects::{Candidate, Exclusion, Selection};

use super::files::{Files, Found};

/// That a pod of the files is not in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    /// `NAMESPACE/NAME`, or what stands for any pod of a namespace.
    pod: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// By what the pod itself is.
    Pod(String),
    /// Neither it nor its namespace is labelled; the namespace's labels are in the files.
    Unlabelled(String),
    /// It has a sidecar.
    Sidecar,
}

impl Outside {
    /// Why, where it is so whatever its namespace is.
    pub(super) fn of_itself(&self) -> Option<String> {
        match &self.why {
            Why::Pod(why) => Some(why.clone()),
            Why::Sidecar => Some("it has a sidecar".into()),
            Why::Unlabelled(_) => None,
        }
    }
}

impl Files {
    /// Whether a namespace of the files brings no pod into the mesh that does not say so itself.
    pub(super) fn namespace_outside(&self, namespace: &str) -> Option<Outside> {
        let labels = self.namespace_labels.get(namespace)?;
        (labels.get(DATAPLANE_MODE).map(String::as_str) != Some("ambient")).then(|| Outside {
            pod: "a pod of it".into(),
            why: Why::Unlabelled(namespace.to_owned()),
        })
    }

    /// Whether a pod is not in the mesh by what the files say of it and of its namespace. Where they do not hold the
    /// namespace they say nothing of its labels.
    pub(super) fn outside(&self, pod: &Found) -> Option<Outside> {
        let namespace_labels = self.namespace_labels.get(&pod.namespace);
        let none = Labels::new();
        let candidate = Candidate {
            namespace_labels: namespace_labels.unwrap_or(&none),
            host_network: pod.host_network,
            ..Candidate::new(&pod.namespace, &pod.labels, &pod.annotations)
        };
        let why = match Selection::default().decide(&candidate).err()? {
            Exclusion::Sidecar => Why::Sidecar,
            Exclusion::NotSelected => match (pod.labels.get(DATAPLANE_MODE), namespace_labels) {
                (Some(mode), _) => Why::Pod(format!("its label {DATAPLANE_MODE} is {mode}")),
                (None, Some(_)) => Why::Unlabelled(pod.namespace.clone()),
                (None, None) => return None,
            },
            other => Why::Pod(other.to_string()),
        };
        Some(Outside {
            pod: format!("{}/{}", pod.namespace, pod.name),
            why,
        })
    }
}

/// What is to be said where a peer or whom it asks is not in the mesh.
pub(super) fn notes(peer: Option<&Outside>, target: Option<&Outside>) -> Vec<String> {
    let unlabelled = |outside: Option<&Outside>| match &outside?.why {
        Why::Unlabelled(namespace) => Some(namespace.clone()),
        Why::Pod(_) | Why::Sidecar => None,
    };
    if let Some(namespace) = unlabelled(peer).filter(|namespace| unlabelled(target).as_ref() == Some(namespace)) {
        return vec![format!("{}: this is what holds once it is", without_label(&namespace))];
    }
    let of_peer = peer.and_then(|Outside { pod, why }| match why {
        Why::Pod(why) => Some(format!(
            "{pod} is not in the mesh ({why}) and speaks plaintext: ask --from plaintext"
        )),
        Why::Unlabelled(namespace) => Some(format!(
            "{}: until it is {pod} speaks plaintext, ask --from plaintext",
            without_label(namespace)
        )),
        // That proves its identity.
        Why::Sidecar => None,
    });
    let of_target = target.map(|Outside { pod, why }| match why {
        Why::Pod(why) => format!("{pod} is not in the mesh ({why}): no node asks policies for it"),
        Why::Unlabelled(namespace) => format!("{}: until it is no node asks policies for {pod}", without_label(namespace)),
        Why::Sidecar => format!("{pod} has a sidecar, which reads policies in its own way: no node asks them for it"),
    });
    of_peer.into_iter().chain(of_target).collect()
}

fn without_label(namespace: &str) -> String {
    format!("by the files {namespace} is not in the mesh (no label {DATAPLANE_MODE}: ambient)")
}

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
