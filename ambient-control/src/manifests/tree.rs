//! YAML and JSON as a tree that knows the line of every node, and serde over it: an error names line and field.
//!
//! ```
//! use ambient_control::manifests::tree;
//!
//! let documents = tree::documents(b"port: 80\n---\nport:\n  http\n")??;
//! #[derive(serde::Deserialize)]
//! struct Server { port: u16 }
//! assert_eq!(documents[0].read::<Server>()?.port, 80);
//! let error = documents[1].read::<Server>().err().expect("it is no number");
//! assert_eq!((error.line, &*error.path), (4, "port"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{fmt, io, thread};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_saphyr::{Error, Options, Spanned, Tagged};

/// What is wrong with a text, and where; it reads well after the name of the file and a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// From 1; 0 where the parser does not tell.
    pub line: u64,
    /// Such as `spec.ports[0].port`; empty where the text has no fields yet.
    pub path: String,
    /// Why, and what is wanted.
    pub why: String,
}

impl std::error::Error for TextError {}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(" ")?,
            line => write!(f, "{line}: ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.why)
    }
}

/// A value and the line that it begins on.
#[derive(Clone, Debug)]
pub struct Node {
    /// From 1.
    pub line: u64,
    /// What YAML says of the value before it, such as `Exact` for `!Exact cart`: the variant of an enum.
    pub tag: Option<Box<str>>,
    /// The value.
    pub value: Value,
}

/// A value of YAML or JSON.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A number from 0 on.
    Unsigned(u64),
    /// A number below 0.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Fields, in their order.
    Map(Vec<(String, Node)>),
}

/// The documents of a file, less empty ones.
///
/// The parser calls itself for every level of nesting, and needs up to 40 kB for each, more than the stack of a runtime's
/// thread holds: it gets a thread of its own.
///
/// # Errors
/// The outer error is that there is no such thread to be had; the inner that the file is neither YAML nor JSON.
pub fn documents(content: &[u8]) -> io::Result<Result<Vec<Node>, TextError>> {
    let parser = thread::Builder::new().name("manifests".into()).stack_size(PARSER_STACK);
    thread::scope(|scope| {
        let parser = parser.spawn_scoped(scope, || parse(content))?;
        Ok(parser.join().unwrap_or_else(|_| {
            Err(TextError {
                line: 0,
                path: String::new(),
                why: "made its parser fail: please report this with the file".into(),
            })
        }))
    })
}

fn parse(content: &[u8]) -> Result<Vec<Node>, TextError> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let before = &content[..error.valid_up_to()];
        TextError {
            line: 1 + before.iter().filter(|b| **b == b'\n').count() as u64,
            path: String::new(),
            why: "is no text: a byte is not UTF-8".into(),
        }
    })?;
    let nodes: Vec<Node> = serde_saphyr::from_multiple_with_options(text, options()).map_err(|e| {
        let location = e.location();
        TextError {
            line: location.map_or(0, |l| l.line()),
            path: String::new(),
            why: match e.without_snippet() {
                Error::DuplicateMappingKey { .. } => one_line(&e),
                _ => format!("is neither YAML nor JSON: {}", one_line(&e)),
            },
        }
    })?;
    Ok(nodes.into_iter().filter(|n| !matches!(n.value, Value::Null)).collect())
}

