//! What the doctor says of an instance and of the configuration that it is to serve.

use std::net::{IpAddr, SocketAddr};

use bg_userspace::{
    AttachMode, Mode,
    config::Config,
    doctor::{self, Finding, Level},
};

use crate::lab::{Lab, config};

/// Clients behind `v0`, blue behind `b0`, green behind `g0`; a second deployment whose backends are unknown to nobody.
fn edge() -> (Lab, Config) {
    let lab = Lab::new();
    lab.ip("link set lo up");
    for (name, address) in [("b0", "10.0.0.9/24"), ("g0", "10.0.1.9/24")] {
        lab.ip(&format!("link add {name} type veth peer name {name}-peer"));
        lab.ip(&format!("link set {name} up"));
        lab.ip(&format!("link set {name}-peer up"));
        lab.ip(&format!("address add {address} dev {name}"));
    }
    lab.ip("address add 198.51.100.1/24 dev v0");
    lab.ip("route add default via 198.51.100.2");
    let mut both = config("mail", &[(4, 1)], &[(4, 1)]);
    let mut shop = config("shop", &[(1, 1), (2, 1)], &[(1, 1)]);
    shop.deployments[0].services[0].vip.set_port(8443);
    both.deployments.append(&mut shop.deployments);
    (lab, both)
}

fn findings(lab: &Lab, config: &Config) -> Vec<Finding> {
    doctor::examine(&lab.paths, &["lo".to_owned()], Some(config)).unwrap().findings
}

#[track_caller]
fn find<'a>(findings: &'a [Finding], check: &str, part: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check && finding.message.contains(part));
    found.unwrap_or_else(|| panic!("{check} with {part:?} in {findings:#?}"))
}

fn has(findings: &[Finding], check: &str) -> bool {
    findings.iter().any(|finding| finding.check == check)
}

#[test]
fn the_doctor_says_where_it_is_attached_and_which_side_has_nothing() {
    let (lab, config) = edge();
    assert!(!has(&findings(&lab, &config), "attached"), "there is no instance");
    lab.attach("v0", AttachMode::Tc).unwrap();
    let found = findings(&lab, &config);
    assert_eq!(find(&found, "attached", "to v0 (tc)").level, Level::Ok);
    let missing = find(&found, "backends' side", "no attached interface faces the backends");
    assert_eq!(missing.remedy.as_deref(), Some("`bgctl attach b0 g0`"));
    assert!(!has(&found, "clients' side"));

    lab.attach("b0", AttachMode::Tc).unwrap();
    assert!(find(&findings(&lab, &config), "backends' side", "not all").message.contains("g0"));
    lab.attach("g0", AttachMode::Tc).unwrap();
    let found = findings(&lab, &config);
    assert!(!has(&found, "backends' side") && !has(&found, "clients' side"), "{found:#?}");

    lab.ip("link del v0");
    lab.ip("link add v0 type veth peer name v1");
    lab.ip("link set v0 up");
    lab.ip("address add 198.51.100.1/24 dev v0");
    lab.ip("route add default via 198.51.100.2 dev v0 onlink");
    let found = findings(&lab, &config);
    assert_eq!(find(&found, "interface", "v0").level, Level::Fail);
    assert_eq!(find(&found, "clients' side", "v0").remedy.as_deref(), Some("`bgctl attach v0`"));
}

/// The bridge faces the backends, and so does its port.
#[test]
fn a_port_of_a_bridge_faces_what_is_behind_the_bridge() {
    let (lab, config) = edge();
    lab.ip("link add br0 type bridge");
    lab.ip("link set br0 up");
    lab.ip("address del 10.0.0.9/24 dev b0");
    lab.ip("address add 10.0.0.9/24 dev br0");
    lab.ip("link set b0 master br0");
    for interface in ["v0", "g0"] {
        lab.attach(interface, AttachMode::Tc).unwrap();
    }
    assert!(find(&findings(&lab, &config), "backends' side", "not all").message.contains("br0"));
    lab.attach("b0", AttachMode::Tc).unwrap();
    assert!(!has(&findings(&lab, &config), "backends' side"));
}

