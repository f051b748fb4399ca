//! The interfaces of the caller's network namespace, read by rtnetlink.
//!
//! They are not read from /sys, because what is mounted there may belong to another namespace.

mod connect;
#[cfg(feature = "serve")]
mod device;
mod error;
mod ethtool;
mod filters;
mod managed;
mod namespace;
mod netlink;
mod routes;

pub(crate) use connect::{Connected, Patience, connect_to_all};
#[cfg(feature = "serve")]
pub(crate) use device::{Tun, index_of};
pub use error::NetError;
pub(crate) use filters::{Filter, filters};
pub(crate) use managed::{keep_more_neighbours, keep_neighbours};
pub(crate) use namespace::{Namespace, namespace_cookie};
use netlink::{attributes, text, u16_at, u32_at};
pub(crate) use routes::{Address, NeighbourState, NextHop, addresses, is_local, mtu, neighbour, next_hop, route_mtu};
#[cfg(feature = "serve")]
pub(crate) use routes::{has_route_of_its_own, way};

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// Its alternative names.
    pub alternative_names: Vec<String>,
    /// Its ifindex.
    pub index: u32,
    /// The largest IP packet in bytes.
    pub mtu: u32,
    /// Its link-layer address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// `ARPHRD_*`: 1 is Ethernet, 772 loopback, 65534 none (an IP tunnel).
    pub arphrd: u16,
    /// `veth`, `bridge`, `tun`, `macvlan`, ...; `None` for hardware and for virtio.
    pub kind: Option<String>,
    /// The index of the bridge or bond of which it is a port.
    pub master: Option<u32>,
    /// The index of the interface below it: for a VLAN, its trunk.
    pub lower: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its XDP programs, at most one per mode.
    pub xdp: Vec<XdpAttachment>,
    /// The driver's name, if it has one.
    pub driver: Option<String>,
    /// Whether the hardware merges packets before XDP sees them.
    pub large_receive_offload: bool,
}

// linux/if_link.h, in IFLA_XDP.
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

/// Index of the loopback interface, the same in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// `ARPHRD_ETHER`.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`.
pub const ARPHRD_LOOPBACK: u16 = 772;

impl Interface {
    /// Whether it is virtual, so that packets may come from a stack of the same machine, with
    /// unfinished checksums or not yet segmented.
    pub fn is_virtual(&self) -> bool {
        self.kind.is_some() || self.arphrd != ARPHRD_ETHER
    }

    /// Whether this is one of its names.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alternative_names.iter().any(|other| other == name)
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// The mode in which it is attached.
    pub mode: XdpMode,
    /// The id of the program in the kernel.
    pub program_id: u32,
}

/// The mode in which an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the network stack, on any interface.
    Generic,
    /// On the card.
    Hardware,
}

impl XdpMode {
    /// Its name in bgctl.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
        }
    }
}

/// All interfaces of the caller's network namespace, by index.
pub fn interfaces() -> Result<Vec<Interface>, NetError> {
    let mut interfaces = Vec::new();
    netlink::dump(libc::RTM_GETLINK, &[0; 16], |payload| interfaces.extend(interface_of(payload)))?;
    interfaces.sort_by_key(|interface: &Interface| interface.index);
    // These are only hints. Without a response, or in a sandbox without the socket, an interface has no driver.
    if let Ok(ethtool) = ethtool::Ethtool::open() {
        for interface in &mut interfaces {
            interface.driver = ethtool.driver(&interface.name).ok();
            interface.large_receive_offload = ethtool.large_receive_offload(&interface.name).unwrap_or(false);
        }
    }
    Ok(interfaces)
}

/// The interface of this name, or of this alternative name, in the caller's network namespace.
pub fn interface(name: &str) -> Result<Interface, NetError> {
    let mut all = interfaces()?;
    match all.iter().position(|interface| interface.is_called(name)) {
        Some(position) => Ok(all.swap_remove(position)),
        None => Err(NetError::NoSuchInterface {
            name: name.to_owned(),
            existing: all.into_iter().map(|interface| interface.name).collect(),
        }),
    }
}

