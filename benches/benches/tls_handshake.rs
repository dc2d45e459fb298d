//! A full mutual handshake in memory, both ends in one thread: ours beside plain rustls with its own verifiers, the same
//! certificates, suites and groups.
//!
//! After criterion's figures come the ratios to plain rustls: medians and quartiles over rounds in which all ways follow
//! each other. `-- repeat WAY COUNT` does nothing but handshakes, to be counted under a profiler.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ambient_core::{Credential, Identity, TrustBundles, TrustDomain};
use ambient_tls::{Accepted, Configs, Trust, Verifier};
use criterion::Criterion;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};

/// How both ends get their configurations.
struct Way {
    name: &'static str,
    configs: Box<dyn Fn() -> Ends>,
}

struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// What each end remembers its peer by.
    trust: Option<Arc<Trust>>,
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let ways = ways();
    if let Some(at) = args.iter().position(|arg| arg == "repeat") {
        let way = ways.iter().find(|way| way.name == args[at + 1]).expect("a way's name");
        let count: usize = args[at + 2].parse().expect("a number");
        (0..count).for_each(|_| way.shake());
        return;
    }
    let asked = |what: &str| args.iter().any(|arg| arg == what);
    // Criterion's rule: without `--bench`, as `cargo test` starts it, each bench runs once.
    let smoke = !asked("--bench") || asked("--test") || asked("--list");
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .configure_from_args();
    let mut group = criterion.benchmark_group("tls/handshake");
    for way in &ways {
        group.bench_function(way.name, |bencher| bencher.iter(|| way.shake()));
    }
    group.finish();
    criterion.final_summary();
    if !smoke {
        print_ratios(&ways);
    }
}

impl Way {
    /// One handshake, as a tunnel does it: configurations, TLS, and what is kept of the peers.
    fn shake(&self) {
        let ends = (self.configs)();
        let name = ServerName::try_from(NAME).expect("a name");
        let mut client = ClientConnection::new(ends.client, name).expect("a client");
        let mut server = ServerConnection::new(ends.server).expect("a server");
        let mut wire = Vec::with_capacity(8 << 10);
        while client.is_handshaking() || server.is_handshaking() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory");
            }
            let mut left = &wire[..];
            while !left.is_empty() {
                server.read_tls(&mut left).expect("memory");
                server.process_new_packets().expect("a good client");
            }
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory");
            }
            let mut left = &wire[..];
            while !left.is_empty() {
                client.read_tls(&mut left).expect("memory");
                client.process_new_packets().expect("a good server");
            }
        }
        if let Some(trust) = ends.trust {
            for chain in [client.peer_certificates(), server.peer_certificates()] {
                black_box(trust.peer(chain.expect("both have one")).expect("it was verified"));
            }
        }
    }
}

fn ways() -> Vec<Way> {
    let provider = Arc::new(ambient_tls::provider());
    let ca = Ca::new();
    let [cart, stock] = ["cart", "stock"].map(|account| Arc::new(ca.issue(account)));
    let plain = plain(&provider, &ca, &cart, &stock);
    let kept = |name, bundles: TrustBundles| {
        let configs = Configs::new(Arc::clone(&provider));
        let (bundles, cart, stock) = (Arc::new(bundles), Arc::clone(&cart), Arc::clone(&stock));
        let configs = Box::new(move || {
            let trust = configs.trust(&bundles);
            let accepted = Accepted::any_of([stock.identity.clone()]);
            Ends {
                client: configs.client(&cart, &trust, accepted).expect("usable"),
                server: configs.server(&stock, &trust, &Accepted::AnyTrusted).expect("usable"),
                trust: Some(trust),
            }
        });
        Way { name, configs }
    };
    let anew = {
        let (provider, bundles) = (Arc::clone(&provider), ca.bundles(0));
        let (cart, stock) = (Arc::clone(&cart), Arc::clone(&stock));
        let configs = Box::new(move || {
            let trust = || Arc::new(Trust::new(&provider, &bundles));
            let accepted = Accepted::any_of([stock.identity.clone()]);
            Ends {
                client: Verifier::new(&trust(), accepted).client_config(&cart).expect("usable"),
                server: Verifier::new(&trust(), Accepted::AnyTrusted).server_config(&stock).expect("usable"),
                trust: None,
            }
        });
        Way { name: "anew", configs }
    };
    vec![plain, kept("ours", ca.bundles(0)), kept("ours-crl", ca.bundles(10_000)), anew]
}