#[test]
fn an_interface_that_joins_or_leaves_a_bridge_must_be_attached_again() {
    let (lab, config) = edge();
    lab.ip("link add br0 type bridge");
    for interface in ["v0", "b0"] {
        lab.attach(interface, AttachMode::Tc).unwrap();
    }
    for (change, level) in [("master br0", Level::Fail), ("nomaster", Level::Warn)] {
        assert!(!has(&findings(&lab, &config), "bridge"));
        lab.ip(&format!("link set b0 {change}"));
        let found = findings(&lab, &config);
        let told = find(&found, "bridge", "port of a bridge");
        assert_eq!((told.subject.as_str(), told.level), ("b0", level));
        assert_eq!(told.remedy.as_deref(), Some("`bgctl attach b0`"));
        lab.attach("b0", AttachMode::Auto).unwrap();
    }
    assert!(!has(&findings(&lab, &config), "bridge"));
}

#[test]
fn the_doctor_tells_which_neighbours_of_which_colour_are_unknown() {
    let (lab, config) = edge();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.ip("neighbour add 10.0.0.1 lladdr 02:00:00:00:00:01 dev b0 nud permanent");
    lab.ip("neighbour add 10.0.1.1 lladdr 02:00:00:00:00:02 dev g0 nud permanent");
    let found = findings(&lab, &config);
    let of_shop: Vec<_> = found.iter().filter(|it| it.subject == "shop/web" && it.check == "neighbours").collect();
    assert_eq!(of_shop.iter().map(|it| it.level).collect::<Vec<_>>(), [Level::Warn, Level::Ok], "{of_shop:#?}");
    assert!(of_shop[0].message.contains("blue: the MAC address of 10.0.0.2 is not known"), "{of_shop:#?}");
    assert!(of_shop[1].message.starts_with("green"), "{of_shop:#?}");
}

/// The settings of the test's own network namespace.
fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}"), value).unwrap();
}

#[test]
fn clients_and_backends_behind_one_interface_want_no_icmp_redirects() {
    let (lab, config) = edge();
    lab.attach("v0", AttachMode::Tc).unwrap();
    assert!(!has(&findings(&lab, &config), "send_redirects"), "these are behind several");
    lab.ip("route del default");
    lab.ip("route add default via 10.0.0.254");
    lab.attach("b0", AttachMode::Tc).unwrap();
    let found = findings(&lab, &config);
    let warned = find(&found, "send_redirects", "ICMP redirect");
    assert_eq!((warned.subject.as_str(), warned.level), ("b0", Level::Warn));
    for name in ["all/send_redirects", "b0/send_redirects"] {
        set(name, "0");
    }
    assert!(!has(&findings(&lab, &config), "send_redirects"));
}

#[test]
fn loopback_backends_get_packets_only_where_the_kernel_lets_them() {
    let (lab, mut config) = edge();
    let service = &mut config.deployments[1].services[0];
    service.mode = Mode::Local;
    for (backends, octet) in std::iter::zip(&mut service.backends, [1, 2]) {
        backends.truncate(1);
        backends[0].address = SocketAddr::new(IpAddr::from([127, 0, 0, octet]), 8443);
    }
    lab.attach("v0", AttachMode::Tc).unwrap();
    let found = findings(&lab, &config);
    let failed = find(&found, "backends", "127.0.0.1");
    assert!(failed.level == Level::Fail && failed.subject == "shop/web", "{failed:?}");
    assert!(failed.remedy.as_ref().unwrap().contains("net.ipv4.conf.v0.route_localnet=1"), "{failed:?}");
    set("v0/route_localnet", "1");
    let found = findings(&lab, &config);
    assert_eq!(find(&found, "backends", "each backend is an address of this host").level, Level::Ok);
}
