//! The roots of each trust domain, as an agent tells them. Pure.

use std::{collections::BTreeMap, sync::Arc};

use ambient_core::{TrustBundles, TrustDomain};

use super::svid;

#[cfg(test)]
mod tests;

/// What is known of the roots.
///
/// An update is whole: a domain that it does not name is not trusted any more. Two things are believed of no update: that the
/// own domain has no roots, and a bundle that cannot be read. Then what was known of the domain stays, and the fault is told.
pub(super) struct Bundles {
    own: Option<TrustDomain>,
    known: BTreeMap<TrustDomain, Vec<Vec<u8>>>,
    present: Arc<TrustBundles>,
}

/// Bundles as they come, and the CRLs of the own domain.
#[derive(Default)]
pub(super) struct Told {
    /// By trust domain; one that stands here twice has the roots of both.
    pub(super) bundles: Vec<(String, Vec<u8>)>,
    pub(super) crls: Vec<Vec<u8>>,
}

/// What an update did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Updated {
    /// Whether others are trusted now.
    pub(super) changed: bool,
    /// What of it is not believed.
    pub(super) faults: Vec<String>,
}

impl Bundles {
    /// Nothing is known. The own domain is the one whose roots are never given up; `None` if it is not known yet.
    pub(super) fn new(own: Option<TrustDomain>) -> Self {
        Self {
            own,
            known: BTreeMap::new(),
            present: Arc::default(),
        }
    }

    /// What an earlier process was told, until an update says otherwise.
    pub(super) fn recall(&mut self, bundles: TrustBundles) {
        for domain in bundles.domains().take(MOST_DOMAINS) {
            self.known.insert(domain.clone(), bundles.roots(domain).to_vec());
        }
        self.present = Arc::new(bundles);
    }

    /// What an earlier process was told counts no more.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.present = Arc::default();
    }

    pub(super) fn set_own(&mut self, own: TrustDomain) {
        self.own = Some(own);
    }

    /// What is trusted: the same value for as long as it is the same.
    pub(super) fn present(&self) -> &Arc<TrustBundles> {
        &self.present
    }

    pub(super) fn update(&mut self, told: Told) -> Updated {
        let mut faults = Vec::new();
        let mut new: BTreeMap<TrustDomain, Vec<Vec<u8>>> = BTreeMap::new();
        for (name, bundle) in told.bundles {
            let domain = match svid::domain(&name) {
                Ok(domain) => domain,
                Err(why) => {
                    faults.push(format!("a bundle is not taken: {why}"));
                    continue;
                }
            };
            if !new.contains_key(&domain) && new.len() == MOST_DOMAINS {
                faults.push(format!(
                    "the bundle of {domain} is not taken: {MOST_DOMAINS} trust domains are known at most"
                ));
                continue;
            }
            let roots = svid::roots(&domain, &bundle).unwrap_or_else(|why| {
                faults.push(format!(
                    "the bundle of {domain} cannot be used, and what was known of it stays: {why}"
                ));
                self.known.get(&domain).cloned().unwrap_or_default()
            });
            let of = new.entry(domain).or_default();
            for root in roots {
                if !of.contains(&root) {
                    of.push(root);
                }
            }
        }
        if let Some(own) = &self.own
            && !new.contains_key(own)
        {
            faults.push(format!(
                "the bundle of {own}, this node's own trust domain, is missing, and what was known of it stays: is the trust \
                 domain of SPIRE another one?"
            ));
            let roots = self.known.get(own).cloned().unwrap_or_default();
            new.insert(own.clone(), roots);
        }
        self.known = new;
        let bundles = self.bundles(told.crls);
        let changed = bundles != *self.present;
        if changed {
            self.present = Arc::new(bundles);
        }
        Updated { changed, faults }
    }

    fn bundles(&self, crls: Vec<Vec<u8>>) -> TrustBundles {
        let mut bundles = TrustBundles::default();
        for (domain, roots) in &self.known {
            for root in roots {
                bundles.add(domain.clone(), root.clone());
            }
        }
        if let Some(own) = &self.own {
            for crl in crls {
                bundles.add_crl(own.clone(), crl);
            }
        }
        bundles
    }
}

/// Trust domains at a time, the federated ones included.
const MOST_DOMAINS: usize = 512;
