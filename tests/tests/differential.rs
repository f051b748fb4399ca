//! The engine on the host and the loaded programs, given the same frames, agree in verdict, bytes, flow
//! entries and counters; and what they send has checksums that an independent parser finds right.
//!
//! Needs root: programs are loaded, but attached to nothing.

use bg_common::{Event, LiveFlags, LiveWord, Mode, Protocol, SwitchTerms};
use bg_ebpf::Action;
use bg_tests::{
    frames::{PacketSpec, assert_checksums},
    twin::{BackendAt, Host, Kernel, Program, Scenario, ServiceAt},
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use std::{cell::RefCell, net::SocketAddr};

/// An interface number that next hops lead out of; the loaded maps put loopback in its place.
const OUT: u32 = 77;

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn backends(addresses: &[&str], out_of: Option<u32>) -> Vec<BackendAt> {
    addresses.iter().map(|address| BackendAt { address: at(address), out_of }).collect()
}

/// Two deployments, both families and protocols, both modes, testers, a preview address each, and two services
/// that share backends, so that replies can collide.
fn scenario() -> Scenario {
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
    scenario.service(&ServiceAt {
        deployment: shop,
        vip: at("203.0.113.10:53"),
        preview: None,
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
    scenario.service(&ServiceAt {
        deployment: other,
        vip: at("[2001:db8::10]:53"),
        preview: None,
        protocol: Protocol::Udp,
        mode: Mode::Local,
        backends: [backends(&["[fd00:1::11]:53"], None), backends(&["[fd00:2::11]:53"], None)],
    });
    scenario.tester(shop, "198.51.100.0".parse().expect("an address"), 24);
    scenario.tester(shop, "2001:db8:7::".parse().expect("an address"), 48);
    scenario
}

const CLIENTS: [&str; 5] =
    ["192.0.2.1:1024", "192.0.2.1:1025", "198.51.100.5:1024", "[2001:db8:1::1]:1024", "[2001:db8:7::5]:1024"];
const BACKENDS: [&str; 10] = [
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
/// Virtual addresses, and two that are none.
const VIPS: [&str; 10] = [
    "203.0.113.10:443",
    "203.0.113.10:9443",
    "203.0.113.11:443",
    "203.0.113.11:9443",
    "203.0.113.10:53",
    "203.0.113.99:443",
    "[2001:db8::10]:443",
    "[2001:db8::10]:9443",
    "[2001:db8::10]:53",
    "[2001:db8::99]:443",
];

/// Two ends of one family: mostly a client and a virtual address, or a backend and a client.
fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let pairs = |from: &[&str], to: &[&str]| {
        let pairs = from.iter().flat_map(|from| to.iter().map(|to| (at(from), at(to))));
        select(pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4()).collect::<Vec<_>>())
    };
    let all = [&CLIENTS[..], &BACKENDS, &VIPS].concat();
    prop_oneof![5 => pairs(&CLIENTS, &VIPS), 4 => pairs(&BACKENDS, &CLIENTS), 1 => pairs(&all, &all)]
}

/// A packet, and what happened to it on the way.
#[derive(Clone, Debug)]
struct Spec {
    packet: PacketSpec,
    damage: Damage,
}

#[derive(Clone, Debug)]
enum Damage {
    None,
    CutTo(usize),
    Flip(usize, u8),
}

#[derive(Clone, Debug)]
enum Step {
    Packet(Spec),
    /// Makes the other colour of a deployment live.
    Switch {
        deployment: usize,
        cut: bool,
    },
}

fn spec() -> impl Strategy<Value = Spec> {
    let damage = prop_oneof![
        8 => Just(Damage::None),
        1 => (0usize..120).prop_map(Damage::CutTo),
        2 => (0usize..100, any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
    ];
    (
        ends(),
        prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)],
        select(vec![0x02u8, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x03, 0x00]),
        (select(vec![1u32, 2]), select(vec![2u32, 3, 0x7000_0000])),
        select(vec![0u8, 1, 2, 64, 255]),
        proptest::collection::vec(any::<u8>(), 0..48),
        prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2), 1 => Just(3)],
        prop_oneof![6 => Just(0u8), 1 => 1u8..=10],
        any::<bool>(),
        damage,
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

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => spec().prop_map(Step::Packet),
        1 => (0usize..2, any::<bool>()).prop_map(|(deployment, cut)| Step::Switch { deployment, cut }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The frame, damaged, and cut no shorter than the kernel's test runs allow: an Ethernet header for XDP, the
/// network header too for tc.
fn frame(spec: &Spec, program: Program) -> Vec<u8> {
    let shortest = match (program, spec.packet.from) {
        (Program::Xdp, _) => 14,
        (_, SocketAddr::V4(_)) => 14 + 20,
        (_, SocketAddr::V6(_)) => 14 + 40,
    };
    let mut bytes = spec.packet.frame();
    match spec.damage {
        Damage::None => {}
        Damage::CutTo(len) => bytes.truncate(len.max(shortest)),
        Damage::Flip(at, bits) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bits;
            }
        }
    }
    bytes
}

