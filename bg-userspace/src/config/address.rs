//! Parsing addresses with ports, and prefixes of source addresses.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::model::Prefix;

/// Parses `ADDRESS:PORT`, or returns what was expected.
pub(super) fn endpoint(text: &str) -> Result<SocketAddr, Cow<'static, str>> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(Cow::Borrowed(if text.parse::<Ipv6Addr>().is_ok() || text.parse::<IpAddr>().is_ok() {
            "a port after the address: \"203.0.113.10:443\" or \"[2001:db8::10]:443\""
        } else {
            "ADDRESS:PORT, \"203.0.113.10:443\" or \"[2001:db8::10]:443\" (names are not looked up)"
        }));
    };
    endpoint_problem(address).map_or(Ok(address), Err)
}

/// What was expected instead of an address to which no packets can be sent.
pub(crate) fn endpoint_problem(address: SocketAddr) -> Option<Cow<'static, str>> {
    if address.port() == 0 {
        return Some(Cow::Borrowed("a port from 1 to 65535"));
    }
    let expected = match address.ip() {
        ip if ip.is_unspecified() => "an address of one host, not the unspecified one",
        ip if ip.is_multicast() => "an address of one host, not a multicast group",
        IpAddr::V4(ip) if ip.is_broadcast() => "an address of one host, not the broadcast address",
        IpAddr::V6(ip) => {
            if let Some(v4) = ip.to_ipv4_mapped() {
                return Some(format!("an IPv4 address in its own notation, \"{v4}:{}\"", address.port()).into());
            }
            let has_zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            return has_zone.then_some(Cow::Borrowed("an address without a zone"));
        }
        IpAddr::V4(_) => return None,
    };
    Some(Cow::Borrowed(expected))
}

/// Parses `ADDRESS/LENGTH`, or an address without a length for one host. Returns what was expected otherwise.
pub(super) fn prefix(text: &str) -> Result<Prefix, Cow<'static, str>> {
    const SYNTAX: Cow<'static, str> = Cow::Borrowed("ADDRESS/LENGTH, \"198.51.100.0/24\" or \"2001:db8:7::/48\"");
    let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
    let addr: IpAddr = addr.parse().map_err(|_| SYNTAX)?;
    let width = width(addr);
    let len = match len {
        None => width,
        Some(digits) if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) => return Err(SYNTAX),
        // A number that does not fit is too long, too.
        Some(digits) => digits.parse().unwrap_or(u8::MAX),
    };
    let prefix = Prefix { addr, len };
    prefix_problem(prefix).map_or(Ok(prefix), Err)
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        prefix(text).map_err(|expected| format!("expected {expected}"))
    }
}

/// What was expected instead of a prefix that no packet's source can have.
pub(crate) fn prefix_problem(Prefix { addr, len }: Prefix) -> Option<Cow<'static, str>> {
    if len > width(addr) {
        return Some(Cow::Borrowed("a prefix length of at most 32 (IPv4) or 128 (IPv6)"));
    }
    let has_host_bits = match addr {
        IpAddr::V4(ip) => ip.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
        IpAddr::V6(ip) => ip.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
    };
    if has_host_bits {
        return Some(Cow::Borrowed("zeros after the prefix, as in \"198.51.100.0/24\""));
    }
    if let IpAddr::V6(ip) = addr
        && let Some(v4) = ip.to_ipv4_mapped()
    {
        // No packet has such a source, because IPv4 packets have IPv4 addresses.
        let len = len.saturating_sub(96);
        return Some(format!("an IPv4 prefix in its own notation, \"{v4}/{len}\"").into());
    }
    None
}

/// What was expected instead of a prefix from which a host takes source addresses of its own.
pub(crate) fn source_problem(prefix: Prefix) -> Option<Cow<'static, str>> {
    const LEAST: u8 = 8;
    if let Some(problem) = prefix_problem(prefix) {
        return Some(problem);
    }
    let is_of_hosts = match prefix.addr {
        // This network, the loopback, groups and what is reserved.
        IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127 | 224..),
        // Addresses without a prefix, those of a link, and groups.
        IpAddr::V6(ip) => !matches!(ip.segments()[0], 0..=0xff | 0xfe80..=0xfebf | 0xff00..),
    };
    let is_right = is_of_hosts && prefix.len >= LEAST;
    (!is_right).then_some(Cow::Borrowed("addresses that a host can send from, in a prefix of 8 bits at least"))
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_networks_or_hosts() {
        let text = |text| prefix(text).map(|prefix| prefix.to_string());
        assert_eq!(text("198.51.100.0/24").unwrap(), "198.51.100.0/24");
        assert_eq!(text("198.51.100.7").unwrap(), "198.51.100.7/32");
        assert_eq!(text("2001:db8:7::/48").unwrap(), "2001:db8:7::/48");
        assert_eq!(text("::1").unwrap(), "::1/128");
        assert_eq!(text("0.0.0.0/0").unwrap(), "0.0.0.0/0");
        for bad in
            ["198.51.100.7/24", "2001:db8::1/64", "1.2.3.4/33", "::/129", "1.2.3/24", "1.2.3.4/", "1.2.3.4/+8", "host"]
        {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_are_addresses_of_hosts() {
        let is_right = |text: &str| source_problem(text.parse().unwrap()).is_none();
        for good in ["10.0.0.0/8", "10.9.0.1", "198.51.100.0/24", "2001:db8::/32", "fd00::/8", "2000::/8"] {
            assert!(is_right(good), "{good}");
        }
        for bad in
            ["0.0.0.0/0", "::/0", "0.0.0.0/8", "127.0.0.0/8", "127.0.0.1", "224.0.0.0/4", "240.0.0.0/8", "8.0.0.0/7"]
        {
            assert!(!is_right(bad), "{bad}");
        }
        for bad in ["::1", "fe80::/64", "ff02::/16", "2000::/3"] {
            assert!(!is_right(bad), "{bad}");
        }
    }

    #[test]
    fn a_mapped_prefix_is_told_in_its_own_notation() {
        for (text, own) in [
            ("::ffff:198.51.100.0/120", "198.51.100.0/24"),
            ("::ffff:198.51.100.7", "198.51.100.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            let expected = format!("an IPv4 prefix in its own notation, \"{own}\"");
            assert_eq!(prefix(text).unwrap_err(), expected, "{text}");
        }
        assert_eq!(prefix("::/0").unwrap().to_string(), "::/0", "covers others as well");
        assert_eq!(prefix("1.2.3.4/999").unwrap_err(), prefix("1.2.3.4/33").unwrap_err());
    }
}
