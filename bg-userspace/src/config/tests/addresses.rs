//! Addresses that are refused, and backends that several have.

use std::path::Path;

use super::{GOOD, problems, problems_with, refused};
use crate::config::{parse, shared_backends};

#[test]
fn duplicate_addresses() {
    let vip = "duplicate VIP 203.0.113.10:443/tcp, first at 9:7; expected each once among all VIPs and preview addresses of the file";
    let again = format!(
        "{GOOD}\n[[deployments.other.services]]\nvip = \"203.0.113.10:443\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [\"10.0.0.1:1\"]\ngreen = [\"10.0.0.2:1\"]\n"
    );
    let place = "deployment \"other\", service \"203.0.113.10:443\"";
    assert_eq!(problems(&again), [format!("bgctl.toml:24:7: {place}: {vip}")]);
    assert_eq!(
        problems(&again.replace(
            "vip = \"203.0.113.10:443\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [\"10.0.0",
            "vip = \"203.0.113.10:443\"\nprotocol = \"udp\"\nmode = \"nat\"\nblue = [\"10.0.0"
        )),
        Vec::<String>::new(),
        "another protocol is another VIP"
    );
    refused(
        "preview = \"203.0.113.10:9443\"",
        "preview = \"203.0.113.10:443\"",
        "14:11: deployment \"shop\", service \"web\": duplicate preview address 203.0.113.10:443/tcp, first at 9:7; \
         expected each once among all VIPs and preview addresses of the file",
    );
}

#[test]
fn duplicate_names_and_backends() {
    refused(
        "vip = \"[2001",
        "name = \"web\"\nvip = \"[2001",
        "17:8: deployment \"shop\": duplicate service name \"web\", first at 8:8; expected each once in a deployment",
    );
    refused(
        "\"10.0.1.12:8443\"",
        "\"10.0.1.11:8443\"",
        "12:28: deployment \"shop\", service \"web\": duplicate backend 10.0.1.11:8443, first at 12:10; expected each once in a colour",
    );
    refused(
        "\"2001:db8:7::/48\"",
        "\"198.51.100.0/24\"",
        "5:31: deployment \"shop\": duplicate tester 198.51.100.0/24, first at 5:12; expected each once",
    );
    let twice =
        problems_with("[[deployments.shop.services]]\nname", "[deployments.shop]\n[[deployments.shop.services]]\nname");
    assert!(twice[0].starts_with("bgctl.toml:7:14: not TOML: duplicate key"), "{twice:?}");
}

#[test]
fn empty_colours() {
    let empty =
        "deployment \"shop\", service \"web\": green is empty, expected at least one backend with a weight above 0";
    refused("[\"10.0.2.11:8443\"]", "[]", &format!("13:9: {empty}"));
    refused(
        "[\"10.0.2.11:8443\"]",
        "[{ address = \"10.0.2.11:8443\", weight = 0 }]",
        "13:9: deployment \"shop\", service \"web\": all backends of green have weight 0, so no new flow could go there; \
         expected at least one with a weight above 0",
    );
    refused(
        "weight = 2",
        "weight = -1",
        "12:67: deployment \"shop\", service \"web\": weight -1 is out of range, expected 0 to 65535",
    );
    refused(
        "weight = 2",
        "weight = \"2\"",
        "12:67: deployment \"shop\", service \"web\": \"weight\" is a string, expected an integer",
    );
}

#[test]
fn bad_addresses() {
    let vip = |text: &str, expected: &str| {
        let problem = format!("9:7: deployment \"shop\", service \"web\": bad VIP \"{text}\", expected {expected}");
        refused("\"203.0.113.10:443\"", &format!("\"{text}\""), &problem);
    };
    vip("203.0.113.10:0", "a port from 1 to 65535");
    vip("203.0.113.10", "a port after the address: \"203.0.113.10:443\" or \"[2001:db8::10]:443\"");
    vip("2001:db8::10", "a port after the address: \"203.0.113.10:443\" or \"[2001:db8::10]:443\"");
    for text in ["203.0.113.256:443", "web.example:443", "203.0.113.10:65536", "[2001:db8::10:443", ""] {
        vip(text, "ADDRESS:PORT, \"203.0.113.10:443\" or \"[2001:db8::10]:443\" (names are not looked up)");
    }
    vip("0.0.0.0:443", "an address of one host, not the unspecified one");
    vip("[::]:443", "an address of one host, not the unspecified one");
    vip("224.0.0.1:443", "an address of one host, not a multicast group");
    vip("[ff02::1]:443", "an address of one host, not a multicast group");
    vip("255.255.255.255:443", "an address of one host, not the broadcast address");
    vip("[::ffff:1.2.3.4]:443", "an IPv4 address in its own notation, \"1.2.3.4:443\"");
    vip("[fe80::1%2]:443", "an address without a zone");
    refused(
        "\"10.0.2.11:8443\"",
        "\"10.0.2.11:0\"",
        "13:10: deployment \"shop\", service \"web\": bad backend \"10.0.2.11:0\", expected a port from 1 to 65535",
    );
    refused(
        "198.51.100.0/24",
        "198.51.100.7/24",
        "5:12: deployment \"shop\": bad tester \"198.51.100.7/24\", expected zeros after the prefix, as in \"198.51.100.0/24\"",
    );
    refused(
        "2001:db8:7::/48",
        "::ffff:198.51.100.0/120",
        "5:31: deployment \"shop\": bad tester \"::ffff:198.51.100.0/120\", expected an IPv4 prefix in its own notation, \
         \"198.51.100.0/24\"",
    );
    refused(
        "\"10.0.2.11:8443\"",
        "8443",
        "13:10: deployment \"shop\", service \"web\": \"green\" is an integer, \
         expected \"ADDRESS:PORT\" or { address = \"ADDRESS:PORT\", weight = 2 }",
    );
}

