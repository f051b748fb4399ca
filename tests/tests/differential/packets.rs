//! What the maps hold, and packets to it: whole and damaged, of clients, backends and others.

use bg_common::{Mode, Protocol};
use bg_tests::{
    frames::{ErrorSpec, PacketSpec, ends as ends_of},
    twin::{BackendAt, Program, Scenario, ServiceAt},
};
use proptest::{prelude::*, sample::select};
use std::net::{IpAddr, SocketAddr};

/// An interface number that next hops lead out of; the loaded maps put loopback in its place.
pub(crate) const OUT: u32 = 77;

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn backends(addresses: &[&str], out_of: Option<u32>) -> Vec<BackendAt> {
    addresses.iter().map(|address| BackendAt { address: at(address), out_of }).collect()
}

/// Two deployments, both families and protocols, both modes, testers, a preview address each, two services
/// that share backends, so that replies can collide, though their salts differ, four without a backend of one colour, and, for tc, two
/// with a mirror, at whose idle backends their clients may have flows: by a preview address, and by services of the other deployment that
/// have the same backends the other way round.
pub(crate) fn scenario(program: Program) -> Scenario {
    let mut scenario = Scenario::default();
    let (shop, other) = (scenario.deployment(), scenario.deployment());
    let (blue4, green4) = (["10.0.1.11:8443", "10.0.1.12:8443"], ["10.0.2.11:8443"]);
    for (deployment, vip, preview) in
        [(shop, "203.0.113.10:443", "203.0.113.10:9443"), (other, "203.0.113.11:443", "203.0.113.11:9443")]
    {
        scenario.service(&ServiceAt {
            deployment,
            vip: at(vip),
            preview: Some(at(preview)),
            protocol: Protocol::Tcp,
            mode: Mode::Nat,
            backends: [backends(&blue4, Some(OUT)), backends(&green4, Some(OUT))],
        });
    }
    let udp4 = scenario.service(&ServiceAt {
        deployment: shop,
        vip: at("203.0.113.10:53"),
        preview: Some(at("203.0.113.10:9053")),
        protocol: Protocol::Udp,
        mode: Mode::Nat,
        backends: [backends(&["10.0.1.11:53"], Some(OUT)), backends(&["10.0.2.11:5353"], None)],
    });
    scenario.service(&ServiceAt {
        deployment: shop,
        vip: at("[2001:db8::10]:443"),
        preview: Some(at("[2001:db8::10]:9443")),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        backends: [
            backends(&["[fd00:1::11]:8443"], Some(OUT)),
            backends(&["[fd00:2::11]:8443", "[fd00:2::12]:8443"], Some(OUT)),
        ],
    });
    let udp6 = scenario.service(&ServiceAt {
        deployment: other,
        vip: at("[2001:db8::10]:53"),
        preview: Some(at("[2001:db8::10]:9053")),
        protocol: Protocol::Udp,
        mode: Mode::Local,
        backends: [backends(&["[fd00:1::11]:53"], None), backends(&["[fd00:2::11]:53"], None)],
    });
    // Their green is not ready.
    for (vip, preview, blue, protocol) in [
        ("203.0.113.10:80", "203.0.113.10:9080", "10.0.1.11:8080", Protocol::Tcp),
        ("[2001:db8::10]:80", "[2001:db8::10]:9080", "[fd00:1::11]:8080", Protocol::Tcp),
        ("203.0.113.10:80", "203.0.113.10:9080", "10.0.1.11:8080", Protocol::Udp),
        ("[2001:db8::10]:80", "[2001:db8::10]:9080", "[fd00:1::11]:8080", Protocol::Udp),
    ] {
        scenario.service(&ServiceAt {
            deployment: shop,
            vip: at(vip),
            preview: Some(at(preview)),
            protocol,
            mode: Mode::Nat,
            backends: [backends(&[blue], Some(OUT)), Vec::new()],
        });
    }
    for (deployment, vip, blue, green, mode) in [
        (other, "203.0.113.11:53", "10.0.2.11:5353", "10.0.1.11:53", Mode::Nat),
        (shop, "[2001:db8::11]:53", "[fd00:2::11]:53", "[fd00:1::11]:53", Mode::Local),
    ] {
        scenario.service(&ServiceAt {
            deployment,
            vip: at(vip),
            preview: None,
            protocol: Protocol::Udp,
            mode,
            backends: [backends(&[blue], None), backends(&[green], None)],
        });
    }
    // XDP would leave all of their datagrams to tc.
    if program != Program::Xdp {
        scenario.mirror(udp4);
        scenario.mirror(udp6);
    }
    for (service, salt) in [(0, 1), (1, 2), (3, 77), (9, 5)] {
        scenario.salt(service, salt);
    }
    scenario.tester(shop, "198.51.100.0".parse().expect("an address"), 24);
    scenario.tester(shop, "2001:db8:7::".parse().expect("an address"), 48);
    scenario
}

