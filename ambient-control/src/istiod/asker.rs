//! Who asks for state, and what istiod is told of it.

use std::collections::BTreeMap;

use prost_types::{ListValue, Struct, Value, value::Kind};

use crate::wire::envoy::config::core::v3::Node;

/// Who asks for state: istiod's node.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// The address of the proxy's own pod.
    pub instance_ip: String,
    /// The proxy's own pod.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// The Kubernetes node it runs on.
    pub node: String,
    /// More metadata. What says the same as one of the above does not count.
    pub metadata: BTreeMap<String, Metadata>,
}

/// A value of a node's metadata: what JSON can say.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    /// Nothing.
    Null,
    /// Whether.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// One after the other.
    List(Vec<Self>),
    /// By names.
    Map(BTreeMap<String, Self>),
}

impl From<String> for Metadata {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

fn value(said: Metadata) -> Value {
    let kind = match said {
        Metadata::Null => Kind::NullValue(0),
        Metadata::Bool(is) => Kind::BoolValue(is),
        Metadata::Number(number) => Kind::NumberValue(number),
        Metadata::Text(text) => Kind::StringValue(text),
        Metadata::List(list) => Kind::ListValue(ListValue {
            values: list.into_iter().map(value).collect(),
        }),
        Metadata::Map(map) => Kind::StructValue(fields(map)),
    };
    Value { kind: Some(kind) }
}

fn fields(map: BTreeMap<String, Metadata>) -> Struct {
    Struct {
        fields: map.into_iter().map(|(name, said)| (name, value(said))).collect(),
    }
}

impl Asker {
    pub(super) fn node(&self) -> Node {
        let own = [
            ("NAME", &self.pod),
            ("NAMESPACE", &self.namespace),
            ("INSTANCE_IPS", &self.instance_ip),
            ("NODE_NAME", &self.node),
        ];
        let mut all = self.metadata.clone();
        all.extend(own.map(|(name, of)| (name.to_owned(), Metadata::Text(of.clone()))));
        let (ip, pod, namespace) = (&self.instance_ip, &self.pod, &self.namespace);
        Node {
            // The form that istiod takes apart; the domain in it is not the cluster's but fixed.
            id: format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(fields(all)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_told_as_it_is_and_says_nothing_of_who_asks() {
        let inner = BTreeMap::from([
            ("app".to_owned(), Metadata::Text("z".into())),
            ("on".to_owned(), Metadata::Bool(true)),
            ("of".to_owned(), Metadata::List(vec![Metadata::Number(1.5), Metadata::Null])),
        ]);
        let asker = Asker {
            node: "node-a".into(),
            metadata: [
                ("LABELS".to_owned(), Metadata::Map(inner)),
                ("NODE_NAME".to_owned(), Metadata::Text("another".into())),
            ]
            .into(),
            ..Asker::default()
        };
        let told = asker.node().metadata.unwrap().fields;
        assert_eq!(told["NODE_NAME"].kind, Some(Kind::StringValue("node-a".into())));
        let Some(Kind::StructValue(labels)) = &told["LABELS"].kind else {
            panic!("{told:?}")
        };
        let kinds = ["app", "on", "of"].map(|name| labels.fields[name].kind.clone().unwrap());
        let list = [Kind::NumberValue(1.5), Kind::NullValue(0)].map(|kind| Value { kind: Some(kind) });
        let wanted = [
            Kind::StringValue("z".into()),
            Kind::BoolValue(true),
            Kind::ListValue(ListValue { values: list.into() }),
        ];
        assert_eq!(kinds, wanted);
    }
}
