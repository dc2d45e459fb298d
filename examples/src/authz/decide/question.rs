//! One line of connections: what is asked, and what is wrong with a line that asks nothing.

use std::{fmt, net::IpAddr};

use ambient_authz::kubernetes::Labels;
use ambient_control::manifests::tree;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// What a line asks; its id is kept as it is written, as no type of numbers holds all that JSON has.
pub(super) type Question<'a> = Line<Option<&'a RawValue>>;

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with id, source and destination")]
pub(super) struct Line<Id> {
    #[serde(default)]
    pub(super) id: Id,
    pub(super) source: Source,
    pub(super) destination: Destination,
}

#[derive(Debug, Deserialize)]
// An identity with a typing error must not pass for plaintext.
#[serde(deny_unknown_fields, expecting = "an object with identity and ip")]
pub(super) struct Source {
    // Nor may one that was forgotten: a field that is read so has to be there.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) identity: Option<String>,
    pub(super) ip: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with namespace, labels, ip and port")]
pub(super) struct Destination {
    pub(super) namespace: String,
    /// Where there are none they need not be written, as in Kubernetes.
    #[serde(default, deserialize_with = "labels")]
    pub(super) labels: Labels,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    #[serde(default, rename = "name")]
    _name: Option<IgnoredAny>,
}

/// Why a line asks nothing.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not what is wanted.
    Shape(serde_json::Error),
    /// Anything else.
    Other(String),
}

/// Reads a line.
pub(super) fn read(line: &[u8]) -> Result<Question<'_>, Unread> {
    let text = std::str::from_utf8(line).map_err(|error| Unread::Other(format!("byte {} is not UTF-8", error.valid_up_to() + 1)))?;
    serde_json::from_str(text).map_err(Unread::Shape)
}

impl Unread {
    /// In words, with the field where it is one. They take long to find.
    pub(super) fn words(self, line: &[u8]) -> String {
        match self {
            Self::Shape(error) => field_error(line).unwrap_or_else(|| json_error(&error)),
            Self::Other(why) => why,
        }
    }
}

/// The error by the field that it is in, where it is in one.
fn field_error(line: &[u8]) -> Option<String> {
    let documents = tree::documents(line).ok()?.ok()?;
    let node = documents.first()?;
    let error = node.read::<Line<IgnoredAny>>().err()?;
    let forgotten = error.path == "source.identity" && node.field("source")?.field("identity").is_none();
    let hint = if forgotten { "; null says that it is plaintext" } else { "" };
    Some(match &*error.path {
        "" => error.why,
        path => format!("{path}: {}{hint}", error.why),
    })
}

/// The error without its line, which is always the first.
fn json_error(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    match text.strip_suffix(&format!(" at line {} column {column}", error.line())) {
        Some(why) => format!("column {column}: {why}"),
        None => text,
    }
}

/// Labels, of which none is given twice; null is none.
fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    struct Each;
    impl<'de> Visitor<'de> for Each {
        type Value = Labels;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of labels")
        }

        fn visit_unit<E>(self) -> Result<Labels, E> {
            Ok(Labels::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
            let mut labels = Labels::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if labels.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("the label {key} is given twice")));
                }
                labels.insert(key, value);
            }
            Ok(labels)
        }
    }
    deserializer.deserialize_any(Each)
}