/// The number of services of the scenario.
pub(crate) const SERVICES: usize = 11;
pub(crate) const CLIENTS: [&str; 5] =
    ["192.0.2.1:1024", "192.0.2.1:1025", "198.51.100.5:1024", "[2001:db8:1::1]:1024", "[2001:db8:7::5]:1024"];
pub(crate) const BACKENDS: [&str; 10] = [
    "10.0.1.11:8443",
    "10.0.1.12:8443",
    "10.0.2.11:8443",
    "10.0.1.11:53",
    "10.0.2.11:5353",
    "[fd00:1::11]:8443",
    "[fd00:2::11]:8443",
    "[fd00:2::12]:8443",
    "[fd00:1::11]:53",
    "[fd00:2::11]:53",
];
/// The backends that routes lead to. They are nobody's client: how long a next hop towards a client is trusted, the clock
/// decides, which the kernel's world has alone.
pub(crate) const ROUTED: [&str; 2] = ["10.0.1.11", "fd00:1::11"];
/// Virtual addresses, and two that are none.
pub(crate) const VIPS: [&str; 18] = [
    "203.0.113.10:443",
    "203.0.113.10:9443",
    "203.0.113.11:443",
    "203.0.113.11:9443",
    "203.0.113.10:53",
    "203.0.113.10:9053",
    "203.0.113.11:53",
    "203.0.113.99:443",
    "203.0.113.10:80",
    "203.0.113.10:9080",
    "[2001:db8::10]:80",
    "[2001:db8::10]:9080",
    "[2001:db8::10]:443",
    "[2001:db8::10]:9443",
    "[2001:db8::10]:53",
    "[2001:db8::10]:9053",
    "[2001:db8::11]:53",
    "[2001:db8::99]:443",
];

/// Two ends of one family: mostly a client and a virtual address, or a backend and a client.
fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let pairs = |from: &[&str], to: &[&str]| {
        let pairs = from.iter().flat_map(|from| to.iter().map(|to| (at(from), at(to))));
        select(pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()).collect::<Vec<_>>())
    };
    let all = [&CLIENTS[..], &BACKENDS, &VIPS].concat();
    let is_client = |from: &str| !ROUTED.iter().any(|address| at(from).ip().to_string() == *address);
    let clients: Vec<&str> = all.iter().copied().filter(|from| is_client(from)).collect();
    prop_oneof![5 => pairs(&CLIENTS, &VIPS), 4 => pairs(&BACKENDS, &CLIENTS), 1 => pairs(&clients, &all)]
}

/// Virtual addresses that lead to the backends of a mirrored service, which are the first of each family.
const MIRRORED: [&str; 6] = [
    "203.0.113.10:53",
    "203.0.113.10:9053",
    "203.0.113.11:53",
    "[2001:db8::10]:53",
    "[2001:db8::10]:9053",
    "[2001:db8::11]:53",
];

/// A datagram of a client to one of them.
pub(crate) fn mirrored() -> impl Strategy<Value = Spec> {
    let pairs = MIRRORED.iter().flat_map(|to| CLIENTS.iter().map(|from| (at(from), at(to))));
    let pairs = pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()).collect::<Vec<_>>();
    select(pairs).prop_map(|(from, to)| Spec { packet: PacketSpec::udp(from, to), damage: Damage::None })
}

/// A packet, and what happened to it on the way.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) packet: PacketSpec,
    pub(crate) damage: Damage,
}