/// The switch, as user space makes it.
fn switch(scenario: &mut Scenario, deployment: usize, cut: bool) {
    let (_, word, terms) = &mut scenario.deployments[deployment];
    let generation = word.generation() + 1;
    let mut new = SwitchTerms { drain_deadline: 0, ..terms[word.terms_slot()] };
    let mut flags = LiveFlags::NONE;
    if cut {
        new.ended_before[word.live() as usize] = generation;
    } else {
        flags = flags.with(LiveFlags::DRAINING);
    }
    if new.ended_before != [0, 0] {
        flags = flags.with(LiveFlags::CUT);
    }
    *word = LiveWord::new(generation, flags, word.target_share(), word.live().other().full_share());
    terms[word.terms_slot()] = new;
}

/// Runs the same steps through the host and one loaded program.
fn agree(kernel: &mut Kernel, program: Program, steps: &[Step]) -> [u64; Event::COUNT as usize] {
    let mut host = Host::load(scenario(), kernel.tick().expect("the clock"));
    kernel.forget_flows().expect("forget");
    kernel.fill(&host.scenario).expect("fill");
    let events_before = kernel.all_events().expect("events");
    let traffic_before: Vec<_> =
        rows().map(|(service, colour)| kernel.traffic(service, colour).expect("traffic")).collect();
    for step in steps {
        match step {
            Step::Switch { deployment, cut } => {
                switch(&mut host.scenario, *deployment, *cut);
                kernel.set_deployments(&host.scenario).expect("switch");
            }
            Step::Packet(spec) => {
                kernel.refresh_next_hops(&host.scenario).expect("refresh");
                let bytes = frame(spec, program);
                // Only replies are restored on the way out; what opens their flows comes in.
                let program = match program {
                    Program::TcEgress if !BACKENDS.iter().any(|backend| at(backend) == spec.packet.from) => {
                        Program::TcIngress
                    }
                    program => program,
                };
                let mut expected = match program {
                    Program::Xdp => host.early(&bytes),
                    Program::TcEgress => host.egress(&bytes),
                    Program::TcIngress => host.ingress(&bytes),
                };
                // Untouched and handed on looks the same from outside.
                if expected.frame == bytes && matches!(expected.action, Action::Deliver | Action::Defer) {
                    expected.action = Action::Pass;
                }
                let found = kernel.run(program, &bytes).expect("run");
                if expected.action == Action::Drop {
                    // A dropped frame's bytes are nobody's business.
                    assert_eq!(found.action, Action::Drop, "{spec:?}");
                    continue;
                }
                assert_eq!(found, expected, "{spec:?}");
                let rewritten = matches!(found.action, Action::Redirect | Action::Deliver);
                if rewritten && matches!(spec.damage, Damage::None) {
                    assert_checksums(&found.frame);
                }
            }
        }
    }
    assert_eq!(kernel.flows().expect("flows"), host.flows(), "flow entries");
    let events = kernel.all_events().expect("events");
    for event in Event::ALL {
        let row = event as usize;
        assert_eq!(events[row] - events_before[row], host.events(event), "{event:?}");
    }
    for ((service, colour), before) in rows().zip(traffic_before) {
        let (after, expected) = (kernel.traffic(service, colour).expect("traffic"), host.traffic(service, colour));
        assert_eq!(after.packets - before.packets, expected.packets, "packets of {service} {colour}");
        assert_eq!(after.bytes - before.bytes, expected.bytes, "bytes of {service} {colour}");
        assert_eq!(after.flows_opened - before.flows_opened, expected.flows_opened, "flows of {service} {colour}");
    }
    host.all_events()
}

fn rows() -> impl Iterator<Item = (u16, u8)> {
    (0..5).flat_map(|service| [(service, 0), (service, 1)])
}

fn cases() -> u32 {
    if std::env::var_os("BG_FULL").is_some() { 20_000 } else { 1_500 }
}

fn compare(program: Program) {
    // This machine's routes lead somewhere, those of the host engine's world nowhere.
    // SAFETY: the namespace of this thread alone changes.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    let kernel = RefCell::new(Kernel::load(4096).expect("load"));
    let config = ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() };
    let seen = RefCell::new([0; Event::COUNT as usize]);
    TestRunner::new(config)
        .run(&steps(), |steps| {
            // A panic is what proptest shrinks from.
            let events = agree(&mut kernel.borrow_mut(), program, &steps);
            seen.borrow_mut().iter_mut().zip(events).for_each(|(sum, count)| *sum += count);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    // Agreement on packets that nothing happens to would prove nothing.
    let of_both = [Event::Malformed, Event::ReplyCollision, Event::SecondChance];
    // XDP leaves these to tc, which counts them.
    let of_tc = [Event::NextHopByStack, Event::TtlExpired];
    for event in of_both.into_iter().chain(of_tc.into_iter().filter(|_| program != Program::Xdp)) {
        assert_ne!(seen.borrow()[event as usize], 0, "{event:?} never happened");
    }
}

#[test]
fn xdp_does_what_the_host_engine_does() {
    compare(Program::Xdp);
}

#[test]
fn tc_ingress_does_what_the_host_engine_does() {
    compare(Program::TcIngress);
}

#[test]
fn tc_egress_does_what_the_host_engine_does() {
    compare(Program::TcEgress);
}