/// rustls as it comes, its configurations made once, without resumption.
fn plain(provider: &Arc<CryptoProvider>, ca: &Ca, cart: &Credential, stock: &Credential) -> Way {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.root.clone())).expect("a root");
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
    let (chain, key) = proof(stock);
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(verifier.build().expect("a root is there"))
        .with_single_cert(chain, key)
        .expect("a usable key");
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![b"h2".to_vec()];
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
    let (chain, key) = proof(cart);
    let mut client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_webpki_verifier(verifier.build().expect("a root is there"))
        .with_client_auth_cert(chain, key)
        .expect("a usable key");
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    client.alpn_protocols = vec![b"h2".to_vec()];
    let (client, server) = (Arc::new(client), Arc::new(server));
    let configs = Box::new(move || Ends {
        client: Arc::clone(&client),
        server: Arc::clone(&server),
        trust: None,
    });
    Way { name: "plain", configs }
}

fn proof(credential: &Credential) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = credential.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    (chain, PrivatePkcs8KeyDer::from(credential.key.der().to_vec()).into())
}

struct Ca {
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").der().to_vec();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// With the URI that we ask for, and the DNS name that plain rustls does.
    fn issue(&self, account: &str) -> Credential {
        let identity = Identity::new(&TrustDomain::default(), "shop", account).expect("well formed");
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::new([NAME.to_owned()]).expect("a name");
        let uri = identity.as_str().try_into().expect("ASCII");
        params.subject_alt_names.push(SanType::URI(uri));
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Credential {
            identity,
            chain: vec![certificate.der().to_vec()],
            key: Arc::new(key.serialize_der().into()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 34),
        }
    }

    /// The root, and a CRL with so many entries unless that is none.
    fn bundles(&self, revoked: u64) -> TrustBundles {
        let mut bundles = TrustBundles::default();
        bundles.add(TrustDomain::default(), self.root.clone());
        if revoked > 0 {
            let entry = |serial| RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: rcgen::date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2026, 1, 1),
                next_update: rcgen::date_time_ymd(2027, 1, 1),
                crl_number: SerialNumber::from(1_u64),
                issuing_distribution_point: None,
                revoked_certs: (1..=revoked).map(entry).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let crl = params.signed_by(&self.issuer).expect("a CRL");
            bundles.add_crl(TrustDomain::default(), crl.der().to_vec());
        }
        bundles
    }
}

fn print_ratios(ways: &[Way]) {
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (way, times) in ways.iter().zip(&mut times) {
            let start = now();
            (0..EACH).for_each(|_| way.shake());
            times.push(start.elapsed().as_secs_f64() / f64::from(EACH));
        }
    }
    println!("\ntime of a handshake against `plain`, over {ROUNDS} rounds: median (quartiles)");
    for (way, of_way) in ways.iter().zip(&times) {
        let mut ratios: Vec<_> = of_way.iter().zip(&times[0]).map(|(ours, plain)| ours / plain).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |part: usize| ratios[(ratios.len() - 1) * part / 4];
        let mut micros: Vec<_> = of_way.iter().map(|seconds| seconds * 1e6).collect();
        micros.sort_by(f64::total_cmp);
        println!(
            "{:10} {:7.0} µs  {:.3} ({:.3}–{:.3})",
            way.name,
            micros[micros.len() / 2],
            at(2),
            at(1),
            at(3)
        );
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

const NAME: &str = "stock.shop";
const ROUNDS: usize = 41;
const EACH: u32 = 40;
