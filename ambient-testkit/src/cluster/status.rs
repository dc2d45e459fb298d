//! What a node says of the pods that it has captured: `status/NODE.json` in the manifests directory.

use std::{collections::BTreeSet, fs, io, path::Path};

use serde::Deserialize;

#[derive(Deserialize)]
struct Document {
    pods: std::collections::BTreeMap<String, serde_json::Value>,
}

/// The UIDs that stand in a node's status; none when it has written nothing yet.
///
/// # Errors
/// When the file cannot be read, or is not such a status.
pub(crate) fn captured(manifests: &Path, node: &str) -> io::Result<BTreeSet<String>> {
    let path = manifests.join("status").join(format!("{node}.json"));
    match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(e) => Err(io::Error::new(e.kind(), format!("reading {}: {e}", path.display()))),
        Ok(bytes) => parse(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))),
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeSet<String>, serde_json::Error> {
    Ok(serde_json::from_slice::<Document>(bytes)?.pods.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_the_keys() {
        let text = br#"{"node":"node-1","pods":{"u1":{"ips":["10.0.0.1"],"captured_at":"2026-01-01T00:00:00Z"}}}"#;
        assert_eq!(parse(text).unwrap(), BTreeSet::from(["u1".to_owned()]));
        assert!(parse(b"{").is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(captured(dir.path(), "node-1").unwrap().is_empty());
    }
}
