//! The parsed configuration, in types that cannot represent most of what [`super::parse`] refuses.

mod gate;
mod health;
mod serve;

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bg_common::{Colour, Mode, Protocol};

pub use gate::{Bound, Gate, GateKind, When};
pub use health::{AllDown, CheckKind, Failover, HealthCheck, HttpCheck, MinHealthy, StatusRanges};
pub use serve::{Notify, NotifyEvent, Serve, Tls};

/// The default idle time of a TCP flow.
pub const DEFAULT_TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// The default idle time of a UDP flow.
pub const DEFAULT_UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The deployments, in the order of the file.
    pub deployments: Vec<Deployment>,
    /// Where the controller listens; `None` without a `[serve]` in the file.
    pub serve: Option<Serve>,
    /// Who is told of events.
    pub notify: Vec<Notify>,
}

impl Config {
    /// The sections that are not the same in another configuration, also those that only one of both has.
    #[cfg(feature = "serve")]
    pub(crate) fn sections_that_differ(&self, other: &Self) -> Vec<String> {
        let Self { deployments, serve, notify } = self;
        let is_in = |all: &[Deployment], one: &Deployment| all.contains(one);
        let ours = deployments.iter().filter(|one| !is_in(&other.deployments, one));
        let theirs = other.deployments.iter().filter(|one| !is_in(deployments, one));
        let names: std::collections::BTreeSet<_> = ours.chain(theirs).map(|deployment| &deployment.name).collect();
        let mut sections: Vec<_> = names.into_iter().map(|name| format!("deployments.{name}")).collect();
        let others = [("serve", *serve != other.serve), ("notify", *notify != other.notify)];
        sections.extend(others.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
        if sections.is_empty() && self != other {
            sections.push("the order of the deployments".to_owned());
        }
        sections
    }
}

/// A deployment: a named set of services that are switched together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// 1 to 64 bytes, unique in the file.
    pub name: String,
    /// The live colour at the first apply. Later the running state wins.
    pub initial: Colour,
    /// What a switch does to open flows by default.
    pub on_switch: OnSwitch,
    /// The time after which a drain ends the remaining flows; `None` is never.
    pub drain_timeout: Option<Duration>,
    /// How long a TCP flow may be silent before it no longer counts as open.
    pub tcp_idle_timeout: Duration,
    /// How long a UDP flow may be silent before it no longer counts as open.
    pub udp_idle_timeout: Duration,
    /// What a share of new flows divides by default.
    pub sticky: DivideBy,
    /// How many bits of a client's address count, where clients are divided.
    pub sticky_prefix: StickyPrefix,
    /// Sources that always reach the idle colour.
    pub testers: Vec<Prefix>,
    /// How the controller checks the backends of services without a check of their own. This and the next one are no state
    /// of the data path: `plan`, `apply` and `show` know nothing of them.
    pub health: Option<HealthCheck>,
    /// When the controller switches by itself.
    pub failover: Failover,
    /// What has to pass before or after a switch, in the order of the file. An apply keeps them for later switches.
    pub gates: Vec<Gate>,
    /// The services, at least one.
    pub services: Vec<Service>,
}

/// What a switch does to open flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSwitch {
    /// They stay on their backend until they end.
    #[default]
    Drain,
    /// They end or move at once.
    Cut,
}

impl OnSwitch {
    /// The names of both in the configuration.
    pub const ALL: [Self; 2] = [Self::Drain, Self::Cut];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Cut => "cut",
        }
    }
}

/// What a share of new flows divides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DivideBy {
    /// Flows: each one by its five-tuple.
    #[default]
    Flow,
    /// Clients: all flows of a client go to one colour, over all services.
    Client,
}

impl DivideBy {
    /// The names of both in the configuration.
    pub const ALL: [Self; 2] = [Self::Flow, Self::Client];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Client => "client",
        }
    }
}

/// How many bits of an address make a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyPrefix {
    /// Of an IPv4 address, 1 to 32.
    pub ipv4: u8,
    /// Of an IPv6 address, 1 to 128.
    pub ipv6: u8,
}

