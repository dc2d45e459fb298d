//! A file in the form of ztunnel's `LOCAL_XDS_PATH`, or the text itself as in `LOCAL_XDS`, as the control plane: workloads,
//! services and policies as they are, with nothing to be made of Kubernetes objects.
//!
//! ```yaml
//! workloads:
//! - uid: c1//Pod/shop/cart-0
//!   name: cart-0
//!   namespace: shop
//!   workloadIps: ["10.1.0.4"]
//!   protocol: HBONE
//!   services: { shop/cart.shop.svc.cluster.local: { 80: 8080 } }
//! services:
//! - { name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: ["/10.96.0.7"], ports: { 80: 0 } }
//! policies:
//! - name: cart-allow
//!   namespace: shop
//!   scope: Namespace
//!   action: Allow
//!   dryRun: false
//!   rules: [[[{ namespaces: [!Exact shop] }]]]
//! ```
//!
//! Texts in policies stand behind a tag, as ztunnel writes them (`!Exact shop`), or in a map (`{Exact: shop}`). Unlike
//! ztunnel's the file is watched: it is looked at every tenth of a second, taken when two looks agree, and told as
//! differences. One that cannot be read leaves its last good content in force; an entry that cannot be read is its own
//! matter: its last good version stays, where there is none it does not count, and a policy refuses its scope.

use std::{fmt, fs, path::PathBuf, sync::Arc};

use ambient_core::TrustDomain;

use crate::{
    Batch, BoxFuture, Fault, Source,
    looks::{self, Batches, Looked},
    manifests::{
        OpenError,
        directory::{self, Sight},
        tree,
    },
    plain,
};

mod read;
#[cfg(test)]
mod tests;
mod told;

use told::Told;

/// Which text, and what it does not say.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it stands.
    pub place: Place,
    /// The trust domain of workloads that name none, and of policies; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// Other names of the trust domain in policies; none by default.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether `cluster.local` in a policy means the trust domain, whatever its name; off by default: the text says what it
    /// means.
    pub cluster_local: bool,
    /// The namespace whose policies hold for the whole mesh; `istio-system` by default.
    pub root_namespace: Arc<str>,
    /// Whether policies are read as ztunnel reads them, also where that lets through more than is written; off by default.
    pub istio_exact: bool,
}

/// Where a text stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file, which is watched.
    File(PathBuf),
    /// Here: this is it, and it does not change.
    Inline(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Inline(_) => f.write_str("LOCAL_XDS"),
        }
    }
}

impl Config {
    /// A file with the defaults of Istio.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::of(Place::File(path.into()))
    }

    /// A text with the defaults of Istio.
    pub fn of(place: Place) -> Self {
        Self {
            place,
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            cluster_local: false,
            root_namespace: "istio-system".into(),
            istio_exact: false,
        }
    }
}

/// The source of changes that such a text is.
///
/// A task of its own looks at the file; it ends when this is dropped.
#[derive(Debug)]
pub struct LocalXds(Batches);

impl LocalXds {
    /// Reads the text, and begins to watch it where it is a file. Must be called within a runtime of
    /// tokio that has time; it panics otherwise.
    ///
    /// # Errors
    /// When there is no such file, when it is neither YAML nor JSON or not of this form, or when it is being written all the
    /// time. An entry that cannot be read is no error here but a fault.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let failed = |what: String| OpenError::File { what };
        let place = config.place.clone();
        let mut file = Watched::new(config);
        let path = match &place {
            Place::File(path) => path,
            Place::Inline(text) => {
                file.read(text.as_bytes());
                return match file.wrong() {
                    Some(wrong) => Err(failed(wrong)),
                    None => Ok(Self(Batches::only(file.first()))),
                };
            }
        };
        let mut looks = looks::looks();
        let mut first = None;
        for _ in 0..looks::OPEN_LOOKS {
            looks.tick().await;
            file = looks::look(file)
                .await
                .ok_or_else(|| failed(format!("{}: the program is ending", path.display())))?;
            if let Some(wrong) = file.wrong() {
                return Err(failed(wrong));
            }
            if file.is_settled() {
                first = Some(file.first());
                break;
            }
        }
        let first = first.ok_or_else(|| OpenError::Unsettled {
            dir: path.parent().map(PathBuf::from).unwrap_or_default(),
            files: path.display().to_string(),
        })?;
        Ok(Self(Batches::after(first, file, looks)))
    }
}

