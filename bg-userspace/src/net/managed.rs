//! Neighbours that the kernel keeps resolved (`NTF_EXT_MANAGED`, Linux 5.16): the next hops to each backend of both
//! colours. So the idle colour can be reached as soon as it becomes live, even if a backend has come up with another MAC
//! address meanwhile.
//!
//! The data path does not depend on them. It shows the kernel which neighbours are in use, and finds those that are not known. So it is
//! no error if the kernel has no such entries, or has lost them with a carrier. `apply` and `switch` add missing entries, since at
//! boot routes may be added after the apply.
//!
//! The entries have a protocol number that belongs to the instance. Entries of others, including other instances, and permanent entries are
//! not changed.

use std::{collections::HashSet, net::IpAddr, os::unix::ffi::OsStrExt as _};

use super::{
    NetError, NextHop,
    netlink::{self, attribute, attributes, u16_at, u32_at},
    next_hop,
    routes::{NDA_DST, address_of, family, octets},
};
use crate::{Paths, doctor::preconditions::KernelVersion};

// linux/neighbour.h and linux/netlink.h.
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;
const NTF_EXT_MANAGED: u32 = 1;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

/// The range of instances' protocol numbers (`NDA_PROTOCOL`). rt_protos assigns none of them.
const PROTOCOLS: std::ops::Range<u8> = 200..248;

/// The first kernel that keeps neighbours resolved. Older kernels would take the request for one to forget the neighbour.
const MANAGED: KernelVersion = KernelVersion { major: 5, minor: 16 };

/// The index of the loopback interface, which leads to the addresses of the host itself.
const LOOPBACK: u32 = 1;

/// Has the kernel keep the next hops to these addresses resolved, and no others on behalf of this instance. Errors are
/// ignored.
pub(crate) fn keep_neighbours(paths: &Paths, of: impl IntoIterator<Item = IpAddr>) {
    keep(paths, of, Others::Forget);
}

/// The same, but neighbours that are already kept resolved stay.
pub(crate) fn keep_more_neighbours(paths: &Paths, of: impl IntoIterator<Item = IpAddr>) {
    keep(paths, of, Others::Keep);
}

/// What happens to neighbours that are kept resolved for this instance but not in the new list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Forget,
    Keep,
}

fn keep(paths: &Paths, of: impl IntoIterator<Item = IpAddr>, others: Others) {
    if KernelVersion::running().is_ok_and(|(version, _)| version >= MANAGED) {
        let ways = of.into_iter().filter_map(|address| next_hop(address).ok());
        let wanted: HashSet<NextHop> = ways.filter(|way| way.ifindex != LOOPBACK).collect();
        // This fails only in a sandbox without rtnetlink.
        let _ = settle(protocol_of(paths), &wanted, others);
    }
}

/// The number of an instance: the FNV-1a hash of its pin root, which does not change as long as the instance exists.
fn protocol_of(paths: &Paths) -> u8 {
    let pin_root = paths.pin_root.canonicalize().unwrap_or_else(|_| paths.pin_root.clone());
    let mix = |hash: u32, octet: &u8| (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193);
    let hash = pin_root.as_os_str().as_bytes().iter().fold(0x811c_9dc5, mix);
    PROTOCOLS.start + (hash % PROTOCOLS.len() as u32) as u8
}

fn settle(ours_bear: u8, wanted: &HashSet<NextHop>, others: Others) -> Result<(), NetError> {
    let (mut ours, mut not_to_touch) = (HashSet::new(), HashSet::new());
    for neighbour in all()? {
        if neighbour.is_managed && neighbour.protocol == Some(ours_bear) {
            ours.insert(neighbour.hop);
        } else if neighbour.is_managed || neighbour.state & (NUD_PERMANENT | NUD_NOARP) != 0 {
            not_to_touch.insert(neighbour.hop);
        }
    }
    for hop in ours.difference(wanted).filter(|_| others == Others::Forget) {
        // If it is already gone, all is well.
        let _ = netlink::change(libc::RTM_DELNEIGH, 0, &message(*hop));
    }
    for hop in wanted.iter().filter(|hop| !ours.contains(hop) && !not_to_touch.contains(hop)) {
        let mut message = message(*hop);
        message.extend(attribute(NDA_PROTOCOL, &[ours_bear]));
        message.extend(attribute(NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes()));
        // An interface that is down, or has no neighbours, refuses this.
        let _ = netlink::change(libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &message);
    }
    Ok(())
}