#[test]
fn mixed_families() {
    refused(
        "\"10.0.2.11:8443\"",
        "\"[2001:db8::9]:8443\"",
        "13:10: deployment \"shop\", service \"web\": backend [2001:db8::9]:8443 and VIP 203.0.113.10:443 are of different \
         families, expected IPv4 for all of a service",
    );
    refused(
        "\"203.0.113.10:9443\"",
        "\"[2001:db8::9]:9443\"",
        "14:11: deployment \"shop\", service \"web\": preview address [2001:db8::9]:9443 and VIP 203.0.113.10:443 are of \
         different families, expected IPv4 for all of a service",
    );
}

#[test]
fn a_backend_is_the_address_of_a_server() {
    refused(
        "\"10.0.2.11:8443\"",
        "\"203.0.113.10:443\"",
        "13:10: deployment \"shop\", service \"web\": backend 203.0.113.10:443 is the service's own VIP: its packets would go \
         in a circle; expected another address or port",
    );
    refused(
        "\"10.0.2.11:8443\"",
        "\"203.0.113.10:9443\"",
        "13:10: deployment \"shop\", service \"web\": backend 203.0.113.10:9443 is the service's own preview address: its \
         packets would go in a circle; expected another address or port",
    );
    assert_eq!(problems_with("\"[2001:db8:1::1]:53\"", "\"[2001:db8::10]:54\""), Vec::<String>::new(), "no VIP");
    // Before and behind the service whose address it is, in the same deployment and in another one.
    let service = |deployment: &str, protocol: &str, vip: &str, backend: &str| {
        format!(
            "[[deployments.{deployment}.services]]\nvip = \"{vip}\"\nprotocol = \"{protocol}\"\nmode = \"nat\"\nblue = \
             [\"10.0.0.1:1\", \"{backend}\"]\ngreen = [\"10.0.0.2:1\"]\n"
        )
    };
    let why = "a packet is rewritten only once, so it would never be answered; expected the address of a server";
    let front = service("front", "tcp", "203.0.113.9:80", "203.0.113.10:443");
    let own = "deployment \"front\", service \"203.0.113.9:80\": backend 203.0.113.10:443 is the VIP at 15:7";
    assert_eq!(problems(&format!("{front}{GOOD}")), [format!("bgctl.toml:5:23: {own}: {why}")]);
    let back = service("shop", "tcp", "203.0.113.9:80", "203.0.113.10:9443");
    let own =
        "deployment \"shop\", service \"203.0.113.9:80\": backend 203.0.113.10:9443 is the preview address at 14:11";
    assert_eq!(problems(&format!("{GOOD}{back}")), [format!("bgctl.toml:26:23: {own}: {why}")]);
    let udp = service("front", "udp", "203.0.113.9:80", "203.0.113.10:443");
    assert_eq!(problems(&format!("{GOOD}{udp}")), Vec::<String>::new(), "another protocol is another address");
}

#[test]
fn a_backend_of_several_services_is_told_of() {
    let config = |text: &str| parse(Path::new("bgctl.toml"), text).unwrap();
    assert_eq!(shared_backends(&config(GOOD)), []);
    let again =
        GOOD.replace(".shop", ".other").replace("203.0.113.10", "203.0.113.11").replace("2001:db8::10", "2001:db8::11");
    let shared = shared_backends(&config(&format!("{GOOD}{}", again.replace("10.0.2.11", "10.0.2.12"))));
    assert_eq!(shared.len(), 5, "{shared:?}");
    let text = shared[0].to_string();
    assert!(text.starts_with("backend 10.0.1.11:8443/tcp is in 2 services (other/web, shop/web): "), "{text}");
}
