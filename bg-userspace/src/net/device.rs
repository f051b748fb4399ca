//! A TUN device: an interface that ends with the process that has made it, however that ends.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use super::netlink::{attribute, change, request, u32_at};

const NLM_F_CREATE: u16 = 0x400;
/// linux/if_link.h.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_GSO_MAX_SEGS: u16 = 40;
/// linux/rtnetlink.h.
const RT_SCOPE_LINK: u8 = 253;

/// The device. Dropping it removes the interface.
#[derive(Debug)]
pub(crate) struct Tun {
    /// Nobody reads it: a program takes what leaves the device.
    _file: File,
    name: String,
    ifindex: u32,
}

impl Tun {
    /// Makes a device. In `name`, the kernel replaces `%d` by a number. Its packets are not longer than `mtu`, and none is to be segmented yet.
    pub(crate) fn create(name: &str, mtu: u32) -> io::Result<Self> {
        // Not for commands that checks run: they would keep it.
        let mut options = File::options();
        let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open("/dev/net/tun")?;
        // SAFETY: plain old data, for which zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        // SAFETY: the request outlives the call, and its name ends in a zero.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let name: Vec<u8> = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
        let name = String::from_utf8_lossy(&name).into_owned();
        let ifindex = name_to_index(socket(AddressFamily::INET, SocketType::DGRAM, None)?, &name)?;
        let device = Self { _file: file, name, ifindex };
        // Without IPv6 there is nothing to set.
        let _ = change(libc::RTM_NEWLINK, 0, &[link(ifindex, 0), no_address_by_itself()].concat());
        let settings =
            [attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()), attribute(IFLA_GSO_MAX_SEGS, &1_u32.to_ne_bytes())];
        change(libc::RTM_NEWLINK, 0, &[link(ifindex, libc::IFF_UP as u32), settings.concat()].concat())?;
        Ok(device)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Whether it is set up. An error is that of the interface (`ENODEV`: it is gone), or of looking.
    pub(crate) fn is_up(&self) -> io::Result<bool> {
        let answer = request(libc::RTM_GETLINK, &link(self.ifindex, 0))?;
        Ok(u32_at(&answer, 8).is_some_and(|flags| flags & libc::IFF_UP as u32 != 0))
    }

    /// Gives it an address, with a route to one other address.
    pub(crate) fn add_v4(&self, own: Ipv4Addr, peer: Ipv4Addr) -> io::Result<()> {
        let ends = [attribute(libc::IFA_LOCAL, &own.octets()), attribute(libc::IFA_ADDRESS, &peer.octets())];
        self.add(own.into(), 32, &ends.concat())
    }

    /// Gives it a link-local address. Those of all interfaces are one network each.
    pub(crate) fn add_v6(&self, own: Ipv6Addr) -> io::Result<()> {
        self.add(own.into(), 64, &attribute(libc::IFA_LOCAL, &own.octets()))
    }

    fn add(&self, own: IpAddr, len: u8, attributes: &[u8]) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope, index. There is nobody who could have the address, too.
        let (family, flags) = match own {
            IpAddr::V4(_) => (libc::AF_INET, 0),
            IpAddr::V6(_) => (libc::AF_INET6, libc::IFA_F_NODAD as u8),
        };
        let mut message = vec![family as u8, len, flags, RT_SCOPE_LINK];
        message.extend(self.ifindex.to_ne_bytes());
        message.extend(attributes);
        change(libc::RTM_NEWADDR, NLM_F_CREATE, &message)
    }
}

/// struct ifinfomsg: family, type, index, flags, and which of them are set.
fn link(ifindex: u32, flags: u32) -> Vec<u8> {
    let words = [0, ifindex, flags, flags];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The kernel is to choose no link-local address, nor to ask for routers there.
fn no_address_by_itself() -> Vec<u8> {
    let mode = attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    attribute(libc::IFLA_AF_SPEC, &attribute(libc::AF_INET6 as u16, &mode))
}

/// The index of the interface of this name, if there is one.
pub(crate) fn index_of(name: &str) -> Option<u32> {
    name_to_index(socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net;

    #[test]
    fn it_has_addresses_and_is_gone_when_it_is_dropped() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test makes a network namespace, run it as root");
            return;
        }
        // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let device = Tun::create("bgtest%d", 1280).unwrap();
        let (own, peer) = (Ipv4Addr::new(169, 254, 0, 1), Ipv4Addr::new(169, 254, 0, 2));
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        device.add_v4(own, peer).unwrap();
        device.add_v6(link_local).unwrap();
        let interface = net::interface("bgtest0").unwrap();
        assert_eq!((device.name(), device.ifindex(), interface.mtu), ("bgtest0", interface.index, 1280));
        assert!(interface.up && device.is_up().unwrap());
        let addresses = net::addresses().unwrap();
        let ours = addresses.iter().filter(|address| address.ifindex == interface.index).map(|address| address.ip);
        assert_eq!(ours.collect::<Vec<_>>(), [IpAddr::from(own), link_local.into()]);
        let (hop, source) = net::way(peer.into()).unwrap();
        assert_eq!((hop.ifindex, source), (interface.index, Some(own.into())));
        let free = Ipv4Addr::new(169, 254, 0, 3);
        assert_eq!([own, peer, free].map(|address| net::has_route_of_its_own(address.into())), [true, true, false]);
        drop(device);
        assert!(net::interface("bgtest0").is_err());
    }
}
