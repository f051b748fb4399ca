//! Addresses: an IP address with a port that packets can be sent to, and prefixes of sources.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::model::Prefix;

/// Understands `ADDRESS:PORT`, or says what was expected.
pub(super) fn endpoint(text: &str) -> Result<SocketAddr, &'static str> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(if text.parse::<Ipv6Addr>().is_ok() || text.parse::<IpAddr>().is_ok() {
            "a port behind the address: \"203.0.113.10:443\" or \"[2001:db8::10]:443\""
        } else {
            "ADDRESS:PORT, \"203.0.113.10:443\" or \"[2001:db8::10]:443\" (names are not looked up)"
        });
    };
    if address.port() == 0 {
        return Err("a port from 1 to 65535");
    }
    match address.ip() {
        ip if ip.is_unspecified() => Err("an address of one host, not the unspecified one"),
        ip if ip.is_multicast() => Err("an address of one host, not a multicast group"),
        IpAddr::V4(ip) if ip.is_broadcast() => Err("an address of one host, not the broadcast address"),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err("an IPv4 address in its own notation, \"203.0.113.10:443\"")
        }
        IpAddr::V6(_) if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) => {
            Err("an address without a zone")
        }
        _ => Ok(address),
    }
}

/// Understands `ADDRESS/LENGTH`, or an address alone for one host; or says what was expected.
pub(super) fn prefix(text: &str) -> Result<Prefix, &'static str> {
    const SYNTAX: &str = "ADDRESS/LENGTH, \"198.51.100.0/24\" or \"2001:db8:7::/48\"";
    let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
    let addr: IpAddr = addr.parse().map_err(|_| SYNTAX)?;
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => width,
        Some(digits) if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) => return Err(SYNTAX),
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|len| *len <= width)
            .ok_or("a prefix length of at most 32 (IPv4) or 128 (IPv6)")?,
    };
    let has_host_bits = match addr {
        IpAddr::V4(ip) => ip.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
        IpAddr::V6(ip) => ip.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
    };
    if has_host_bits {
        return Err("zeros behind the prefix length, as in \"198.51.100.0/24\"");
    }
    Ok(Prefix { addr, len })
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
}