#[derive(Clone, Debug)]
pub(crate) enum Damage {
    None,
    CutTo(usize),
    Flip(usize, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        8 => Just(Damage::None),
        1 => (0usize..120).prop_map(Damage::CutTo),
        2 => (0usize..100, any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
    ]
}

/// Flags of TCP: of openings, answers, data, ends, and nonsense.
pub(crate) const FLAGS: [u8; 9] = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x03, 0x00];

pub(crate) fn spec() -> impl Strategy<Value = Spec> {
    (
        ends(),
        prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)],
        select(FLAGS.to_vec()),
        (select(vec![1u32, 2]), select(vec![2u32, 3, 0x7000_0000])),
        select(vec![0u8, 1, 2, 64, 255]),
        prop_oneof![
            7 => proptest::collection::vec(any::<u8>(), 0..48),
            // ICMP errors do not quote all of it.
            1 => proptest::collection::vec(any::<u8>(), 0..1400),
        ],
        prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)],
        prop_oneof![6 => Just(0u8), 1 => 1u8..=10],
        any::<bool>(),
        damage(),
    )
        .prop_map(
            |(
                (from, to),
                protocol,
                flags,
                (sequence, acknowledgment),
                ttl,
                payload,
                tags,
                options,
                without_udp_checksum,
                damage,
            )| {
                let packet = PacketSpec {
                    from,
                    to,
                    protocol,
                    flags,
                    sequence,
                    acknowledgment,
                    ttl,
                    payload,
                    tags,
                    options,
                    without_udp_checksum,
                };
                Spec { packet, damage }
            },
        )
}

/// An ICMP error about a packet, and what happened to it on the way.
#[derive(Clone, Debug)]
pub(crate) struct Complaint {
    /// Whether it is about a reply to the packet.
    is_about_reply: bool,
    /// Whether the receiver of the packet complains, rather than a router.
    is_from_receiver: bool,
    kind: u8,
    /// Bytes that are quoted, at most.
    quoted: usize,
    ttl: u8,
    tags: u8,
    options: u8,
    pub(crate) damage: Damage,
}

pub(crate) fn complaint() -> impl Strategy<Value = Complaint> {
    (
        (any::<bool>(), any::<bool>()),
        prop_oneof![3 => Just(0u8), 1 => 0u8..14],
        prop_oneof![4 => Just(1000usize), 1 => 20usize..70],
        select(vec![1u8, 2, 64]),
        prop_oneof![6 => Just(0u8), 1 => 1u8..=3],
        prop_oneof![6 => Just(0u8), 1 => 1u8..=10],
        damage(),
    )
        .prop_map(|((is_about_reply, is_from_receiver), kind, quoted, ttl, tags, options, damage)| Complaint {
            is_about_reply,
            is_from_receiver,
            kind,
            quoted,
            ttl,
            tags,
            options,
            damage,
        })
}

impl Complaint {
    /// About a packet as it has come, and as it was sent on.
    pub(crate) fn about(&self, packet: &PacketSpec, sent_on: &[u8]) -> ErrorSpec {
        let reply = PacketSpec { from: packet.to, to: packet.from, ..packet.clone() };
        let frame = if self.is_about_reply { reply.frame() } else { sent_on.to_vec() };
        let (from, to) = ends_of(&frame);
        let router: IpAddr =
            if from.is_ipv4() { [198, 18, 0, 1].into() } else { [0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1].into() };
        let sender = if self.is_from_receiver { to.ip() } else { router };
        let mut error = ErrorSpec::too_big(sender, from.ip(), &frame);
        error.quoted.truncate(self.quoted);
        if self.kind != 0 {
            error.kind[0] = self.kind;
        }
        ErrorSpec { ttl: self.ttl, tags: self.tags, options: self.options, ..error }
    }
}

/// A frame, damaged, and cut no shorter than the kernel's test runs allow: an Ethernet header for XDP, the
/// network header too for tc.
pub(crate) fn frame(mut bytes: Vec<u8>, damage: &Damage, program: Program) -> Vec<u8> {
    match *damage {
        Damage::None => {}
        Damage::CutTo(len) => {
            let is_ipv6 = bytes[12..14] == [0x86, 0xdd];
            let network = if program == Program::Xdp {
                0
            } else if is_ipv6 {
                40
            } else {
                20
            };
            bytes.truncate(len.max(14 + network));
        }
        Damage::Flip(at, bits) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bits;
            }
        }
    }
    bytes
}
