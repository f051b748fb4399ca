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
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bg_common::CheckDevice;
use rustix::net::sockopt::{set_ip_ttl, set_ipv6_unicast_hops};
use tokio::{net::TcpSocket, task::JoinHandle};

pub(super) use self::{
    program::Registered,
    target::{Target, Trouble},
};
use self::{
    program::{Loaded, Programs},
    way::Way,
};
use crate::net::{self, Tun};

/// The name of the device; the kernel replaces `%d` by a number.
const NAME: &str = "bgcheck%d";

/// The longest packet: IPv6 needs it, and the outer headers fit every usual link besides.
const MTU: u32 = 1280;

/// How many hops a packet has left at the backend: it may be sent on once there, to a container say.
const HOPS: u8 = 2;

/// The time after which it is tried again to make a device, and how often it doubles while there never was one.
const AGAIN: Duration = Duration::from_secs(10);
const MOST_DOUBLINGS: u32 = 6;

/// A device that is lost as soon as that is lost each time.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How many pairs of addresses are looked at for one that is free.
const PAIRS_TRIED: u32 = 64;

/// Those of IPv6, which are of the device alone.
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

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
    /// A thread is making it.
    is_being_made: bool,
    /// When it was made last. As soon as there was one, nothing is checked without: what its loss does to a check says nothing of the backend.
    made: Option<Instant>,
    /// When and why it could not be made, since it was made last.
    failed: Option<(Instant, String)>,
    failures: u32,
    /// Changes with the device, and with each trouble of it.
    number: u64,
    /// What was said of it.
    said: HashSet<String>,
    /// Interfaces by which replies may come, beside those that lead to backends.
    interfaces: Vec<u32>,
}

impl State {
    /// The pause until it is tried again to make a device.
    fn pause(&self) -> Duration {
        match self.made {
            Some(_) => AGAIN,
            // This host will hardly learn it.
            None => AGAIN * (1 << self.failures.saturating_sub(1).min(MOST_DOUBLINGS)),
        }
    }

    /// Gives the device up, if it is still that one.
    fn lose(&mut self, device: &Arc<Device>, why: &str) {
        if !self.device.as_ref().is_some_and(|now| Arc::ptr_eq(now, device)) {
            return;
        }
        self.device = None;
        self.number += 1;
        tracing::warn!("the device of health checks, {}, is made anew: {why}", device.tun.name());
        // Somebody does that to each one.
        if self.made.is_some_and(|made| made.elapsed() < SHORT_LIFE) {
            self.failed = Some((Instant::now(), why.to_owned()));
        }
    }
}

impl Opener {
    /// Replies may come by these interfaces too.
    pub(super) fn hear_on(&self, interfaces: Vec<u32>) {
        self.state().interfaces = interfaces;
    }

    /// Makes the device, if there is none. Checks that are to go by it begin after that.
    pub(super) async fn begin(self: &Arc<Self>) {
        if let Some(making) = self.begin_to_make(None) {
            // It has said what is wrong.
            let _ = making.await;
        }
    }

    /// A socket for a check. `None`: this host was never able to check in this way, and has said why.
    pub(super) fn prepare(self: &Arc<Self>, target: &Target, backend: SocketAddr) -> Result<Option<Prepared>, Trouble> {
        let (device, interfaces) = {
            let state = self.state();
            (state.device.clone(), state.interfaces.clone())
        };
        let Some(device) = device else {
            // It takes longer than a check may.
            drop(self.begin_to_make(None));
            return self.missing().map_or(Ok(None), |why| Err(Trouble::Unable(why)));
        };
        let prepared = device.prepare(target, backend, &interfaces);
        if let Err(Trouble::Gone(why)) = &prepared {
            self.replace(device, why);
        }
        prepared.map(Some)
    }

    /// What [`Self::trouble`] is to be asked with.
    pub(super) fn number(&self) -> u64 {
        self.state().number
    }

    /// What was wrong with the device since it had this number, or is now.
    pub(super) fn trouble(self: &Arc<Self>, number: u64, target: &Target) -> Option<String> {
        let device = {
            let state = self.state();
            if state.number != number {
                return Some("the device of health checks was made anew, or its programs were".to_owned());
            }
            state.device.clone()
        };
        let Some(device) = device else { return self.missing() };
        match device.look(target) {
            Ok(()) => None,
            Err(Trouble::Gone(why)) => {
                self.replace(device, &why);
                Some(why)
            }
            Err(Trouble::Unable(why) | Trouble::NoWay(why)) => {
                self.state().number += 1;
                Some(why)
            }
        }
    }

