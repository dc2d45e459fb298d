use std::os::unix::fs::PermissionsExt;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn tokens(directory: &Path) -> Tokens {
    Tokens::new(directory, Arc::new(ambient_tls::provider()))
}

#[test]
fn a_token_is_for_one_node_until_it_ends_or_is_revoked() {
    let scratch = tempfile::tempdir().unwrap();
    let tokens = tokens(scratch.path());
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let (one, two) = (
        tokens.create("node-1", HOUR, now).unwrap(),
        tokens.create("node-2", 2 * HOUR, now).unwrap(),
    );
    let node = |token: &str, at| tokens.node(token, at).unwrap();
    assert_eq!(node(&one, now).as_deref(), Some("node-1"));
    assert_eq!(node(&two, now).as_deref(), Some("node-2"));
    for other in ["", "ambient-", &one[..one.len() - 1], &format!("{one}0"), &one.to_uppercase()] {
        assert_eq!(node(other, now), None, "{other}");
    }
    assert_eq!(node(&one, now + HOUR), None);
    let kept = std::fs::read_to_string(scratch.path().join("tokens.json")).unwrap();
    assert!(!kept.contains(one.split_once('.').unwrap().1), "a secret is kept");
    let mode = std::fs::metadata(scratch.path().join("tokens.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Another process revokes it.
    let other = self::tokens(scratch.path());
    let id = other.list(now).unwrap()[1].id.clone();
    other.revoke(&id, now).unwrap();
    assert!(matches!(other.revoke(&id, now), Err(TokenError::Unknown { .. })));
    assert_eq!(node(&two, now), None);
    assert_eq!(tokens.list(now).unwrap().len(), 1);
    assert_eq!(tokens.list(now + HOUR).unwrap().len(), 0);
}

#[test]
fn what_is_no_name_and_no_file_is_said_so() {
    let scratch = tempfile::tempdir().unwrap();
    let tokens = tokens(scratch.path());
    for node in ["", "a b", "../etc", "a/b", ".x", &"x".repeat(254)] {
        assert!(
            matches!(tokens.create(node, HOUR, UNIX_EPOCH), Err(TokenError::Node { .. })),
            "{node}"
        );
    }
    assert_eq!(tokens.list(UNIX_EPOCH).unwrap(), []);
    std::fs::write(scratch.path().join("tokens.json"), "[{}]").unwrap();
    let error = tokens.node("x", UNIX_EPOCH).unwrap_err().to_string();
    assert!(error.contains("tokens.json") && error.contains("make new tokens"), "{error}");
}
