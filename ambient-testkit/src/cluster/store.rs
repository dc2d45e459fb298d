//! The directory that stands for the control plane: one file for each object, each replaced whole.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{
    object::{Key, Object},
    yaml,
};

/// The objects in force, and their files.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    objects: BTreeMap<Key, Object>,
}

impl Store {
    /// A store over a directory, which is made if it is missing, with the directory that nodes write their status to.
    pub(crate) fn create(dir: PathBuf) -> io::Result<Self> {
        // Whatever the mask is: nodes refuse a directory that others may write to.
        let mut owned = fs::DirBuilder::new();
        owned.recursive(true).mode(0o755).create(dir.join("status"))?;
        Ok(Self {
            dir,
            objects: BTreeMap::new(),
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn find(&self, key: &Key) -> Option<&Object> {
        self.objects.get(key)
    }

    pub(crate) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Object> {
        self.objects.values().filter(move |object| object.key().kind == kind)
    }

    /// Writes an object: readers see the old file or the new one, never a part.
    pub(crate) fn put(&mut self, object: Object) -> io::Result<()> {
        let name = object.key().file_name();
        // Not a manifest's name: nobody reads it before it is whole.
        let draft = self.dir.join(format!(".{name}.draft"));
        fs::write(&draft, yaml::to_string(object.value()))?;
        fs::rename(&draft, self.dir.join(name))?;
        self.objects.insert(object.key().clone(), object);
        Ok(())
    }

    /// Removes an object; says whether there was one.
    pub(crate) fn remove(&mut self, key: &Key) -> io::Result<bool> {
        if self.objects.remove(key).is_none() {
            return Ok(false);
        }
        fs::remove_file(self.dir.join(key.file_name()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::create(dir.path().join("manifests")).unwrap();
        let object = Object::parse_all("kind: Namespace\nmetadata: {name: a}").unwrap().remove(0);
        let key = object.key().clone();
        store.put(object.clone()).unwrap();
        let text = fs::read_to_string(store.dir().join("namespace.a.yaml")).unwrap();
        assert_eq!(Object::parse_all(&text).unwrap(), [object]);
        assert!(store.remove(&key).unwrap());
        assert!(!store.remove(&key).unwrap());
        let left: Vec<_> = fs::read_dir(store.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["status"]);
    }
}
