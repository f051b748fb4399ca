//! The interfaces of the caller's network namespace, as the kernel tells by rtnetlink.
//!
//! Not by /sys: what is mounted there may belong to another namespace.

mod ethtool;

use std::{io, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its ifindex.
    pub index: u32,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link-layer address, where it has one of six octets.
    pub mac: Option<[u8; 6]>,
    /// `ARPHRD_*`: 1 is Ethernet, 772 loopback, 65534 none (an IP tunnel).
    pub arphrd: u16,
    /// `veth`, `bridge`, `tun`, `macvlan`, ...; `None` for hardware and for virtio.
    pub kind: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// XDP programs on it: at most one a mode.
    pub xdp: Vec<XdpAttachment>,
    /// The driver's name, where it tells one.
    pub driver: Option<String>,
    /// Whether packets are merged by the hardware before XDP sees them.
    pub large_receive_offload: bool,
}

/// `SO_NETNS_COOKIE` of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `ARPHRD_ETHER`.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`.
pub const ARPHRD_LOOPBACK: u16 = 772;

impl Interface {
    /// Whether a host made it up, so that packets may come from a stack of the same machine, with
    /// unfinished checksums or not yet segmented.
    pub fn is_virtual(&self) -> bool {
        self.kind.is_some() || self.arphrd != ARPHRD_ETHER
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// How it is attached.
    pub mode: XdpMode,
    /// The kernel's id of the program.
    pub program_id: u32,
}

/// How an XDP program is attached.
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
    /// As bgctl spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
        }
    }
}

/// Why interfaces could not be told.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Expected an interface of this name, got the list of those that exist.
    #[error("no interface \"{name}\" in this network namespace; there are: {}", existing.join(", "))]
    NoSuchInterface {
        /// The name that was asked for.
        name: String,
        /// Names that would do.
        existing: Vec<String>,
    },
    /// The netlink socket failed.
    #[error("cannot list interfaces by rtnetlink")]
    Socket(#[source] io::Error),
    /// The kernel answered with something else than a list.
    #[error("rtnetlink sent an answer that is no list of interfaces: {0}")]
    Answer(String),
}

/// All interfaces of the caller's network namespace, by index.
pub fn interfaces() -> Result<Vec<Interface>, NetError> {
    let mut interfaces: Vec<Interface> = dump_links()?.into_iter().filter_map(interface_of).collect();
    interfaces.sort_by_key(|interface| interface.index);
    // Hints only: an interface without an answer, or a sandbox without the socket, has no driver.
    if let Ok(ethtool) = ethtool::Ethtool::open() {
        for interface in &mut interfaces {
            interface.driver = ethtool.driver(&interface.name).ok();
            interface.large_receive_offload = ethtool.large_receive_offload(&interface.name).unwrap_or(false);
        }
    }
    Ok(interfaces)
}

/// The interface of this name in the caller's network namespace.
pub fn interface(name: &str) -> Result<Interface, NetError> {
    let mut all = interfaces()?;
    match all.iter().position(|interface| interface.name == name) {
        Some(position) => Ok(all.swap_remove(position)),
        None => Err(NetError::NoSuchInterface {
            name: name.to_owned(),
            existing: all.into_iter().map(|interface| interface.name).collect(),
        }),
    }
}

/// The cookie of the caller's network namespace: the same number for as long as the namespace lives, and never given
/// to another (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn namespace_cookie() -> Result<u64, NetError> {
    let socket = Socket::new(NETLINK_ROUTE).map_err(NetError::Socket)?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and both pointers lead to live variables of the size that is told.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(NetError::Socket(io::Error::last_os_error()));
    }
    Ok(cookie)
}

fn dump_links() -> Result<Vec<LinkMessage>, NetError> {
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetError::Socket)?;
    socket.bind_auto().map_err(NetError::Socket)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(NetError::Socket)?;

    let mut request = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::from(RouteNetlinkMessage::GetLink(LinkMessage::default())),
    );
    request.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    request.header.sequence_number = 1;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(NetError::Socket)?;

    let mut links = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().map_err(NetError::Socket)?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| NetError::Answer(error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(links),
                NetlinkPayload::Error(error) => return Err(NetError::Socket(error.to_io())),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => links.push(link),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn interface_of(link: LinkMessage) -> Option<Interface> {
    let mut interface = Interface {
        name: String::new(),
        index: link.header.index,
        mtu: 0,
        mac: None,
        arphrd: link.header.link_layer_type.into(),
        kind: None,
        up: link.header.flags.contains(LinkFlags::Up),
        xdp: Vec::new(),
        driver: None,
        large_receive_offload: false,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(octets) => interface.mac = octets.try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(nlas) => interface.xdp = xdp_of(&nlas),
            _ => {}
        }
    }
    (!interface.name.is_empty()).then_some(interface)
}

fn xdp_of(nlas: &[LinkXdp]) -> Vec<XdpAttachment> {
    let attached = |mode, program_id| XdpAttachment { mode, program_id };
    let by_mode: Vec<_> = nlas
        .iter()
        .filter_map(|nla| match nla {
            LinkXdp::DrvProgId(id) => Some(attached(XdpMode::Native, *id)),
            LinkXdp::SkbProgId(id) => Some(attached(XdpMode::Generic, *id)),
            LinkXdp::HwProgId(id) => Some(attached(XdpMode::Hardware, *id)),
            _ => None,
        })
        .filter(|attachment| attachment.program_id != 0)
        .collect();
    if !by_mode.is_empty() {
        return by_mode;
    }
    // Kernels before 4.19 tell one mode and one id.
    let mode = nlas.iter().find_map(|nla| match nla {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Hardware),
        _ => None,
    });
    let id = nlas.iter().find_map(|nla| match nla {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    mode.zip(id).map(|(mode, id)| attached(mode, id)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let nlas = [
            LinkXdp::Attached(XdpAttached::Multiple),
            LinkXdp::DrvProgId(7),
            LinkXdp::SkbProgId(9),
            LinkXdp::HwProgId(0),
        ];
        let expected = [(XdpMode::Native, 7), (XdpMode::Generic, 9)];
        assert_eq!(xdp_of(&nlas), expected.map(|(mode, program_id)| XdpAttachment { mode, program_id }));
        assert_eq!(xdp_of(&[LinkXdp::Attached(XdpAttached::None)]), []);
    }
}