/// An entry of the kernel's neighbour tables.
struct Neighbour {
    hop: NextHop,
    state: u16,
    is_managed: bool,
    protocol: Option<u8>,
}

/// All neighbours that the kernel knows, of both families.
fn all() -> Result<Vec<Neighbour>, NetError> {
    let mut all = Vec::new();
    netlink::dump(libc::RTM_GETNEIGH, &[0; 12], |payload| all.extend(neighbour_of(payload)))?;
    Ok(all)
}

fn neighbour_of(payload: &[u8]) -> Option<Neighbour> {
    // struct ndmsg: family, index, state, flags, type.
    let (ifindex, state) = (u32_at(payload, 4)?, u16_at(payload, 8)?);
    let (mut address, mut is_managed, mut protocol) = (None, false, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            NDA_DST => address = address_of(value),
            NDA_PROTOCOL => protocol = value.first().copied(),
            NDA_FLAGS_EXT => is_managed = u32_at(value, 0)? & NTF_EXT_MANAGED != 0,
            _ => {}
        }
    }
    Some(Neighbour { hop: NextHop { ifindex, address: address? }, state, is_managed, protocol })
}

fn message(hop: NextHop) -> Vec<u8> {
    let mut message = vec![0; 12];
    message[0] = family(hop.address);
    message[4..8].copy_from_slice(&hop.ifindex.to_ne_bytes());
    message.extend(attribute(NDA_DST, &octets(hop.address)));
    message
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn ip(words: &str) -> String {
        let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is installed");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn neighbours_of_backends_are_kept_and_those_of_others_left_alone() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test makes a network namespace, run it as root");
            return;
        }
        // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        ip("address add 192.0.2.1/24 dev v0");
        ip("address add 2001:db8::1/64 dev v0 nodad");
        ip("route add 198.51.100.0/24 via 192.0.2.9");
        ip("neighbour add 192.0.2.66 dev v0 managed");
        ip("neighbour add 192.0.2.77 dev v0 lladdr 02:00:00:00:00:77 nud permanent");
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let of_root = |name: &str| Paths { pin_root: format!("/sys/fs/bpf/{name}").into(), ..Paths::default() };
        let (paths, other) = (of_root("first"), of_root("second"));
        assert_ne!(protocol_of(&paths), protocol_of(&other));
        let ours_of = |paths: &Paths| {
            let protocol = Some(protocol_of(paths));
            let ours = all().unwrap().into_iter().filter(|neighbour| neighbour.protocol == protocol);
            let mut addresses: Vec<IpAddr> = ours.map(|neighbour| neighbour.hop.address).collect();
            addresses.sort();
            addresses
        };
        let ours = || ours_of(&paths);
        keep_neighbours(&other, [address("192.0.2.44"), address("192.0.2.45")]);

        let backends =
            ["192.0.2.5", "198.51.100.7", "198.51.100.8", "2001:db8::5", "192.0.2.66", "192.0.2.77", "192.0.2.1"];
        keep_neighbours(&paths, backends.map(address));
        assert_eq!(ours(), ["192.0.2.5", "192.0.2.9", "2001:db8::5"].map(address));
        assert!(ip("neighbour show 192.0.2.5").contains("managed"));
        keep_neighbours(&paths, [address("192.0.2.5"), address("192.0.2.6")]);
        assert_eq!(ours(), ["192.0.2.5", "192.0.2.6"].map(address));
        keep_more_neighbours(&paths, ["192.0.2.7", "192.0.2.6"].map(address));
        assert_eq!(ours(), ["192.0.2.5", "192.0.2.6", "192.0.2.7"].map(address));
        keep_neighbours(&paths, []);
        assert_eq!(ours(), [] as [IpAddr; 0]);
        assert_eq!(ours_of(&other), ["192.0.2.44", "192.0.2.45"].map(address), "another instance keeps its own");
        assert!(ip("neighbour show 192.0.2.66").contains("managed"));
        assert!(ip("neighbour show 192.0.2.77").contains("PERMANENT"));
    }
}
