//! Values as block-style YAML, in the way `kubectl get -o yaml` prints them.

use serde_json::{Map, Value};

/// Writes a value as one YAML document, ending in a line feed.
pub(crate) fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0),
        Value::Array(list) if !list.is_empty() => sequence(&mut out, list, 0),
        plain => {
            out.push_str(&scalar(plain));
            out.push('\n');
        }
    }
    out
}

fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        pad(out, indent);
        entry(out, key, value, indent);
    }
}

fn entry(out: &mut String, key: &str, value: &Value, indent: usize) {
    out.push_str(&text(key));
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push_str(":\n");
            mapping(out, map, indent + 2);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push_str(":\n");
            sequence(out, list, indent);
        }
        plain => {
            out.push_str(": ");
            out.push_str(&scalar(plain));
            out.push('\n');
        }
    }
}

fn sequence(out: &mut String, list: &[Value], indent: usize) {
    for value in list {
        pad(out, indent);
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push_str("- ");
                for (index, (key, value)) in map.iter().enumerate() {
                    if index > 0 {
                        pad(out, indent + 2);
                    }
                    entry(out, key, value, indent + 2);
                }
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push_str("-\n");
                sequence(out, inner, indent + 2);
            }
            plain => {
                out.push_str("- ");
                out.push_str(&scalar(plain));
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        // Empty collections, numbers, booleans and null read the same in JSON and in YAML.
        other => other.to_string(),
    }
}

/// A string, plain where no reader can take it for anything else, otherwise quoted as in JSON, of which YAML 1.2 is a
/// superset.
fn text(string: &str) -> String {
    let starts_plain = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let all_plain = string.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c));
    let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"]
        .iter()
        .any(|w| string.eq_ignore_ascii_case(w));
    if starts_plain && all_plain && !word {
        string.to_owned()
    } else {
        Value::from(string).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let value = json!({
            "metadata": {"labels": {"istio.io/dataplane-mode": "none", "a": "yes"}, "name": "web-api", "annotations": {}},
            "spec": {"ports": [{"port": 8080, "name": "http"}, 7, [1, [2]], {"x": {"y": []}}], "on": true, "nothing": null},
            "text": "a: b # c\n\"d\"", "ip": "10.0.0.1", "v6": "fd00::1", "empty": "",
        });
        let text = to_string(&value);
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }

    #[test]
    fn it_looks_as_kubectl_prints_it() {
        let value = json!({"kind": "Pod", "spec": {"containers": [{"name": "c", "args": ["serve"]}]}});
        assert_eq!(
            to_string(&value),
            "kind: Pod\nspec:\n  containers:\n  - args:\n    - serve\n    name: c\n"
        );
    }
}
