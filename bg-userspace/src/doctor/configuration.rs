//! Whether this host can do what a configuration asks for: reach each backend, or be it.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use bg_common::{Colour, Mode};

use super::Finding;
use crate::config::{Config, Service};

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for deployment in &config.deployments {
        for service in &deployment.services {
            let subject = format!("{}/{}", deployment.name, service.name);
            let problems: Vec<Finding> = backends(&subject, service).collect();
            if problems.is_empty() {
                let message = match service.mode {
                    Mode::Nat => "there is a route to each",
                    Mode::Local => "each is an address of this host",
                };
                findings.push(Finding::ok(&subject, "backends", message));
            } else {
                findings.extend(problems);
            }
        }
    }
    findings
}

fn backends(subject: &str, service: &Service) -> impl Iterator<Item = Finding> {
    let all = Colour::ALL.into_iter().flat_map(|colour| service.backends(colour));
    all.filter_map(move |backend| {
        let address = backend.address;
        match (service.mode, is_local(address)) {
            (Mode::Nat, true) => Some(Finding::warn(
                subject,
                "backends",
                format!("{address} is an address of this host, where `nat` sends nothing to"),
                "mode = \"local\"",
            )),
            (Mode::Local, false) => Some(Finding::fail(
                subject,
                "backends",
                format!("{address} is no address of this host, as `local` needs"),
                "mode = \"nat\", or add the address to an interface",
            )),
            (Mode::Nat, false) => route(address).err().map(|error| {
                let remedy = "add a route (ip route add)";
                Finding::fail(subject, "backends", format!("no route to {address}: {error}"), remedy)
            }),
            (Mode::Local, true) => None,
        }
    })
}

/// A socket can be bound to addresses of this host only.
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok()
}

/// Connecting a UDP socket sends nothing, but looks the route up.
fn route(address: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    UdpSocket::bind(any)?.connect(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn findings(mode: &str, blue: &str, green: &str) -> Vec<(Level, String)> {
        let text = format!(
            "[[deployments.d.services]]\nname = \"s\"\nvip = \"203.0.113.10:443\"\nprotocol = \"tcp\"\nmode = \"{mode}\"\n\
             blue = [\"{blue}\"]\ngreen = [\"{green}\"]\n"
        );
        let config = crate::config::parse("test".as_ref(), &text).unwrap();
        examine(&config).into_iter().map(|finding| (finding.level, finding.message)).collect()
    }

    #[test]
    fn local_backends_are_addresses_of_this_host() {
        assert_eq!(findings("local", "127.0.0.1:1", "127.0.0.2:1")[0].0, Level::Ok);
        let findings = findings("local", "127.0.0.1:1", "192.0.2.77:1");
        assert_eq!(findings.len(), 1);
        assert!(
            findings[0].0 == Level::Fail && findings[0].1.starts_with("192.0.2.77:1 is no address"),
            "{findings:?}"
        );
    }

    #[test]
    fn nat_backends_are_not() {
        let findings = findings("nat", "127.0.0.1:1", "127.0.0.1:2");
        assert!(findings.iter().all(|(level, _)| *level == Level::Warn) && findings.len() == 2, "{findings:?}");
    }
}
