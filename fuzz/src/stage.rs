//! What the engine's maps hold, and the addresses that are known there.

use bg_common::{Mode, NextHop, Protocol};
use bg_tests::twin::{BackendAt, Host, Scenario, ServiceAt};
use std::net::{IpAddr, SocketAddr};

/// An interface number that next hops lead out of.
const OUT: u32 = 77;

/// The most bytes of an IP packet that leaves by it.
pub(crate) const MTU: usize = 1500;

/// A moment that is not the beginning of time.
pub(crate) const NOW: u32 = 1_000_000;

pub(crate) const DEPLOYMENTS: u16 = 3;

/// A service with its backends, and whether their next hops are known.
struct Row {
    deployment: u16,
    vip: &'static str,
    preview: Option<&'static str>,
    protocol: Protocol,
    mode: Mode,
    blue: &'static [&'static str],
    green: &'static [&'static str],
    has_hops: bool,
}

const fn row(deployment: u16, vip: &'static str, protocol: Protocol, mode: Mode) -> Row {
    Row { deployment, vip, preview: None, protocol, mode, blue: &[], green: &[], has_hops: true }
}

use Protocol::{Tcp, Udp};

/// All modes, families and protocols; services that share backends; some without a backend of one colour, or without next hops.
const ROWS: [Row; 16] = [
    Row {
        preview: Some("203.0.113.10:9443"),
        blue: &["10.0.1.11:8443", "10.0.1.12:8443"],
        green: &["10.0.2.11:8443"],
        ..row(0, "203.0.113.10:443", Tcp, Mode::Nat)
    },
    Row {
        preview: Some("203.0.113.11:9443"),
        blue: &["10.0.1.11:8443", "10.0.1.12:8443"],
        green: &["10.0.2.11:8443"],
        ..row(1, "203.0.113.11:443", Tcp, Mode::Nat)
    },
    Row {
        preview: Some("203.0.113.10:9053"),
        blue: &["10.0.1.11:53"],
        green: &["10.0.2.11:5353"],
        has_hops: false,
        ..row(0, "203.0.113.10:53", Udp, Mode::Nat)
    },
    Row {
        preview: Some("[2001:db8::10]:9443"),
        blue: &["[fd00:1::11]:8443"],
        green: &["[fd00:2::11]:8443", "[fd00:2::12]:8443"],
        ..row(0, "[2001:db8::10]:443", Tcp, Mode::Nat)
    },
    Row {
        preview: Some("[2001:db8::10]:9053"),
        blue: &["[fd00:1::11]:53"],
        green: &["[fd00:2::11]:53"],
        ..row(1, "[2001:db8::10]:53", Udp, Mode::Local)
    },
    Row { blue: &["10.0.1.11:8080"], ..row(0, "203.0.113.10:80", Tcp, Mode::Nat) },
    Row { blue: &["[fd00:1::11]:8080"], ..row(0, "[2001:db8::10]:80", Udp, Mode::Nat) },
    Row { blue: &["10.0.1.11:54"], ..row(1, "203.0.113.10:54", Udp, Mode::Nat) },
    Row { blue: &["10.0.1.20:80"], green: &["10.0.2.20:80"], ..row(1, "203.0.113.20:80", Tcp, Mode::Local) },
    Row { blue: &["10.0.1.11:443"], green: &["10.0.2.11:443"], ..row(2, "203.0.113.20:443", Tcp, Mode::L2dsr) },
    Row { blue: &["[fd00:1::11]:443"], green: &["[fd00:2::11]:443"], ..row(2, "[2001:db8::20]:443", Udp, Mode::L2dsr) },
    Row { blue: &["10.0.1.11:444"], green: &["10.0.2.11:444"], ..row(2, "203.0.113.20:444", Tcp, Mode::Ipip) },
    Row { blue: &["10.0.1.11:444"], green: &["10.0.2.11:444"], ..row(2, "[2001:db8::20]:444", Tcp, Mode::Ipip) },
    Row { blue: &["[fd00:1::11]:445"], green: &["[fd00:2::11]:445"], ..row(2, "203.0.113.20:445", Udp, Mode::Gue) },
    Row { blue: &["[fd00:1::11]:445"], green: &["[fd00:2::11]:445"], ..row(2, "[2001:db8::20]:445", Udp, Mode::Gue) },
    Row { blue: &["10.0.1.11:446"], green: &["10.0.2.11:446"], ..row(2, "[2001:db8::20]:446", Tcp, Mode::Gue) },
];

