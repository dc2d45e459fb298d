//! Selectors of pods, as operators write them.

use super::tree;
use crate::objects::{Enablement, SelectorError};

/// A text that is no list of selectors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnablementError {
    /// It is no list, or something in it has not the shape of a selector.
    #[error("{0}; a list such as [{{podSelector: {{matchLabels: {{mesh: in}}}}}}] is wanted")]
    Shape(String),
    /// A selector asks for what cannot be asked.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

/// Reads a list of `{podSelector, namespaceSelector}` in YAML or JSON: what istio-cni takes as
/// `AMBIENT_ENABLEMENT_SELECTOR`. A pod that any of them selects is meant to be in the mesh.
///
/// # Errors
/// When it is no such list. A field that is not known is an error too: passed over, it could bring every pod in.
///
/// ```
/// use ambient_control::manifests::read_enablement;
///
/// let list = read_enablement("
/// - podSelector: { matchLabels: { istio.io/dataplane-mode: ambient } }
/// - podSelector: { matchExpressions: [{ key: istio.io/dataplane-mode, operator: NotIn, values: [none] }] }
///   namespaceSelector: { matchLabels: { istio.io/dataplane-mode: ambient } }
/// ")?;
/// assert_eq!(list, ambient_control::objects::Selection::default().enablement);
/// assert!(read_enablement("- podSelectors: {}").is_err());
/// # Ok::<(), ambient_control::manifests::EnablementError>(())
/// ```
pub fn read_enablement(text: &str) -> Result<Vec<Enablement>, EnablementError> {
    let list: Vec<Enablement> =
        serde_saphyr::from_str_with_options(text, tree::options()).map_err(|e| EnablementError::Shape(tree::one_line(&e)))?;
    Enablement::check(&list)?;
    Ok(list)
}
