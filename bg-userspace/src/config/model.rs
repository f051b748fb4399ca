//! The configuration after it has been understood: what an operator asks for, in types that cannot
//! hold what [`super::parse`] refuses.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bg_common::{Colour, Mode, Protocol};

/// Idle time of a TCP flow unless the configuration says otherwise.
pub const DEFAULT_TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// Idle time of a UDP flow unless the configuration says otherwise.
pub const DEFAULT_UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// All of a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// In the order of the file.
    pub deployments: Vec<Deployment>,
}

/// What is switched: a named set of services with two environments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// 1 to 64 bytes, unique in the file.
    pub name: String,
    /// The live colour at the first apply; later the running state wins.
    pub initial: Colour,
    /// What a switch does to flows that are open, unless it says otherwise itself.
    pub on_switch: OnSwitch,
    /// After this long, a drain ends what is left; `None` is never.
    pub drain_timeout: Option<Duration>,
    /// How long a TCP flow may be silent and still count as open.
    pub tcp_idle_timeout: Duration,
    /// The same for UDP.
    pub udp_idle_timeout: Duration,
    /// Sources that always reach the idle colour.
    pub testers: Vec<Prefix>,
    /// At least one.
    pub services: Vec<Service>,
}

/// What a switch does to flows that are open.
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
    /// Both, as the configuration spells them.
    pub const ALL: [Self; 2] = [Self::Drain, Self::Cut];

    /// As the configuration spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Cut => "cut",
        }
    }
}

/// A virtual address and the backends behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// 1 to 64 bytes, unique in its deployment.
    pub name: String,
    /// Address that clients send to.
    pub vip: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// How a packet reaches its backend.
    pub mode: Mode,
    /// Address that always reaches the idle colour.
    pub preview: Option<SocketAddr>,
    /// Backends by [`Colour`]; each colour has one with a positive weight.
    pub backends: [Vec<BackendSpec>; 2],
}

impl Service {
    /// Backends of one colour.
    pub fn backends(&self, colour: Colour) -> &[BackendSpec] {
        &self.backends[colour as usize]
    }
}

/// One backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    /// Where packets are sent.
    pub address: SocketAddr,
    /// Its share of new flows, relative to its neighbours. Zero keeps the flows it has and gets no
    /// new ones.
    pub weight: u32,
}

/// An address prefix; the bits behind `len` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The network's address.
    pub addr: IpAddr,
    /// Significant bits.
    pub len: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A protocol as the configuration spells it.
pub const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A mode as the configuration spells it.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Nat => "nat",
        Mode::Local => "local",
    }
}
