//! Making the ends of TCP connections speak that say nothing.
//!
//! The data path ends a connection by a segment of one of its ends. A bare acknowledgment with any numbers makes an end send one: its
//! own numbers (RFC 9293, section 3.10.7.4). It is sent to each end as if from the other one, by a raw socket, so that the host's routes
//! lead it there whatever the modes of interfaces and services are.
//!
//! A stateful firewall in front of an end drops a segment whose numbers are far from those of the connection. So there are
//! four of them: in each quadrant of sequence and acknowledgment numbers one is near.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
};

use bg_ebpf::wire::checksum::Sum;
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketType, ipproto, sendto},
    rand::{GetRandomFlags, getrandom},
};

const TCP: u8 = 6;
const ACK: u8 = 0x10;
const HALF: u32 = 1 << 31;

/// Raw sockets, one for each family, opened when they are needed.
#[derive(Default)]
pub(crate) struct Prober {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Prober {
    /// Has `to` answer `from`. An end that cannot be reached now has no answer to give.
    pub(crate) fn ask(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let (socket, family) = match to {
            SocketAddr::V4(_) => (&mut self.v4, AddressFamily::INET),
            SocketAddr::V6(_) => (&mut self.v6, AddressFamily::INET6),
        };
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(raw(family)?),
        };
        let mut random = [0_u8; 8];
        getrandom(&mut random[..], GetRandomFlags::empty())?;
        let [sequence, acknowledgment] = bytemuck::cast::<_, [u32; 2]>(random);
        for quadrant in 0..4 {
            let numbers = [sequence ^ (HALF * (quadrant & 1)), acknowledgment ^ (HALF * (quadrant >> 1))];
            let packet = segment(from, to, numbers);
            // In a raw socket's address the port says nothing.
            let _: Result<usize, Errno> = sendto(&*socket, &packet, SendFlags::DONTWAIT, &SocketAddr::new(to.ip(), 0));
        }
        Ok(())
    }
}

fn raw(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket(family, SocketType::RAW, Some(ipproto::RAW))
}

/// Why this process cannot make silent ends speak: the families for which it gets no raw socket, with the errors. `None` if it can.
pub(crate) fn obstacle() -> Option<String> {
    let has_v6 = Path::new("/proc/net/if_inet6").exists();
    let families = [("IPv4", AddressFamily::INET, true), ("IPv6", AddressFamily::INET6, has_v6)];
    let missing: Vec<_> = families
        .into_iter()
        .filter(|(_, _, is_there)| *is_there)
        .filter_map(|(name, family, _)| Some(format!("no raw socket for {name} ({})", raw(family).err()?)))
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// A bare acknowledgment as an IP packet.
fn segment(from: SocketAddr, to: SocketAddr, [sequence, acknowledgment]: [u32; 2]) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgment.to_be_bytes());
    tcp.extend([5 << 4, ACK, 0x04, 0, 0, 0, 0, 0]);
    let (mut ip, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            // The kernel fills in the checksum.
            let head = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
            ([&head[..], &addresses].concat(), addresses)
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let addresses = [octets(from), octets(to)].concat();
            ([&[0x60, 0, 0, 0, 0, 20, TCP, 64][..], &addresses].concat(), addresses)
        }
    };
    let words = addresses.chunks(2).chain(tcp.chunks(2)).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
    let sum = words.fold(Sum::ZERO, Sum::word).word(u16::from(TCP).to_be()).word(20_u16.to_be());
    tcp[16..18].copy_from_slice(&(!sum.fold()).to_ne_bytes());
    ip.append(&mut tcp);
    ip
}