pub(super) fn options() -> Options {
    let budget = serde_saphyr::budget! {
        max_events: 20_000_000,
        max_nodes: 10_000_000,
        max_documents: 1_000_000,
        max_depth: 100,
        flow_nesting_limit: 100,
        max_aliases: 1_000,
        max_anchors: 1_000,
    };
    // No printer of manifests writes aliases, and a few of aliases stand for more than any memory holds.
    let alias_limits = serde_saphyr::alias_limits! {
        max_total_replayed_events: 20_000,
    };
    serde_saphyr::options! {
        budget: budget,
        alias_limits: alias_limits,
        // As YAML 1.2 has it: `on` and `yes` are texts, such as values of labels.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The words of a parser's error without its own way of telling the place.
pub(super) fn one_line(error: &Error) -> String {
    let text = match error.without_snippet() {
        // The parser tells a programmer what to do about it.
        Error::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("the field {key:?} stands twice in one map: leave one of them"),
            None => "a field stands twice in one map: leave one of them".to_owned(),
        },
        other => other.to_string(),
    };
    let text = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    match text.chars().count() {
        0..=300 => text,
        _ => text.chars().take(300).chain(['…']).collect(),
    }
}

impl Node {
    /// The node of a field, if this is a map that has it.
    pub fn field(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a field, if it is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        match &self.field(name)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of a field such as `spec.rules[1].from`, or of the nearest that is there.
    pub fn line_of(&self, path: &str) -> u64 {
        let mut node = self;
        for step in path.split(['.', '[', ']']).filter(|s| !s.is_empty()) {
            let next = match &node.value {
                Value::List(items) => step.parse::<usize>().ok().and_then(|at| items.get(at)),
                _ => node.field(step),
            };
            let Some(next) = next else { break };
            node = next;
        }
        node.line
    }

    /// Reads a type out of it.
    ///
    /// # Errors
    /// At the first value that is not what the type wants.
    pub fn read<T: de::DeserializeOwned>(&self) -> Result<T, TextError> {
        T::deserialize(self).map_err(|e| TextError {
            line: if e.line > 0 { e.line } else { self.line },
            path: e.path(),
            why: e.why,
        })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tagged<Value>>::deserialize(deserializer)?;
        let Tagged(value, tag) = spanned.value;
        // YAML's own types, such as `!!str`, say nothing that the value does not.
        let tag = tag.filter(|tag| !tag.starts_with("!!") && !tag.starts_with("tag:"));
        Ok(Self {
            line: spanned.referenced.line(),
            tag: tag.map(|tag| tag.trim_start_matches('!').into()),
            value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Value::Map(fields))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An error on its way out of the tree: each map and list that it passes adds its own step.
#[derive(Debug)]
pub struct FieldError {
    line: u64,
    /// The innermost first.
    steps: Vec<String>,
    why: String,
}

impl FieldError {
    fn within(mut self, step: String, line: u64) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self.steps.push(step);
        self
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in self.steps.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        path
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self {
            line: 0,
            steps: Vec::new(),
            why: why.to_string(),
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            line: 0,
            steps: vec![field.into()],
            why: "is missing".into(),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let wanted = wanted(expected);
        let quote = match found {
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Bool(_) | Unexpected::Float(_) if wanted.contains("string") => {
                "; write it in quotes"
            }
            Unexpected::Str(text) if wanted.starts_with("a number") && text.parse::<u32>().is_ok() => "; write it without quotes",
            _ => "",
        };
        Self::custom(format_args!("{found} stands where {wanted} is wanted{quote}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("{found} stands where {} is wanted", wanted(expected)))
    }
}

/// What a type wants, in words that are not Rust's.
fn wanted(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "u16" => "a number from 0 to 65535".into(),
        "u32" => "a number from 0 to 4294967295".into(),
        other => other.into(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(items) => visitor.visit_seq(Items {
                items: items.iter(),
                at: 0,
            }),
            Value::Map(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                value: None,
            }),
        }
        .map_err(|mut e| {
            if e.line == 0 {
                e.line = self.line;
            }
            e
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_unit()
    }

    /// A variant is a tag before its value, the one field of a map, or a text.
    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, FieldError> {
        let choice = match (&self.tag, &self.value) {
            (Some(tag), _) => Choice {
                name: tag,
                value: Some(self),
            },
            (None, Value::Text(name)) => Choice { name, value: None },
            (None, Value::Map(fields)) if fields.len() == 1 => Choice {
                name: &fields[0].0,
                value: Some(&fields[0].1),
            },
            _ => return Err(de::Error::custom("one word is wanted, a tag, or a map with one field")),
        };
        visitor.visit_enum(choice).map_err(|mut e| {
            if e.line == 0 {
                e.line = self.line;
            }
            e
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

/// A variant of an enum, and what it holds.
struct Choice<'de> {
    name: &'de str,
    value: Option<&'de Node>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = FieldError;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), FieldError> {
        let name: de::value::StrDeserializer<'de, FieldError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'de> {
    type Error = FieldError;

    fn unit_variant(self) -> Result<(), FieldError> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, FieldError> {
        match self.value {
            Some(value) => seed.deserialize(value),
            None => Err(de::Error::custom(format_args!("{} needs a value", self.name))),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Some(value) => value.deserialize_any(visitor),
            None => Err(de::Error::custom(format_args!("{} needs a list", self.name))),
        }
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, FieldError> {
        self.tuple_variant(0, visitor)
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let at = self.at;
        self.at += 1;
        seed.deserialize(item).map(Some).map_err(|e| e.within(format!("[{at}]"), item.line))
    }
}

struct Fields<'de> {
    fields: std::slice::Iter<'de, (String, Node)>,
    value: Option<&'de (String, Node)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        self.value = self.fields.next();
        let Some((key, node)) = self.value else { return Ok(None) };
        let deserializer: de::value::StrDeserializer<'de, FieldError> = key.as_str().into_deserializer();
        seed.deserialize(deserializer)
            .map(Some)
            .map_err(|e| e.within(key.clone(), node.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let (key, node) = self
            .value
            .take()
            .ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        seed.deserialize(node).map_err(|e| e.within(key.clone(), node.line))
    }
}

/// Eight times what the deepest nesting needs that is read at all.
const PARSER_STACK: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::{parse as parse_bytes, *};

    fn documents(text: &str) -> Result<Vec<Node>, TextError> {
        parse_bytes(text.as_bytes())
    }

    #[test]
    fn lines_count_through_documents() {
        let nodes = documents("a: 1\n---\n# nothing\n---\nb:\n  c: [1,\n    x]\n---\n{\"d\":\n\t{\"e\": null}}\n").unwrap();
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[1].line_of("b.c[1]"), 7);
        assert_eq!(nodes[2].line_of("d.e"), 10);
        assert_eq!(nodes[1].line_of("b.nope.x"), 6);
    }

    #[test]
    fn a_variant_is_a_tag_a_field_or_a_word() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Way {
            Exact(String),
            Any(Option<Vec<u8>>),
            None,
        }
        let ways = documents("[!Exact a, {Exact: b}, !Any [], {Any: null}, None, !Exact null]\n").unwrap();
        let read: Vec<Result<Way, TextError>> = match &ways[0].value {
            Value::List(nodes) => nodes.iter().map(Node::read).collect(),
            other => panic!("{other:?}"),
        };
        let exact = |text: &str| Ok(Way::Exact(text.into()));
        assert_eq!(
            read[..5],
            [
                exact("a"),
                exact("b"),
                Ok(Way::Any(Some(vec![]))),
                Ok(Way::Any(None)),
                Ok(Way::None)
            ]
        );
        assert!(read[5].is_err());
        for wrong in ["!Other a", "{Exact: a, Any: b}", "1", "!Exact [a]"] {
            assert!(documents(wrong).unwrap()[0].read::<Way>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_of_syntax_have_their_line() {
        for (text, line) in [
            ("a: 1\nb: [1\n", 2..=3),
            ("a: 1\na: 2\n", 2..=2),
            ("ok: 1\n---\na: 1\n  b: 2\n", 4..=4),
        ] {
            let error = documents(text).unwrap_err();
            assert!(line.contains(&error.line), "{text:?}: {error:?}");
            assert!(
                !error.to_string().contains('\n') && !error.to_string().contains("Options"),
                "{error}"
            );
        }
    }

    #[test]
    fn errors_of_shape_have_line_and_field() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only read")]
        struct Port {
            port: u16,
            name: Option<String>,
        }
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only read")]
        struct Spec {
            ports: Vec<Port>,
        }
        for (text, expected) in [
            (
                "ports:\n- port: 1\n- port: 70000\n",
                "3: ports[1].port: integer `70000` stands where a number from 0 to 65535 is wanted",
            ),
            (
                "ports:\n- port: -1\n",
                "2: ports[0].port: integer `-1` stands where a number from 0 to 65535 is wanted",
            ),
            (
                "ports:\n- port: '80'\n",
                "2: ports[0].port: string \"80\" stands where a number from 0 to 65535 is wanted; write it without quotes",
            ),
            ("ports:\n- port: 1\n- name: x\n", "3: ports[1].port: is missing"),
            (
                "ports:\n- port: 1\n  name: 80\n",
                "3: ports[0].name: integer `80` stands where a string is wanted; write it in quotes",
            ),
            ("ports: 1\n", "1: ports: integer `1` stands where a sequence is wanted"),
        ] {
            let error = documents(text).unwrap()[0].read::<Spec>().unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