    /// That there is no device any more; `None` if there never was one.
    fn missing(&self) -> Option<String> {
        let state = self.state();
        state.made?;
        let why = state.failed.as_ref().map(|(_, why)| format!(": {why}")).unwrap_or_default();
        Some(format!("the device of health checks is gone, and is made anew{why}"))
    }

    fn replace(self: &Arc<Self>, device: Arc<Device>, why: &str) {
        self.state().lose(&device, why);
        drop(self.begin_to_make(Some(device)));
    }

    /// Makes the device on a thread of its own, unless that has failed just now. Removes the old one before, which takes time too.
    fn begin_to_make(self: &Arc<Self>, old: Option<Arc<Device>>) -> Option<JoinHandle<()>> {
        let mut state = self.state();
        let is_too_early = state.failed.as_ref().is_some_and(|(when, _)| when.elapsed() < state.pause());
        if state.device.is_some() || state.is_being_made || is_too_early {
            return None;
        }
        state.is_being_made = true;
        let opener = self.clone();
        Some(tokio::task::spawn_blocking(move || {
            drop(old);
            let made = Device::make();
            let mut state = opener.state();
            state.is_being_made = false;
            match made {
                Ok(device) => {
                    tracing::info!(
                        "checks of services in the modes l2dsr, ipip and gue go to their virtual addresses, by {}",
                        device.tun.name()
                    );
                    state.device = Some(Arc::new(device));
                    (state.made, state.failed, state.failures) = (Some(Instant::now()), None, 0);
                    state.number += 1;
                }
                Err(why) => {
                    state.say(&why);
                    state.failures += 1;
                    state.failed = Some((Instant::now(), why));
                }
            }
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Says once that checks do not go the way of clients' packets, if they do not. What is lacking later is said as why there is no verdict.
    fn say(&mut self, why: &str) {
        const MOST: usize = 100;
        if self.made.is_none() && self.said.len() < MOST && self.said.insert(why.to_owned()) {
            tracing::warn!(
                "checks of services in the modes l2dsr, ipip and gue go to the backends' own addresses, and do not see whether a backend has the virtual address and unpacks: {why}"
            );
        }
    }
}

/// The device, and the programs around it.
#[derive(Debug)]
struct Device {
    tun: Tun,
    programs: Arc<Programs>,
    own: [IpAddr; 2],
    peer: [IpAddr; 2],
    /// A host may have IPv6 switched off.
    has_v6: AtomicBool,
}

impl Device {
    fn make() -> Result<Self, String> {
        // Where this fails, no device comes and goes, which others on this host would see.
        let programs = Loaded::load()?;
        let tun = Tun::create(NAME, MTU).map_err(|error| {
            format!("a TUN device could not be made ({error}); it takes /dev/net/tun, the kernel's module tun and CAP_NET_ADMIN")
        })?;
        let is_free = |(own, peer): &(Ipv4Addr, Ipv4Addr)| {
            ![*own, *peer].into_iter().any(|address| net::has_route_of_its_own(address.into()))
        };
        let (own_v4, peer_v4) = (0..PAIRS_TRIED)
            .map(|nth| pair(tun.ifindex().wrapping_add(nth)))
            .find(is_free)
            .ok_or("the link-local addresses for its device are in use")?;
        tun.add_v4(own_v4, peer_v4).map_err(|error| format!("{} takes no IPv4 address: {error}", tun.name()))?;
        let (own, peer) = ([own_v4.into(), OWN_V6.into()], [peer_v4.into(), PEER_V6.into()]);
        let row = CheckDevice { own: own.map(Into::into), peer: peer.map(Into::into), ifindex: tun.ifindex() };
        let programs = Arc::new(programs.begin(tun.name(), row)?);
        let device = Self { tun, programs, own, peer, has_v6: AtomicBool::new(false) };
        // Else it is tried again by each check that needs it.
        let _ = device.own(true);
        Ok(device)
    }

    /// The device's address of a family.
    fn own(&self, is_of_v6: bool) -> Result<IpAddr, Trouble> {
        if is_of_v6 && !self.has_v6.load(Ordering::Relaxed) {
            match self.tun.add_v6(OWN_V6) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                    let why = format!("{} takes no IPv6 address: {error}", self.tun.name());
                    return Err(if error.raw_os_error() == Some(libc::ENODEV) {
                        Trouble::Gone(why)
                    } else {
                        Trouble::Unable(why)
                    });
                }
                _ => self.has_v6.store(true, Ordering::Relaxed),
            }
        }
        Ok(self.own[usize::from(is_of_v6)])
    }

    /// A socket of the device, without a port yet.
    fn socket(&self, own: IpAddr) -> Result<TcpSocket, Trouble> {
        let socket = if own.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|error| no_socket(&error))?;
        socket.bind_device(Some(self.tun.name().as_bytes())).map_err(|error| no_socket(&error))?;
        Ok(socket)
    }

    /// An address of the device, and a port.
    fn at(&self, address: IpAddr, port: u16) -> SocketAddr {
        match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, self.tun.ifindex()).into(),
        }
    }

    /// Looks whether it is as it was made: set up, with its address and its programs.
    fn look(&self, target: &Target) -> Result<(), Trouble> {
        match self.tun.is_up() {
            Ok(true) => {}
            Ok(false) => return Err(Trouble::Gone(format!("{} is set down", self.tun.name()))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                return Err(Trouble::Gone(format!("{} is gone", self.tun.name())));
            }
            Err(error) => return Err(Trouble::Unable(format!("{} cannot be seen: {error}", self.tun.name()))),
        }
        let own = self.own(target.vip.is_ipv6())?;
        self.socket(own)?.bind(self.at(own, 0)).map_err(|error| no_socket(&error))?;
        self.programs.look(self.tun.ifindex())
    }

    fn prepare(&self, target: &Target, backend: SocketAddr, interfaces: &[u32]) -> Result<Prepared, Trouble> {
        let own = self.own(target.vip.is_ipv6())?;
        let way = Way::find(target, backend)?;
        let unable = |what: &str, why: &dyn std::fmt::Display| Trouble::Unable(format!("{what}: {why}"));
        self.programs.hear_on(way.ifindex).map_err(|why| unable("replies cannot be heard", &why))?;
        for interface in interfaces {
            // Replies come by it at worst.
            let _ = self.programs.hear_on(*interface);
        }
        let socket = self.socket(own)?;
        // The program counts down as the data path does.
        match own {
            IpAddr::V4(_) => set_ip_ttl(&socket, u32::from(HOPS) + 1),
            IpAddr::V6(_) => set_ipv6_unicast_hops(&socket, Some(HOPS + 1)),
        }
        .map_err(|error| no_socket(&error.into()))?;
        socket.bind(self.at(own, 0)).map_err(|error| no_socket(&error))?;
        let from = socket.local_addr().map_err(|error| no_socket(&error))?.port();
        let registered = Programs::register(&self.programs, &way, [from, backend.port()]);
        let registered = registered.map_err(|why| unable("a check cannot be registered", &why))?;
        let peer = self.peer[usize::from(own.is_ipv6())];
        Ok(Prepared { socket, to: self.at(peer, backend.port()), registered })
    }
}

/// Why there is no socket with an address of the device.
fn no_socket(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(libc::ENODEV) => Trouble::Gone(format!("the device of health checks is gone: {error}")),
        Some(libc::EADDRNOTAVAIL) => Trouble::Gone(format!("the device of health checks lacks its address: {error}")),
        _ => Trouble::Unable(format!("there is no socket: {error}")),
    }
}

/// Two link-local addresses that the devices of other controllers do not have, far from those of the services of clouds (169.254.169.254 and the like).
fn pair(ifindex: u32) -> (Ipv4Addr, Ipv4Addr) {
    let first = u32::from(Ipv4Addr::new(169, 254, 192, 1)) + (ifindex & 0xfff) * 4;
    (first.into(), (first + 1).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_addresses_of_its_own() {
        let of = |ifindex| pair(ifindex).0.octets();
        assert_eq!(
            [of(0), of(1), of(64), of(0xffe), of(0x1000)],
            [[169, 254, 192, 1], [169, 254, 192, 5], [169, 254, 193, 1], [169, 254, 255, 249], [169, 254, 192, 1]]
        );
        let (own, peer) = pair(7);
        assert_eq!(u32::from(peer) - u32::from(own), 1);
    }
}
