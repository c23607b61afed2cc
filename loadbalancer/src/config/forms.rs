//! Strings that several tables take: names, addresses, ranges of ports.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::schema::value::{At, Rejection};
use super::schema::walk::Section;

/// Longest name of an interface (IFNAMSIZ without the final zero).
const MAX_INTERFACE: usize = 15;

/// Tells a name that cannot be one of a service, a server, a channel or a class.
pub(super) fn check_name(section: &Section<'_, '_>, name: &At<String>, of: &str) {
    let right = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=63).contains(&name.value.len()) || !name.value.chars().all(right) {
        let help = "use 1 to 63 letters, digits, `.`, `_` or `-`";
        section.error(name.span.clone(), format!("`{}` is no name of a {of}", name.value), help);
    }
}

pub(super) fn interface(text: &str) -> Result<String, Rejection> {
    let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
    if text.is_empty() || text.len() > MAX_INTERFACE || text.contains(bad) {
        let help = format!("use a name that `ip link` shows, of 1 to {MAX_INTERFACE} bytes");
        return Err((format!("`{text}` is no name of an interface"), help));
    }
    Ok(text.to_owned())
}

/// Any string.
pub(super) fn any(text: &str) -> Result<String, Rejection> {
    Ok(text.to_owned())
}

/// An address of the gateway.
pub(super) fn gateway_address(text: &str) -> Result<IpAddr, Rejection> {
    text.parse().ok().filter(|addr| is_usable(*addr)).ok_or_else(|| {
        let help = "give an address of the gateway, such as \"10.0.0.1\"".to_owned();
        (format!("`{text}` is no address of a host"), help)
    })
}

/// Whether a host may have the address.
pub(super) fn is_usable(addr: IpAddr) -> bool {
    let special = match addr {
        IpAddr::V4(addr) => addr.is_broadcast() || addr.is_link_local() || addr.octets()[0] == 0,
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some(),
    };
    !special && !addr.is_unspecified() && !addr.is_multicast() && !addr.is_loopback()
}

/// Those before which there is another one of the same family.
pub(super) fn repeated_families(addresses: &[At<IpAddr>]) -> impl Iterator<Item = &At<IpAddr>> {
    addresses.iter().enumerate().filter_map(|(position, at)| {
        let same_family = |other: &At<IpAddr>| other.value.is_ipv4() == at.value.is_ipv4();
        addresses[..position].iter().any(same_family).then_some(at)
    })
}

/// At least so many ports, as in `10000-32767`; `rule` says what else is wrong.
pub(super) fn ports(text: &str, fewest: u16, rule: &'static str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once('-').ok_or("it is no range")?;
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first >= 1024 && last >= first && last - first >= fewest - 1 => Ok(first..=last),
        _ => Err(rule),
    }
}

/// The value of a key is wrong; this one would be right.
pub(super) fn write_as(key: &str, example: &str, error: impl std::fmt::Display) -> Rejection {
    (format!("`{key}`: {error}"), format!("write it as in {key} = {example:?}"))
}
