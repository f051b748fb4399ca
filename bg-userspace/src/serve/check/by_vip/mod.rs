//! Checks of services in the modes `l2dsr`, `ipip` and `gue`: a connection to the virtual address at one backend, as the packets of clients reach it. A backend that
//! lacks the virtual address, or does not unpack, fails such a check.
//!
//! A check connects by a TUN device of the controller, on which one pair of addresses stands for all hosts and virtual addresses. A program on the way out of the device gives
//! the packets their addresses, encapsulates them as the data path does, and sends them to the backend; another one brings the replies back ([`program`]). So neither
//! routes nor reverse path filters of this host are touched, and the virtual address may be one of its own. Device and programs end with the process.
//!
//! A check's packets arrive with [`HOPS`] hops left. A backend that lacks the virtual address, and forwards, may send them back to an edge, which would
//! send them to a backend that works. The first router on this way, or the edge, finds no hop left.

mod program;
mod target;
mod way;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};
use tokio::{net::TcpSocket, task::JoinHandle};

use self::{program::Programs, target::Trouble, way::Way};
pub(super) use self::{program::Registered, target::Target};
use crate::net::Tun;

/// The name of the device; the kernel replaces `%d` by a number.
const NAME: &str = "bgcheck%d";

/// The longest packet: IPv6 needs it, and the outer headers fit every usual link besides.
const MTU: u32 = 1280;

/// How many hops a packet has left at the backend: it may be sent on once there, to a container say.
const HOPS: u8 = 2;

/// The time after which it is tried again to make a device.
const AGAIN: Duration = Duration::from_secs(10);

/// A socket that is to connect to an address.
pub(super) struct Prepared {
    pub(super) socket: TcpSocket,
    pub(super) to: SocketAddr,
    /// Lives as long as the connection.
    pub(super) registered: Registered,
}

/// Makes the device when it is needed first, and makes it again when it is gone.
#[derive(Debug, Default)]
pub(super) struct Opener(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    device: Option<Arc<Device>>,
    tried: Option<Instant>,
    /// What was said of it.
    said: HashSet<String>,
    /// Interfaces by which replies may come, beside those that lead to backends.
    interfaces: Vec<u32>,
}

impl Opener {
    /// Replies may come by these interfaces too.
    pub(super) fn hear_on(&self, interfaces: Vec<u32>) {
        self.state().interfaces = interfaces;
    }

    /// Makes the device, if there is none. Checks that are to go by it begin after that.
    pub(super) async fn begin(self: &Arc<Self>) {
        if let Some(making) = self.begin_to_make() {
            // It has said what is wrong.
            let _ = making.await;
        }
    }

    /// A socket for a check. `None`: this host cannot check in this way, and has said why.
    pub(super) fn prepare(self: &Arc<Self>, target: &Target, backend: SocketAddr) -> Option<Result<Prepared, String>> {
        let (device, interfaces) = {
            let state = self.state();
            (state.device.clone(), state.interfaces.clone())
        };
        let Some(device) = device else {
            // It takes longer than a check may.
            drop(self.begin_to_make());
            return None;
        };
        match device.prepare(target, backend, &interfaces) {
            Ok(prepared) => Some(Ok(prepared)),
            Err(Trouble::NoWay(why)) => Some(Err(why)),
            Err(Trouble::Unable(why)) => {
                self.say(&format!("{backend}: {why}"));
                None
            }
            Err(Trouble::Gone) => {
                self.say("the device is gone");
                self.state().device = None;
                None
            }
        }
    }