impl Default for StickyPrefix {
    /// An IPv4 address, and the network of an IPv6 one, since its host part changes by itself (RFC 8981).
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl fmt::Display for StickyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ ipv4 = {}, ipv6 = {} }}", self.ipv4, self.ipv6)
    }
}

impl Deployment {
    /// How the backends of one of its services are checked; `None` if they are not.
    pub fn check_of<'a>(&'a self, service: &'a Service) -> Option<&'a HealthCheck> {
        service.health.as_ref().or(self.health.as_ref()).filter(|_| !service.is_unchecked)
    }
}

/// A service: a virtual address and its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// 1 to 64 bytes, unique in its deployment.
    pub name: String,
    /// The address to which clients send.
    pub vip: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// How a packet reaches its backend.
    pub mode: Mode,
    /// An address that always reaches the idle colour.
    pub preview: Option<SocketAddr>,
    /// Whether the idle colour gets a copy of each datagram (`mirror = "idle"`). Only a UDP service can have it.
    pub is_mirrored: bool,
    /// The settings of [`Mode::Tee`]; in the other modes the default.
    pub tee: Tee,
    /// The settings of [`Mode::Ipip`] and [`Mode::Gue`]; in the other modes the default.
    pub encap: Encap,
    /// The backends by [`Colour`]. Each colour has at least one with a positive weight.
    pub backends: [Vec<BackendSpec>; 2],
    /// How the controller checks these backends, if not as the deployment says.
    pub health: Option<HealthCheck>,
    /// Whether nothing checks these backends, whatever the deployment says (`health = "none"`).
    pub is_unchecked: bool,
}

impl Service {
    /// Backends of one colour.
    pub fn backends(&self, colour: Colour) -> &[BackendSpec] {
        &self.backends[colour as usize]
    }

    /// What the table of a colour leads to: its backends, or its listener in mode `tee`. Without listeners, which an apply chooses, nothing.
    pub(crate) fn targets(&self, colour: Colour) -> Cow<'_, [BackendSpec]> {
        if self.mode != Mode::Tee {
            return Cow::Borrowed(self.backends(colour));
        }
        let listener = self.tee.listen.map(|listen| BackendSpec { address: listen[colour as usize], weight: 1 });
        listener.into_iter().collect()
    }
}

/// The settings of a service in [`Mode::Tee`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tee {
    /// Where `bgctl serve` listens for the service's connections, by [`Colour`]. With `None`, a service that runs keeps its listeners,
    /// and an apply chooses those of a new one.
    pub listen: Option<[SocketAddr; 2]>,
    /// Whether a backend learns the client's address by a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Whether the answers of both colours are compared, and connections with different ones counted.
    pub compare: bool,
}

/// How packets are encapsulated in the modes [`Mode::Ipip`] and [`Mode::Gue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encap {
    /// [`Mode::Gue`]: the UDP port at which the backends receive.
    pub gue_port: u16,
    /// The prefixes that the outer source addresses are taken from: IPv4, then IPv6. With `None`, it is the address from which this host would send to the
    /// backend itself.
    pub outer_source: [Option<Prefix>; 2],
}

impl Default for Encap {
    fn default() -> Self {
        Self { gue_port: bg_common::GUE_PORT, outer_source: [None; 2] }
    }
}

impl Encap {
    /// The prefixes, as in the configuration.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.outer_source.into_iter().flatten()
    }
}

/// One backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    /// The address to which packets are sent.
    pub address: SocketAddr,
    /// Its share of new flows, relative to the other backends. With zero, it keeps its flows and gets no
    /// new ones.
    pub weight: u32,
}

/// An address prefix. The bits after `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The network's address.
    pub addr: IpAddr,
    /// The number of significant bits.
    pub len: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// The name of a protocol in the configuration.
pub const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The name of a mode in the configuration.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Nat => "nat",
        Mode::Local => "local",
        Mode::Tee => "tee",
        Mode::L2dsr => "l2dsr",
        Mode::Ipip => "ipip",
        Mode::Gue => "gue",
    }
}
