//! Single values: texts, addresses, ports, accounts.

use std::{net::IpAddr, sync::Arc};

use ambient_core::{Identity, TrustDomain};
use ipnet::{IpNet, Ipv4Net};

use crate::{ServiceAccount, StringMatch};

/// `*`, `*suffix`, `prefix*` or the text itself, tried in this order.
pub(super) fn string(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

/// Whether a star stands where it is no wildcard: nothing that is compared ever holds one.
pub(super) fn has_literal_star(value: &StringMatch) -> bool {
    match value {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => text.contains('*'),
        StringMatch::Presence => false,
    }
}

/// Why no identity can ever be this principal, if it is a whole one.
pub(super) fn principal_fault(value: &StringMatch) -> Option<String> {
    let StringMatch::Exact(text) = value else { return None };
    let is_identity = format!("spiffe://{text}").parse::<Identity>().is_ok();
    (!is_identity).then(|| format!("no peer is {text:?}: an identity is TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT; it hits nothing"))
}

/// Why no identity can ever be of this trust domain.
pub(super) fn trust_domain_fault(value: &StringMatch) -> Option<String> {
    match value {
        StringMatch::Exact(text) => text.parse::<TrustDomain>().err().map(|error| error.to_string()),
        StringMatch::Prefix(text) | StringMatch::Suffix(text) => text
            .contains(['/', ':'])
            .then(|| format!("{text:?} is no part of a trust domain: that is a name without a scheme")),
        StringMatch::Presence => None,
    }
}

/// A port of 0 to 65535 in decimal.
pub(super) fn port(text: &str) -> Result<u16, String> {
    // Digits alone: `parse` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|_| digits);
    port.ok_or_else(|| format!("{text:?} is not a port: a number of 0 to 65535 is wanted"))
}

/// An address or a CIDR block; bits beyond its length are kept, and masked when compared.
pub(super) fn block(text: &str) -> Result<IpNet, String> {
    let refuse = || format!("{text:?} is neither an IP address nor a CIDR block");
    let Some((address, length)) = text.split_once('/') else {
        return Ok(IpNet::from(text.parse::<IpAddr>().map_err(|_| refuse())?));
    };
    let address: IpAddr = address.parse().map_err(|_| refuse())?;
    let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length = length.parse().ok().filter(|_| plain).ok_or_else(refuse)?;
    IpNet::new(address, length).map_err(|_| refuse())
}

/// A single IPv6 address without its zone, which Go reads and istiod loses; anything else as it is.
pub(super) fn without_zone(text: &str) -> &str {
    match text.split_once('%') {
        Some((address, zone)) if address.contains(':') && !zone.is_empty() && !text.contains('/') => address,
        _ => text,
    }
}

/// The IPv4 block that a block of IPv4-mapped addresses means: peers are compared by their IPv4 addresses.
pub(super) fn canonical(block: IpNet) -> IpNet {
    let v4 = match block {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED => v6
            .addr()
            .to_ipv4_mapped()
            .and_then(|addr| Ipv4Net::new(addr, v6.prefix_len() - MAPPED).ok()),
        _ => None,
    };
    v4.map_or(block, IpNet::V4)
}

/// Length of `::ffff:0:0/96`.
const MAPPED: u8 = 96;

/// `ACCOUNT` of a namespace, or `NAMESPACE/ACCOUNT`.
pub(super) fn account(text: &str, namespace: &Arc<str>) -> ServiceAccount {
    match text.split_once('/') {
        Some((namespace, name)) => ServiceAccount {
            namespace: namespace.into(),
            name: name.into(),
        },
        None => ServiceAccount {
            namespace: namespace.clone(),
            name: text.into(),
        },
    }
}

/// What cannot be the name of an account, though [`account`] takes it.
pub(super) fn account_fault(text: &str, account: &ServiceAccount) -> Option<String> {
    if text.contains('*') {
        Some(format!(
            "{text:?}: service accounts take no wildcards; list them, or use principals"
        ))
    } else if account.namespace.is_empty() || account.name.is_empty() || account.name.contains('/') {
        Some(format!("{text:?} is not a service account: NAMESPACE/ACCOUNT or ACCOUNT is wanted"))
    } else {
        None
    }
}
