//! What is to be said about a place in a file.

use std::{fmt, sync::Arc};

use ambient_authz::explain::one_line;
use serde::Serialize;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    pub(super) file: Arc<str>,
    /// From 1; 0 where it is not known.
    pub(super) line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    /// It cannot be read. What is refused until it can: the resource's scope, or, where not even that it is a policy can be
    /// told, everything.
    Error,
    /// It is not in force as it is written, or is and is seldom meant so.
    Warning,
}

/// Something that is wrong, not in force as it is written, or seldom meant so.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    #[serde(flatten)]
    pub(super) place: Place,
    /// Such as `AuthorizationPolicy shop/stock`; none where the resource is not known.
    pub(super) object: Option<String>,
    /// The key of the policy that it is about.
    #[serde(skip)]
    pub(super) key: Option<String>,
    /// Such as `spec.rules[0].from[0].source.ipBlocks[2]`; empty where there are no fields yet.
    pub(super) path: String,
    pub(super) text: String,
    /// Whether it hides resources that could be any policy.
    #[serde(skip)]
    pub(super) hides: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        let mut line = format!("{}: {level}: ", self.place);
        if let Some(object) = &self.object {
            line = line + object + ": ";
        }
        if !self.path.is_empty() {
            line = line + &self.path + ": ";
        }
        f.write_str(&one_line(&(line + &self.text)))
    }
}
