//! The directory of an authority: made once, and never trusted if others could have written it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambient_core::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustix::fs::{FlockOperation, OFlags};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::{OpenError, whole_seconds};

/// The root of an authority.
pub(super) struct Root {
    pub(super) certificate: Vec<u8>,
    pub(super) issuer: rcgen::Issuer<'static, KeyPair>,
    pub(super) not_after: SystemTime,
    pub(super) pem: String,
}

/// Reads the root in a directory, or makes it.
pub(super) fn open(directory: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Root, OpenError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(directory).map_err(io_error("make the directory", directory))?;
    check_directory(directory)?;
    // Held until the end of this function: who comes second finds what the first has made.
    let _lock = lock(directory)?;
    let certificate = directory.join(CERTIFICATE);
    let key = directory.join(KEY);
    // The certificate is written last: a key without one has never signed anything, so a start that was cut short begins
    // again.
    if !certificate.try_exists().map_err(io_error("look for", &certificate))? {
        make(&certificate, &key, trust_domain, now)?;
    }
    load(&certificate, &key, trust_domain, now)
}

fn check_directory(directory: &Path) -> Result<(), OpenError> {
    let meta = fs::symlink_metadata(directory).map_err(io_error("look at", directory))?;
    let refuse = |why: String| {
        Err(OpenError::Unsafe {
            path: directory.into(),
            why,
        })
    };
    if !meta.is_dir() {
        return refuse("is no directory, or a link to one: name the directory itself".into());
    }
    check_owner(directory, &meta)?;
    if meta.mode() & 0o022 != 0 {
        return refuse(format!(
            "others can write here (mode {:04o}), and so could be the authority: chmod go-w, if nobody has",
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}

fn check_owner(path: &Path, meta: &fs::Metadata) -> Result<(), OpenError> {
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() == own {
        return Ok(());
    }
    Err(OpenError::Unsafe {
        path: path.into(),
        why: format!(
            "belongs to the user {}, who could be the authority, and not to {own}: choose a directory of your own",
            meta.uid()
        ),
    })
}

pub(crate) fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(".lock");
    let file = options()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open the lock", &path))?;
    // There is no clock to ask here: a hundred tries, a tenth of a second apart.
    for _ in 0..100 {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => thread::sleep(Duration::from_millis(100)),
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
    }
    Err(OpenError::Locked { path })
}

fn make(certificate: &Path, key: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), OpenError> {
    let crypto = |e: rcgen::Error| OpenError::Crypto { why: e.to_string() };
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "ambient root");
    params.subject_alt_names = vec![SanType::URI(domain_uri(trust_domain).as_str().try_into().map_err(crypto)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = whole_seconds(now - Duration::from_secs(300)).into();
    params.not_after = whole_seconds(now + ROOT_LIFE).into();
    let root = params.self_signed(&pair).map_err(crypto)?;
    write(key, 0o600, Zeroizing::new(pair.serialize_pem()).as_bytes())?;
    write(certificate, 0o644, root.pem().as_bytes())
}

/// Writes a file whole or not at all.
pub(crate) fn write(path: &Path, mode: u32, content: &[u8]) -> Result<(), OpenError> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &draft)(e)),
        _ => {}
    }
    let written = options().create_new(true).mode(mode).open(&draft).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    });
    written.map_err(|e| {
        // A full disk leaves no half of a key behind.
        let _ = fs::remove_file(&draft);
        io_error("write", path)(e)
    })
}

fn load(certificate: &Path, key: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Root, OpenError> {
    let unusable = |path: &Path, why: &str| OpenError::Unusable {
        path: path.into(),
        why: why.into(),
    };
    let meta = fs::symlink_metadata(key).map_err(io_error("look at the key of the root", key))?;
    check_owner(key, &meta)?;
    if meta.mode() & 0o077 != 0 {
        return Err(OpenError::Unsafe {
            path: key.into(),
            why: format!(
                "others can read or write the key (mode {:04o}): chmod 600, if nobody has",
                meta.mode() & 0o7777
            ),
        });
    }
    let pem = read(certificate)?;
    let der =
        CertificateDer::from_pem_slice(&pem).map_err(|e| unusable(certificate, &format!("is not a PEM certificate ({e}); {AGAIN}")))?;
    let root_pem = String::from_utf8_lossy(&pem).into_owned();
    let pem = read(key)?;
    let pair = std::str::from_utf8(&pem)
        .ok()
        .and_then(|pem| KeyPair::from_pem(pem).ok())
        .ok_or_else(|| unusable(key, &format!("is not a PEM private key; {AGAIN}")))?;
    let not_after = check_root(&der, &pair, trust_domain, now).map_err(|why| unusable(certificate, &why))?;
    let issuer = rcgen::Issuer::from_ca_cert_der(&der, pair)
        .map_err(|e| unusable(certificate, &format!("is not a certificate that can issue ({e}); {AGAIN}")))?;
    Ok(Root {
        certificate: der.to_vec(),
        issuer,
        not_after,
        pem: root_pem,
    })
}

/// Checks that a certificate is the root of a key and a trust domain; its end, or what is wrong with it.
fn check_root(der: &CertificateDer<'_>, pair: &KeyPair, trust_domain: &TrustDomain, now: SystemTime) -> Result<SystemTime, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("is not a certificate ({e}); {AGAIN}"))?;
    if !certificate.is_ca() {
        return Err(format!("is not the certificate of an authority; {AGAIN}"));
    }
    if *certificate.public_key().subject_public_key.data != *pair.public_key_raw() {
        return Err(format!("is not the certificate of the key in {KEY}; {AGAIN}"));
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    let uri = domain_uri(trust_domain);
    if !names.is_some_and(|names| names.value.general_names.iter().any(|n| *n == GeneralName::URI(&uri))) {
        return Err(format!(
            "is not a root of the trust domain {trust_domain}: choose another directory, or the trust domain that it was made for"
        ));
    }
    let moment = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let not_before = moment(certificate.validity().not_before.timestamp());
    let not_after = moment(certificate.validity().not_after.timestamp());
    if now < not_before {
        return Err("is not valid yet: look at the machine's clock".into());
    }
    if not_after <= now {
        return Err(format!("is no longer valid; {AGAIN}"));
    }
    Ok(not_after)
}

pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let mut content = Zeroizing::new(Vec::new());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)
        .map_err(io_error("open", path))?;
    file.take(MAX_FILE).read_to_end(&mut content).map_err(io_error("read", path))?;
    Ok(content)
}

fn domain_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(no_follow());
    options
}

/// A link could lead what is written, or trusted, to another place.
fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.into();
    move |source| OpenError::Io { what, path, source }
}

const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root-key.pem";
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A certificate or key is a few hundred bytes.
const MAX_FILE: u64 = 1 << 20;
const AGAIN: &str = "put the right one back, or remove root.pem and root-key.pem while no node runs for new ones";