    /// Makes the device on a thread of its own, if that was not tried just now.
    fn begin_to_make(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        let mut state = self.state();
        if state.device.is_some() || state.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
            return None;
        }
        state.tried = Some(Instant::now());
        let opener = self.clone();
        Some(tokio::task::spawn_blocking(move || match Device::make() {
            Ok(device) => {
                tracing::info!(
                    "checks of services in the modes l2dsr, ipip and gue go to their virtual addresses, by {}",
                    device.tun.name()
                );
                opener.state().device = Some(Arc::new(device));
            }
            Err(why) => opener.say(&why),
        }))
    }

    /// Says once that checks do not go the way of clients' packets.
    fn say(&self, why: &str) {
        /// Names of backends are part of some.
        const MOST: usize = 100;
        let mut state = self.state();
        if state.said.len() < MOST && state.said.insert(why.to_owned()) {
            tracing::warn!(
                "checks of services in the modes l2dsr, ipip and gue go to the backends' own addresses, and do not see whether a backend has the virtual address and unpacks: {why}"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device, and the programs around it.
#[derive(Debug)]
struct Device {
    tun: Tun,
    programs: Arc<Programs>,
    own: [Option<IpAddr>; 2],
    peer: [IpAddr; 2],
}

impl Device {
    fn make() -> Result<Self, String> {
        let tun = Tun::create(NAME, MTU).map_err(|error| {
            format!("a TUN device could not be made ({error}); it takes /dev/net/tun, the kernel's module tun and CAP_NET_ADMIN")
        })?;
        let (own_v4, peer_v4) = pair(tun.ifindex());
        let (own_v6, peer_v6) =
            (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));
        tun.add_v4(own_v4, peer_v4).map_err(|error| format!("{} takes no IPv4 address: {error}", tun.name()))?;
        // A host may have IPv6 switched off.
        let has_v6 = tun.add_v6(own_v6).is_ok();
        let (own, peer) = ([own_v4.into(), own_v6.into()], [peer_v4.into(), peer_v6.into()]);
        let programs = Programs::load(tun.name(), tun.ifindex(), own, peer)?;
        Ok(Self { tun, programs: Arc::new(programs), own: [Some(own[0]), has_v6.then_some(own[1])], peer })
    }

    fn prepare(&self, target: &Target, backend: SocketAddr, interfaces: &[u32]) -> Result<Prepared, Trouble> {
        let family = usize::from(target.vip.is_ipv6());
        let Some(own) = self.own[family] else {
            return Err(Trouble::Unable(format!("{} takes no IPv6 address", self.tun.name())));
        };
        let way = Way::find(target, backend)?;
        let unable = |what: &str, why: &dyn std::fmt::Display| Trouble::Unable(format!("{what}: {why}"));
        self.programs.hear_on(way.ifindex).map_err(|why| unable("replies cannot be heard", &why))?;
        for interface in interfaces {
            // Replies come by it at worst.
            let _ = self.programs.hear_on(*interface);
        }
        let (socket, scoped) = match own {
            IpAddr::V4(_) => (TcpSocket::new_v4(), 0),
            IpAddr::V6(_) => (TcpSocket::new_v6(), self.tun.ifindex()),
        };
        let at = |address: IpAddr, port: u16| match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scoped).into(),
        };
        let no_socket = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => Trouble::Gone,
            _ => unable("there is no socket", &error),
        };
        let socket = socket.map_err(no_socket)?;
        // The program counts down as the data path does.
        match own {
            IpAddr::V4(_) => set_ip_ttl(&socket, u32::from(HOPS) + 1),
            IpAddr::V6(_) => set_ipv6_unicast_hops(&socket, Some(HOPS + 1)),
        }
        .map_err(|error| no_socket(error.into()))?;
        socket.bind_device(Some(self.tun.name().as_bytes())).map_err(no_socket)?;
        socket.bind(at(own, 0)).map_err(no_socket)?;
        let from = socket.local_addr().map_err(no_socket)?.port();
        let registered = Programs::register(&self.programs, &way, [from, backend.port()]);
        let registered = registered.map_err(|why| unable("a check cannot be registered", &why))?;
        Ok(Prepared { socket, to: at(self.peer[family], backend.port()), registered })
    }
}

/// Two link-local addresses that the devices of other controllers do not have.
fn pair(ifindex: u32) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(Ipv4Addr::new(169, 254, 128, 1)) + (ifindex & 0x1fff) * 4;
    (first.into(), (first + 1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_addresses_of_its_own() {
        let of = |ifindex| pair(ifindex).0.octets();
        assert_eq!(
            [of(0), of(1), of(64), of(0x1ffe)],
            [[169, 254, 128, 1], [169, 254, 128, 5], [169, 254, 129, 1], [169, 254, 255, 249]]
        );
        let (own, peer) = pair(7);
        assert_eq!(u32::from(peer) - u32::from(own), 1);
    }
}
