//! Checks for a stateful firewall on this host. conntrack sees only those packets of a flow that go by the host's stack, and may take
//! them for invalid. Rules with `notrack` exempt these packets from conntrack.

use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr, process::Command};

use bg_common::{Colour, Mode, Protocol};

use super::Finding;
use crate::config::{Config, protocol_name};

const HOST: &str = "host";
/// The table that the printed rules create.
const TABLE: &str = "table inet bgctl";

/// nftables rules that exempt packets between clients and the backends of a configuration from conntrack. They replace
/// the rules that were printed for an earlier configuration.
///
/// There are no rules for services of mode `local`, because all of their packets, in both directions, are the host's own.
pub fn notrack(config: &Config) -> String {
    let backends = backends(config);
    let mut rules = format!("{TABLE}\ndelete {TABLE}\n{TABLE} {{\n");
    rules += "\tchain prerouting {\n\t\ttype filter hook prerouting priority raw; policy accept;\n";
    for (is_ipv4, family) in [(true, "ip"), (false, "ip6")] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let elements = |with_port: &dyn Fn(IpAddr, u16) -> String| {
                let these = backends.iter().filter(|(address, of, _)| address.is_ipv4() == is_ipv4 && *of == protocol);
                these.map(|(address, _, port)| with_port(*address, *port)).collect::<Vec<_>>().join(", ")
            };
            let set = elements(&|address, port| format!("{address} . {port}"));
            if set.is_empty() {
                continue;
            }
            let name = protocol_name(protocol);
            for (address, port) in [("daddr", "dport"), ("saddr", "sport")] {
                let _ = writeln!(rules, "\t\t{family} {address} . {name} {port} {{ {set} }} notrack");
            }
        }
    }
    rules + "\t}\n}\n"
}

fn backends(config: &Config) -> BTreeSet<(IpAddr, Protocol, u16)> {
    let services = config.deployments.iter().flat_map(|deployment| &deployment.services);
    services
        .filter(|service| service.mode == Mode::Nat)
        .flat_map(|service| {
            let all = Colour::ALL.into_iter().flat_map(|colour| service.backends(colour));
            all.map(|backend| (backend.address.ip(), service.protocol, backend.address.port()))
        })
        .collect()
}

/// Checks the ruleset, if there is one and `nft` can list it.
pub(super) fn examine(config: Option<&Config>) -> Option<Finding> {
    let output =
        Command::new("nft").args(["list", "ruleset"]).output().ok().filter(|output| output.status.success())?;
    judge(&String::from_utf8_lossy(&output.stdout), config)
}

fn judge(ruleset: &str, config: Option<&Config>) -> Option<Finding> {
    const CHECK: &str = "firewall";
    const STATEFUL: [&str; 6] = ["ct state", "ct status", "\"conntrack\"", "masquerade", "dnat ", "snat "];
    let rule = ruleset.lines().find(|line| STATEFUL.iter().any(|word| line.contains(word)))?.trim();
    let ours = ruleset.split_once(TABLE).map_or("", |(_, table)| table.split("\n}").next().unwrap_or(table));
    let listed: BTreeSet<&str> = ours.split([' ', ',', '\n', '\t']).collect();
    let missing = config
        .map(backends)
        .unwrap_or_default()
        .into_iter()
        .find(|(address, ..)| !listed.contains(address.to_string().as_str()));
    let message = match (config, missing) {
        (None, _) if ours.contains("notrack") => return None,
        (Some(_), None) => {
            return Some(Finding::ok(HOST, CHECK, "packets to and from backends are exempt from conntrack"));
        }
        (None, _) => {
            format!("rules use conntrack ({rule}), and a packet that goes by the host's stack may look invalid to them")
        }
        (Some(_), Some((address, ..))) => format!(
            "rules use conntrack ({rule}), also for packets to and from {address}, and a packet that goes by the host's stack \
             may look invalid to them"
        ),
    };
    let remedy = "bgctl doctor -c FILE --notrack | nft -f -, and accept `ct state untracked` if forwarded packets are \
                  dropped by default";
    Some(Finding::warn(HOST, CHECK, message, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn config() -> Config {
        let service = |name: &str, vip: &str, protocol: &str, mode: &str, blue: &str, green: &str| {
            format!(
                "[[deployments.d.services]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"{protocol}\"\n\
                 mode = \"{mode}\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\n"
            )
        };
        let text = service("a", "203.0.113.10:443", "tcp", "nat", "10.0.1.11:8443", "10.0.2.11:8443")
            + &service("b", "203.0.113.10:444", "tcp", "nat", "10.0.1.11:8443", "10.0.2.11:8444")
            + &service("c", "[2001:db8::1]:53", "udp", "nat", "[fd00::1]:53", "[fd00::2]:53")
            + &service("d", "203.0.113.10:80", "tcp", "local", "10.0.3.1:80", "10.0.3.2:80");
        crate::config::parse("test".as_ref(), &text).unwrap()
    }

    #[test]
    fn the_rules_name_each_backend_once_in_both_directions() {
        assert_eq!(
            notrack(&config()),
            "table inet bgctl\ndelete table inet bgctl\ntable inet bgctl {\n\tchain prerouting {\n\
             \t\ttype filter hook prerouting priority raw; policy accept;\n\
             \t\tip daddr . tcp dport { 10.0.1.11 . 8443, 10.0.2.11 . 8443, 10.0.2.11 . 8444 } notrack\n\
             \t\tip saddr . tcp sport { 10.0.1.11 . 8443, 10.0.2.11 . 8443, 10.0.2.11 . 8444 } notrack\n\
             \t\tip6 daddr . udp dport { fd00::1 . 53, fd00::2 . 53 } notrack\n\
             \t\tip6 saddr . udp sport { fd00::1 . 53, fd00::2 . 53 } notrack\n\t}\n}\n"
        );
    }

    #[test]
    fn a_stateful_ruleset_without_these_rules_is_told() {
        let stateful = "table ip f {\n\tchain ch {\n\t\tct state invalid counter packets 0 bytes 0 drop\n\t}\n}\n";
        let level = |ruleset: &str, config: Option<&Config>| judge(ruleset, config).map(|finding| finding.level);
        assert_eq!(level("table ip f {\n\tchain ch {\n\t\ttcp dport 22 accept\n\t}\n}\n", Some(&config())), None);
        assert_eq!(level(stateful, Some(&config())), Some(Level::Warn));
        assert_eq!(level(stateful, None), Some(Level::Warn));
        let both = stateful.to_owned() + &notrack(&config());
        assert_eq!(level(&both, Some(&config())), Some(Level::Ok));
        assert_eq!(level(&both, None), None);
        let outdated = both.replace("10.0.2.11", "10.0.2.99");
        let message = judge(&outdated, Some(&config())).unwrap().message;
        assert!(message.contains("ct state invalid") && message.contains("10.0.2.11"), "{message}");
    }
}
