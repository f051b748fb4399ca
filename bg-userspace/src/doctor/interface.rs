//! Checks of one interface: in which mode to attach to it, and what stands in the way.

use std::fs;

use super::{Finding, drivers};
use crate::{
    attach::{OtherProgram, PinnedLink},
    net::{ARPHRD_ETHER, ARPHRD_LOOPBACK, Interface},
};

/// The largest MTU that most drivers accept in native mode without fragments: a page, less headroom and tailroom.
const LARGEST_NATIVE_MTU: u32 = 3498;

/// `links` are the links of the instance, `others` the programs of others on the interface.
pub(super) fn examine(interface: &Interface, links: &[PinnedLink], others: &[OtherProgram]) -> Vec<Finding> {
    let name = interface.name.as_str();
    if !matches!(interface.arphrd, ARPHRD_ETHER | ARPHRD_LOOPBACK) {
        let message = format!("does not carry Ethernet frames (ARPHRD {}), so it cannot be attached", interface.arphrd);
        return vec![Finding::warn(name, "type", message, "attach to the Ethernet interface below it")];
    }
    let native = !interface.is_virtual() && interface.driver.as_deref().is_some_and(drivers::has_native_xdp);
    let mut findings = vec![mode(interface, native)];
    if native && interface.mtu > LARGEST_NATIVE_MTU {
        let message = format!("{}: most drivers refuse native XDP above about {LARGEST_NATIVE_MTU}", interface.mtu);
        findings.push(Finding::warn(
            name,
            "mtu",
            message,
            format!("use a smaller MTU (ip link set dev {name} mtu 1500), or --mode tc"),
        ));
    }
    if interface.large_receive_offload {
        let message = "LRO is on, so packets arrive merged, which XDP must not see";
        findings.push(Finding::warn(name, "lro", message, format!("ethtool -K {name} lro off")));
    }
    if !interface.up {
        findings.push(Finding::warn(name, "link", "is down", format!("ip link set dev {name} up")));
    }
    findings.extend(programs(interface, links, others));
    findings.extend(reverse_path(name));
    findings
}

fn mode(interface: &Interface, native: bool) -> Finding {
    let name = interface.name.as_str();
    let driver = interface.driver.as_deref().unwrap_or("unknown");
    match &interface.kind {
        Some(kind) => Finding::ok(
            name,
            "mode",
            format!(
                "tc, because it is virtual ({kind}): its packets may have unfinished checksums, which XDP cannot detect"
            ),
        ),
        None if interface.arphrd == ARPHRD_LOOPBACK => {
            Finding::ok(name, "mode", "tc, because it is the loopback interface")
        }
        None if native => Finding::ok(name, "mode", format!("native XDP, which the driver ({driver}) supports")),
        None => Finding::warn(
            name,
            "mode",
            format!("the driver ({driver}) is not known to support native XDP; --mode auto tries it, then uses tc"),
            "use a NIC with native XDP for full speed",
        ),
    }
}

fn programs(interface: &Interface, links: &[PinnedLink], others: &[OtherProgram]) -> Vec<Finding> {
    let name = interface.name.as_str();
    let ours: Vec<_> = links.iter().filter(|link| link.is_on(interface)).collect();
    let mut findings = Vec::new();
    for attachment in &interface.xdp {
        let (mode, id) = (attachment.mode.name(), attachment.program_id);
        if ours.iter().any(|link| link.hook.is_xdp() && link.program_id() == Some(id)) {
            findings.push(Finding::ok(name, "xdp", format!("carries this instance's program (id {id}, {mode})")));
        }
    }
    for other in others {
        let check = if other.is_xdp() { "xdp" } else { "tc" };
        let removal = other.removal(name);
        if other.in_front && !ours.is_empty() {
            let remedy = format!("have its owner attach it behind bgctl, or remove it ({removal})");
            findings.push(Finding::warn(name, check, other.warning(name), remedy));
        } else if other.bgctl {
            let message = format!("carries the {other}");
            let remedy = format!("use its --pin-root, or remove it ({removal}) if its pins are lost");
            findings.push(Finding::warn(name, check, message, remedy));
        } else if other.is_xdp() {
            let message = format!("carries the {other}, which does not belong to bgctl");
            findings.push(Finding::warn(
                name,
                check,
                message,
                format!("remove it ({removal}) if nobody needs it, or use --mode tc"),
            ));
        } else if ours.is_empty() {
            let message = format!("carries the {other}, which does not belong to bgctl and would run before it");
            findings.push(Finding::warn(name, check, message, "make sure that it passes on packets for a VIP"));
        }
    }
    findings
}

/// Strict reverse path filtering drops packets that arrive on another path than their replies would take. This concerns packets
/// that the data path passes to the host's stack because it knows no next hop, and all packets of a `local` service.
fn reverse_path(name: &str) -> Option<Finding> {
    let setting = |name: &str| -> Option<u8> {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).ok()?.trim().parse().ok()
    };
    // The kernel takes the larger of both.
    let strict = setting(name)?.max(setting("all")?) == 1;
    strict.then(|| {
        Finding::warn(
            name,
            "rp_filter",
            "strict, so the host's stack drops packets that arrive on another path than their replies take",
            format!("if paths are asymmetric: sysctl -w {}=2", sysctl(name, "rp_filter")),
        )
    })
}

/// The name of an interface's IPv4 setting in sysctl(8), where a dot separates directories and a slash stands for a dot.
pub(super) fn sysctl(interface: &str, setting: &str) -> String {
    format!("net.ipv4.conf.{}.{setting}", interface.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn nic() -> Interface {
        Interface {
            name: "no-such-nic".into(),
            index: 7,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 1]),
            arphrd: ARPHRD_ETHER,
            up: true,
            driver: Some("ixgbe".into()),
            ..Interface::default()
        }
    }

    fn levels(interface: &Interface) -> Vec<(&'static str, Level)> {
        examine(interface, &[], &[]).iter().map(|finding| (finding.check, finding.level)).collect()
    }

    #[test]
    fn a_nic_with_native_xdp_has_nothing_to_mend() {
        assert_eq!(levels(&nic()), [("mode", Level::Ok)]);
    }

    #[test]
    fn what_is_in_the_way_of_native_xdp_is_told() {
        let interface = Interface { mtu: 9000, large_receive_offload: true, up: false, ..nic() };
        let warn = |check| (check, Level::Warn);
        assert_eq!(levels(&interface), [("mode", Level::Ok), warn("mtu"), warn("lro"), warn("link")]);
        assert_eq!(levels(&Interface { driver: Some("e1000e".into()), ..nic() }), [warn("mode")]);
        assert_eq!(levels(&Interface { arphrd: 65534, kind: Some("tun".into()), ..nic() }), [warn("type")]);
    }

    #[test]
    fn a_vlan_s_settings_are_named_as_sysctl_takes_them() {
        assert_eq!(sysctl("eth0.100", "rp_filter"), "net.ipv4.conf.eth0/100.rp_filter");
    }

    #[test]
    fn tc_is_right_for_what_is_virtual() {
        let veth = Interface { kind: Some("veth".into()), mtu: 65_535, driver: Some("veth".into()), ..nic() };
        let findings = examine(&veth, &[], &[]);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].message.starts_with("tc, because it is virtual (veth)"));
    }
}