fn interface_of(payload: &[u8]) -> Option<Interface> {
    // struct ifinfomsg: family, type, index, flags, change mask.
    let (arphrd, index, flags) = (u16_at(payload, 2)?, u32_at(payload, 4)?, u32_at(payload, 8)?);
    let mut interface = Interface { index, arphrd, up: flags & libc::IFF_UP as u32 != 0, ..Interface::default() };
    let (mut link, mut link_is_elsewhere) = (None, false);
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => interface.name = text(value),
            libc::IFLA_MTU => interface.mtu = u32_at(value, 0).unwrap_or(0),
            libc::IFLA_ADDRESS => interface.mac = value.try_into().ok(),
            libc::IFLA_MASTER => interface.master = u32_at(value, 0),
            libc::IFLA_LINK => link = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => link_is_elsewhere = true,
            libc::IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                interface.kind = name.map(|(_, name)| text(name));
            }
            libc::IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == libc::IFLA_ALT_IFNAME);
                interface.alternative_names = names.map(|(_, name)| text(name)).collect();
            }
            libc::IFLA_XDP => interface.xdp = xdp_of(value),
            _ => {}
        }
    }
    // The other end of a veth is not an interface below it.
    let is_stacked = matches!(interface.kind.as_deref(), Some("vlan" | "macvlan" | "ipvlan"));
    interface.lower = link.filter(|_| is_stacked && !link_is_elsewhere);
    (!interface.name.is_empty()).then_some(interface)
}

fn xdp_of(attribute: &[u8]) -> Vec<XdpAttachment> {
    let by_mode = attributes(attribute).filter_map(|(kind, value)| {
        let mode = match kind {
            IFLA_XDP_DRV_PROG_ID => XdpMode::Native,
            IFLA_XDP_SKB_PROG_ID => XdpMode::Generic,
            IFLA_XDP_HW_PROG_ID => XdpMode::Hardware,
            _ => return None,
        };
        Some(XdpAttachment { mode, program_id: u32_at(value, 0)? })
    });
    by_mode.filter(|attachment| attachment.program_id != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::{netlink::attribute, *};

    #[test]
    fn loopback_is_in_every_namespace() {
        let lo = interface("lo").unwrap();
        assert_eq!((lo.index, lo.arphrd), (1, ARPHRD_LOOPBACK));
        assert!(lo.mtu > 0 && lo.is_virtual());
    }

    #[test]
    fn a_name_that_is_not_there_is_answered_with_those_that_are() {
        let error = interface("no-such-thing").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"no-such-thing\"") && text.contains("there are: lo"), "{text}");
    }

    #[test]
    fn both_modes_of_an_interface_are_told() {
        let ids = |ids: [(u16, u32); 3]| ids.map(|(kind, id)| attribute(kind, &id.to_ne_bytes())).concat();
        let both = ids([(IFLA_XDP_DRV_PROG_ID, 7), (IFLA_XDP_SKB_PROG_ID, 9), (IFLA_XDP_HW_PROG_ID, 0)]);
        let expected = [(XdpMode::Native, 7), (XdpMode::Generic, 9)];
        assert_eq!(xdp_of(&both), expected.map(|(mode, program_id)| XdpAttachment { mode, program_id }));
        assert_eq!(xdp_of(&[]), []);
    }

    #[test]
    fn a_name_that_is_not_utf_8_hides_neither_its_interface_nor_others() {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        payload.extend(attribute(libc::IFLA_IFNAME, b"caf\xe9\0"));
        payload.extend(attribute(libc::IFLA_MTU, &1500_u32.to_ne_bytes()));
        let interface = interface_of(&payload).unwrap();
        assert_eq!((interface.index, interface.mtu, interface.name.as_str()), (7, 1500, "caf\u{fffd}"));
    }
}
