//! The network, and what makes copies in it.

use super::super::{
    bgctl,
    throughput::{LiveFrames, attach_with, lab},
};
use anyhow::Result;
use aya::programs::links::FdLink;
use bg_tests::{
    Lab, Namespace, Offloads, UDP_PORT,
    address::{BACKENDS, VIP_V4, VIP_V6},
    config::{DEPLOYMENT, VIP_UDP_PORT},
};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// What sends datagrams to the live colour, and copies to the idle one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// bgctl, in this mode.
    Ours(&'static str),
    /// nftables, without connection tracking.
    Nftables,
}

impl Way {
    pub(super) const ALL: [Self; 4] = {
        let [native, generic, tc] = bgctl::MODES;
        [Self::Ours(native), Self::Ours(generic), Self::Ours(tc), Self::Nftables]
    };

    pub(super) fn name(self) -> String {
        match self {
            Self::Ours(mode) => bgctl::name(mode),
            Self::Nftables => "nftables, `dup`".into(),
        }
    }

    /// Where a copy arrives. That of nftables is no copy for the idle backend yet: it still bears the virtual address.
    pub(super) fn copy(self, mirror: Mirror, ipv6: bool) -> SocketAddr {
        match self {
            Self::Ours(_) => mirror.idle(ipv6),
            Self::Nftables => mirror.vip(ipv6),
        }
    }
}

/// The mirror of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mirror {
    None,
    There,
    Gone,
    Down,
}

impl Mirror {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::There, Self::Gone, Self::Down];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::There => "there",
            Self::Gone => "host gone",
            Self::Down => "link down",
        }
    }

    /// The address to which clients send.
    pub(super) fn vip(self, ipv6: bool) -> SocketAddr {
        SocketAddr::new(if ipv6 { VIP_V6 } else { VIP_V4 }, VIP_UDP_PORT + self as u16)
    }

    /// The live backend, which no two services share.
    pub(super) fn live(self, ipv6: bool) -> SocketAddr {
        SocketAddr::new(BACKENDS[0].2[usize::from(ipv6)], UDP_PORT + self as u16)
    }

    /// The idle backend.
    pub(super) fn idle(self, ipv6: bool) -> SocketAddr {
        SocketAddr::new(self.machine().address(ipv6, 2), UDP_PORT + self as u16)
    }

    fn machine(self) -> Machine {
        match self {
            Self::None | Self::There => Machine("mirror", 1),
            Self::Gone => Machine("gone", 2),
            Self::Down => Machine("unplugged", 3),
        }
    }
}

/// A machine of the idle colour: its name, which is that of the edge's interface too, and its number.
#[derive(Clone, Copy)]
struct Machine(&'static str, u8);

impl Machine {
    /// An address in its network. The edge is host 1, the machine host 2.
    fn address(self, ipv6: bool, host: u16) -> IpAddr {
        let Self(_, number) = self;
        match ipv6 {
            false => [10, 8, number, host as u8].into(),
            true => [0xfd00, 8, number.into(), 0, 0, 0, 0, host].into(),
        }
    }

    /// Connects it to the edge. Without addresses, it answers nobody.
    fn connect(self, lab: &mut Lab, has_addresses: bool) -> Result<Namespace> {
        let Self(name, _) = self;
        let namespace = Namespace::create(lab.sandbox.id(), name)?;
        lab.edge.ip(&format!("link add {name} type veth peer name eth0 netns {}", namespace.name()))?;
        for (machine, interface, host) in [(&*lab.edge, name, 1), (&namespace, "eth0", 2)] {
            machine.ip(&format!("link set dev {interface} up"))?;
            machine.run(&format!("ethtool -K {interface} tx off gro on"))?;
            if host == 1 || has_addresses {
                machine.ip(&format!("address add {}/24 dev {interface}", self.address(false, host)))?;
                machine.ip(&format!("address add {}/64 dev {interface} nodad", self.address(true, host)))?;
            }
        }
        if has_addresses {
            namespace.ip(&format!("route add default via {}", self.address(false, 1)))?;
            namespace.ip(&format!("-6 route add default via {}", self.address(true, 1)))?;
        }
        lab.interfaces.push(name);
        Ok(namespace)
    }
}

/// The network: that of frames and connections, and the machines of the idle colour.
pub(super) struct Stage {
    pub(super) way: Way,
    /// The machine that the copies reach.
    pub(super) mirror: Namespace,
    _others: [Namespace; 2],
    pub(super) lab: Lab,
}

impl Stage {
    /// Creates it, and sets up the services.
    pub(super) fn create(way: Way, program: &Path) -> Result<Self> {
        let mut lab = lab(Offloads::Wire)?;
        let mirror = Mirror::There.machine().connect(&mut lab, true)?;
        let gone = Mirror::Gone.machine().connect(&mut lab, false)?;
        let down = Mirror::Down.machine().connect(&mut lab, true)?;
        for ipv6 in [false, true] {
            lab.edge.run(&format!("ping -n -q -c 1 -W 2 {}", Mirror::There.idle(ipv6).ip()))?;
        }
        down.ip("link set eth0 down")?;
        match way {
            Way::Ours(mode) => drop(attach_with(&lab, program, mode, &config())?),
            Way::Nftables => {
                let path = lab.sandbox.dir().join("mirror.nft");
                fs::write(&path, rules())?;
                lab.edge.run(&format!("nft -f {}", path.display()))?;
            }
        }
        Ok(Self { way, mirror, _others: [gone, down], lab })
    }

    /// The live colour's machine.
    pub(super) fn live(&self) -> &Namespace {
        &self.lab.backends[0].namespace
    }

    /// Counts and drops what arrives at both colours' machines, as long as the links exist.
    pub(super) fn receive(&self, live: &mut LiveFrames, idle: &mut LiveFrames) -> Result<[FdLink; 2]> {
        Ok([live.receive_at(self.live(), "eth0")?, idle.receive_at(&self.mirror, "eth0")?])
    }
}

/// The services, after one of another deployment.
fn config() -> String {
    let mut config = format!(
        "[deployments.other]\n[[deployments.other.services]]\nvip = \"{VIP_V4}:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
         blue = [\"10.0.1.11:80\"]\ngreen = [\"10.0.2.11:80\"]\n[deployments.{DEPLOYMENT}]\nudp_idle_timeout = \"1h\"\n"
    );
    for ipv6 in [false, true] {
        for mirror in Mirror::ALL {
            config += &format!(
                "[[deployments.{DEPLOYMENT}.services]]\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"nat\"\nblue = [\"{}\"]\ngreen = [\"{}\"]\n{}\n",
                mirror.vip(ipv6),
                mirror.live(ipv6),
                mirror.idle(ipv6),
                if mirror == Mirror::None { "" } else { "mirror = \"idle\"" },
            );
        }
    }
    config
}

/// The same for nftables, IPv4 alone.
fn rules() -> String {
    let rules = Mirror::ALL.map(|mirror| {
        let (vip, live) = (mirror.vip(false), mirror.live(false));
        let dup = if mirror == Mirror::None { String::new() } else { format!("dup to {} ", mirror.idle(false).ip()) };
        format!(
            "    ip daddr {0} udp dport {1} {dup}notrack ip daddr set {2} udp dport set {3}\n    \
             ip saddr {2} udp sport {3} notrack ip saddr set {0} udp sport set {1}\n",
            vip.ip(),
            vip.port(),
            live.ip(),
            live.port()
        )
    });
    format!(
        "table ip bench {{\n  chain prerouting {{\n    type filter hook prerouting priority raw;\n{}  }}\n}}\n",
        rules.concat()
    )
}
