//! The mesh's choice of cryptography, as a value.

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// aws-lc-rs with the mesh's suites: AES-256-GCM and AES-128-GCM of TLS 1.3, and the groups X25519MLKEM768 (preferred),
/// X25519, P-256 and P-384.
///
/// A value to pass on; nothing is installed for the process.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// The same with the group X25519MLKEM768 alone: nobody is spoken to who does not agree on keys by it, which quantum computers
/// cannot undo.
pub fn post_quantum_provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        ..provider()
    }
}