impl Source for LocalXds {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(self.0.next())
    }
}

/// See [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    let mut text = Watched::new(Config::of(Place::Inline(String::new())));
    text.read(data);
    let first = text.news();
    text.read(data);
    if text.error.is_none() {
        let again = text.news();
        assert!(again.is_none(), "{first:?}, then {again:?}");
    }
    text.read(b"workloads: []");
    assert!(text.error.is_none());
    let _ = text.news();
    assert!(!text.told.is_something());
}

/// The file as it was seen last.
struct Watched {
    config: Config,
    seen: Option<Sight>,
    taken: Option<Sight>,
    told: Told,
    /// What is wrong with the whole of it.
    error: Option<String>,
    told_faults: Arc<[Fault]>,
}

impl Watched {
    fn new(config: Config) -> Self {
        Self {
            config,
            seen: None,
            taken: None,
            told: Told::default(),
            error: None,
            told_faults: Arc::new([]),
        }
    }

    fn is_settled(&self) -> bool {
        self.taken.is_some() && self.taken == self.seen
    }

    fn wrong(&self) -> Option<String> {
        Some(format!("{}:{}", self.config.place, self.error.as_ref()?))
    }

    /// What there is at the start, if it is nothing.
    fn first(&mut self) -> Batch {
        let nothing = Batch {
            synced: true,
            ..Batch::default()
        };
        self.news().unwrap_or(nothing)
    }

    /// Reads the text, which has become another.
    fn read(&mut self, content: &[u8]) {
        if content.iter().all(u8::is_ascii_whitespace) && self.told.is_something() {
            self.error = Some(" became empty; write `workloads: []` if nothing is meant".into());
            return;
        }
        let entries = match tree::documents(content) {
            Ok(Ok(documents)) => read::entries(documents, &self.config).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match entries {
            Ok(entries) => {
                self.error = None;
                self.told.take(entries);
            }
            Err(error) => self.error = Some(error),
        }
    }
}

impl Looked for Watched {
    /// Takes the file where this look and the one before saw it alike.
    fn look(&mut self) {
        let Place::File(path) = &self.config.place else { return };
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => {
                self.seen = None;
                self.error = Some(format!(" {error}"));
                return;
            }
        };
        if let Err(error) = plain::is_plain(&meta) {
            self.seen = None;
            self.error = Some(format!(" {error}"));
            return;
        }
        let seen = Sight::of(&meta);
        let agreed = self.seen == seen;
        self.seen = seen;
        if !agreed || self.taken == seen {
            return;
        }
        let (content, read) = match directory::read(path) {
            Ok(read) => read,
            Err(error) => {
                self.error = Some(format!(" {error}"));
                return;
            }
        };
        if read != seen {
            return;
        }
        self.taken = seen;
        self.read(&content);
    }

    fn news(&mut self) -> Option<Batch> {
        let changes = self.told.changes();
        let whole = self.wrong();
        let whole = whole.map(|what| Fault::from(format!("{what}; its last good content stays in force")));
        let place = &self.config.place;
        let entries = self.told.faults().map(|(what, policy)| Fault {
            what: format!("{place}:{what}"),
            policy,
        });
        let faults: Vec<Fault> = whole.into_iter().chain(entries).collect();
        let news = faults != *self.told_faults;
        if news {
            for fault in faults.iter().filter(|fault| !self.told_faults.contains(fault)) {
                tracing::error!("{fault}");
            }
            self.told_faults = faults.into();
        }
        (news || !changes.is_empty()).then(|| Batch {
            changes,
            synced: true,
            faults: self.told_faults.clone(),
            ..Batch::default()
        })
    }
}