/// Clients, and two that are testers.
pub(crate) const CLIENTS: [&str; 5] =
    ["192.0.2.1:1024", "192.0.2.1:1025", "198.51.100.5:1024", "[2001:db8:1::1]:1024", "[2001:db8:7::5]:1024"];

/// Addresses that nobody has.
const NOBODY: [&str; 2] = ["203.0.113.99:443", "[2001:db8::99]:443"];

/// An address with its protocol.
pub(crate) type Endpoint = (SocketAddr, Protocol);

/// The maps, and the addresses that are known there.
pub(crate) struct Stage {
    pub(crate) host: Host,
    /// `maglev` while all backends are up.
    pub(crate) maglev: Vec<u32>,
    /// Virtual addresses, those of previews among them.
    pub(crate) vips: Vec<Endpoint>,
    /// Backends whose replies pass this host.
    pub(crate) backends: Vec<Endpoint>,
    /// Addresses of backends that reply to clients directly.
    pub(crate) direct: Vec<IpAddr>,
    pub(crate) clients: Vec<SocketAddr>,
    pub(crate) nobody: Vec<SocketAddr>,
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

impl Stage {
    /// With flow tables of this many rows, a power of two.
    pub(crate) fn new(rows: u32) -> Self {
        let mut scenario = Scenario::default();
        for _ in 0..DEPLOYMENTS {
            scenario.deployment();
        }
        for row in &ROWS {
            let out_of = row.has_hops.then_some(OUT);
            let backends =
                |all: &[&str]| all.iter().map(|address| BackendAt { address: at(address), out_of }).collect();
            scenario.service(&ServiceAt {
                deployment: row.deployment,
                vip: at(row.vip),
                preview: row.preview.map(at),
                protocol: row.protocol,
                mode: row.mode,
                backends: [backends(row.blue), backends(row.green)],
            });
        }
        scenario.mirror(2);
        scenario.mirror(4);
        for (service, salt) in [(0, 1), (1, 2), (3, 77)] {
            scenario.salt(service, salt);
        }
        scenario.tester(0, at(CLIENTS[2]).ip(), 24);
        scenario.tester(0, at(CLIENTS[4]).ip(), 48);
        let ends = |row: &'static Row| row.blue.iter().chain(row.green).map(|address| (at(address), row.protocol));
        let through = ROWS.iter().filter(|row| !row.mode.is_direct());
        let vips = ROWS.iter().flat_map(|row| {
            [Some(row.vip), row.preview].into_iter().flatten().map(|address| (at(address), row.protocol))
        });
        let maglev = scenario.maglev.clone();
        let host = Host::load_with_rows(scenario, NOW, rows);
        host.set_clocks([1 << 50; 2]);
        let hop = NextHop::pack(OUT, MTU as u32, 0x0200_0000_0077, 0x0600_0000_0001, 0);
        for client in CLIENTS.into_iter().skip(1) {
            host.routes.borrow_mut().insert(at(client).ip(), hop);
        }
        Self {
            host,
            maglev,
            vips: vips.collect(),
            backends: through.flat_map(ends).collect(),
            direct: ROWS.iter().filter(|row| row.mode.is_direct()).flat_map(ends).map(|(at, _)| at.ip()).collect(),
            clients: CLIENTS.map(at).to_vec(),
            nobody: NOBODY.map(at).to_vec(),
        }
    }

    /// The number of services.
    pub(crate) const fn services() -> usize {
        ROWS.len()
    }
}
