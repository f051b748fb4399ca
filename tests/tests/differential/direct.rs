//! Services whose backends reply to clients directly: random packets, errors and switches, by both programs that send to such backends, and by
//! those that explain.

use super::*;
use crate::routes::text;
use bg_common::Mode;
use bg_tests::{
    frames::ErrorSpec,
    twin::{BackendAt, Scenario, ServiceAt},
};
use etherparse::{Ipv4Header, Ipv6Header};
use std::net::IpAddr;

/// Mode, protocol, VIP, and a backend of each colour.
const SERVICES: [(Mode, Protocol, &str, [&str; 2]); 10] = [
    (Mode::L2dsr, Protocol::Tcp, "203.0.113.10:443", ["10.0.1.11:443", "10.0.2.11:443"]),
    (Mode::Ipip, Protocol::Tcp, "203.0.113.10:444", ["10.0.1.11:444", "10.0.2.11:444"]),
    (Mode::Gue, Protocol::Tcp, "203.0.113.10:445", ["[fd00:1::11]:445", "[fd00:2::11]:445"]),
    (Mode::Ipip, Protocol::Udp, "203.0.113.10:53", ["[fd00:1::11]:53", "[fd00:2::11]:53"]),
    (Mode::Gue, Protocol::Udp, "203.0.113.10:54", ["10.0.1.11:54", "10.0.2.11:54"]),
    (Mode::L2dsr, Protocol::Udp, "[2001:db8::10]:443", ["[fd00:1::11]:443", "[fd00:2::11]:443"]),
    (Mode::Ipip, Protocol::Tcp, "[2001:db8::10]:444", ["10.0.1.11:444", "10.0.2.11:444"]),
    (Mode::Gue, Protocol::Tcp, "[2001:db8::10]:445", ["[fd00:1::11]:445", "[fd00:2::11]:445"]),
    (Mode::Gue, Protocol::Udp, "[2001:db8::10]:53", ["10.0.1.11:53", "10.0.2.11:53"]),
    (Mode::Ipip, Protocol::Udp, "[2001:db8::10]:54", ["[fd00:1::11]:54", "[fd00:2::11]:54"]),
];

const CLIENTS_OF_ALL: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// What happens.
#[derive(Clone, Debug)]
enum Happens {
    Packet(Sent),
    /// A router complains of a reply to such a packet.
    Error(Sent),
    /// A router complains of the last packet that was sent on in outer headers.
    Relayed(Complaint),
    Switch(Ending),
}

/// An error about a packet in outer headers.
#[derive(Clone, Debug)]
struct Complaint {
    /// Which of the errors that there are.
    kind: usize,
    mtu: u32,
    /// Bytes that are quoted at most.
    quoted: usize,
    /// A byte of them that is changed.
    changed: Option<usize>,
    options: u8,
}

impl Complaint {
    /// About this frame.
    fn error(&self, sent: &[u8]) -> Vec<u8> {
        const KINDS: [[[u8; 2]; 6]; 2] =
            [[[3, 4], [3, 4], [3, 1], [11, 0], [12, 0], [8, 0]], [[2, 0], [2, 0], [1, 0], [3, 0], [4, 1], [128, 0]]];
        let packet = bg_tests::frames::packet_in(sent);
        let is_v6 = packet[0] >> 4 == 6;
        let source: IpAddr = if is_v6 {
            <[u8; 16]>::try_from(&packet[8..24]).expect("sixteen bytes").into()
        } else {
            <[u8; 4]>::try_from(&packet[12..16]).expect("four bytes").into()
        };
        let router = if is_v6 { "2001:db8:9::9" } else { "198.51.100.9" }.parse().expect("an address");
        let mut quoted = packet[..packet.len().min(self.quoted)].to_vec();
        if let Some(byte) = self.changed.and_then(|changed| quoted.get_mut(changed)) {
            *byte ^= 1;
        }
        let error = ErrorSpec::too_big(router, source, sent);
        let kind = KINDS[usize::from(is_v6)][self.kind];
        let options = if is_v6 { 0 } else { self.options };
        ErrorSpec { kind, rest: self.mtu.to_be_bytes(), quoted, options, ..error }.frame()
    }
}

fn complaint() -> impl Strategy<Value = Complaint> {
    let mtus = vec![0, 68, 100, 576, 1200, 1280, 1300, 1350, 1400, 1499, 1500, 9000];
    let lengths = vec![8, 20, 40, 47, 48, 60, 68, 80, 88, 100, 128, 400, 548, 1232];
    let changed = prop_oneof![2 => Just(None), 1 => (0..120_usize).prop_map(Some)];
    (0..6_usize, select(mtus), select(lengths), changed, select(vec![0, 0, 0, 1]))
        .prop_map(|(kind, mtu, quoted, changed, options)| Complaint { kind, mtu, quoted, changed, options })
}

/// A packet of a client.
#[derive(Clone, Debug)]
struct Sent {
    service: usize,
    port: u16,
    flags: u8,
    len: usize,
    ttl: u8,
    tags: u8,
    options: u8,
    without_udp_checksum: bool,
    /// DSCP and ECN.
    tos: u8,
    may_be_fragmented: bool,
    /// Bytes that are cut off.
    cut: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    let lengths = vec![0, 1, 6, 7, 1180, 1240, 1395, 1396, 1400, 1407, 1408, 1412, 1420, 1440, 1448, 1460, 1472, 1473];
    (
        (0..SERVICES.len(), 1024..1028_u16, select(FLAGS.to_vec()), select(lengths)),
        (select(vec![64, 64, 64, 2, 1]), select(vec![0, 0, 0, 0, 1]), select(vec![0, 0, 0, 1, 10])),
        (any::<bool>(), any::<u8>(), any::<bool>(), select(vec![0, 0, 0, 0, 1, 9, 30])),
    )
        .prop_map(|((service, port, flags, len), (ttl, tags, options), rest)| {
            let (without_udp_checksum, tos, may_be_fragmented, cut) = rest;
            Sent { service, port, flags, len, ttl, tags, options, without_udp_checksum, tos, may_be_fragmented, cut }
        })
}

fn events() -> impl Strategy<Value = Vec<Happens>> {
    let event = prop_oneof![
        20 => sent().prop_map(Happens::Packet),
        4 => sent().prop_map(Happens::Error),
        8 => complaint().prop_map(Happens::Relayed),
        1 => select(vec![Ending::Cut, Ending::Drain, Ending::Drained]).prop_map(Happens::Switch),
    ];
    proptest::collection::vec(event, 1..40)
}

impl Sent {
    /// Bytes of the outer headers.
    fn room(&self) -> usize {
        let (mode, _, _, [backend, _]) = SERVICES[self.service];
        let ip = if at(backend).is_ipv4() { 20 } else { 40 };
        match mode {
            Mode::Ipip => ip,
            Mode::Gue => ip + 12,
            _ => 0,
        }
    }

    fn spec(&self) -> PacketSpec {
        let (_, protocol, vip, _) = SERVICES[self.service];
        let vip = at(vip);
        let client = if vip.is_ipv4() { "192.0.2.1" } else { "2001:db8:1::1" }.parse().expect("an address");
        let client = SocketAddr::new(client, self.port);
        let spec = match protocol {
            Protocol::Tcp => PacketSpec::tcp(client, vip, self.flags),
            Protocol::Udp => PacketSpec::udp(client, vip),
        };
        PacketSpec {
            payload: vec![0x5a; self.len],
            ttl: self.ttl,
            tags: self.tags,
            options: if vip.is_ipv4() { self.options } else { 0 },
            without_udp_checksum: self.without_udp_checksum,
            ..spec
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = self.spec().frame();
        let at = 14 + 4 * usize::from(self.tags);
        if frame[at] >> 4 == 4 {
            let (mut ip, _) = Ipv4Header::from_slice(&frame[at..]).expect("IPv4");
            ip.dscp = (self.tos >> 2).try_into().expect("six bits");
            ip.ecn = (self.tos & 3).try_into().expect("two bits");
            (ip.dont_fragment, ip.identification) = (!self.may_be_fragmented, 0x1234);
            ip.header_checksum = ip.calc_header_checksum();
            let bytes = ip.to_bytes();
            frame[at..at + bytes.len()].copy_from_slice(&bytes);
        } else {
            let (mut ip, _) = Ipv6Header::from_slice(&frame[at..]).expect("IPv6");
            ip.traffic_class = self.tos;
            frame[at..at + 40].copy_from_slice(&ip.to_bytes());
        }
        // A test run of tc wants the network header whole.
        let header = if frame[at] >> 4 == 4 { 20 } else { 40 };
        frame.truncate(frame.len() - self.cut.min(frame.len() - at - header));
        frame
    }

    /// An error about what a backend has replied.
    fn error(&self) -> Vec<u8> {
        let spec = self.spec();
        let reply = PacketSpec { from: spec.to, to: spec.from, tags: 0, ..spec.clone() };
        let router = if spec.to.is_ipv4() { "198.51.100.9" } else { "2001:db8:9::9" }.parse().expect("an address");
        let error = ErrorSpec::too_big(router, spec.to.ip(), &reply.frame());
        let quoted = error.quoted[..error.quoted.len().min(self.len.max(60))].to_vec();
        ErrorSpec { ttl: self.ttl, tags: self.tags, quoted, ..error }.frame()
    }
}

fn scenario_of() -> Scenario {
    let mut scenario = Scenario::default();
    let deployment = scenario.deployment();
    // Switches are made of two.
    scenario.deployment();
    for (nth, (mode, protocol, vip, backends)) in SERVICES.into_iter().enumerate() {
        let backends = backends.map(|address| vec![BackendAt { address: at(address), out_of: Some(OUT) }]);
        scenario.service(&ServiceAt { deployment, vip: at(vip), preview: None, protocol, mode, backends });
        if nth % 2 == 0 {
            for tunnel in scenario.tunnels.iter_mut().rev().take(2) {
                tunnel.spread = 0x0000_ffff_u32.to_be();
                tunnel.source.0[if tunnel.source.0[3] == 0 { 0 } else { 3 }] &= !tunnel.spread;
            }
        }
    }
    scenario
}

/// Runs events by the host and one loaded program. Returns what was counted, and last how many errors about outer headers were passed on.
fn run_events(subject: &mut Subject, program: Program, events: &[Happens]) -> Result<Vec<u64>, TestCaseError> {
    let now = subject.kernel.tick().expect("the clock");
    let host = Host::load(scenario_of(), now);
    for client in CLIENTS_OF_ALL {
        let hop = NextHop::pack(OUT, 1500, mac(DMAC), mac(SMAC), 0);
        host.routes.borrow_mut().insert(client.parse().expect("an address"), hop);
    }
    host.set_clocks([1 << 50; 2]);
    let (mut last, mut relayed): (Option<Vec<u8>>, u64) = (None, 0);
    subject.kernel.forget_flows().expect("forget");
    subject.kernel.fill(&host.scenario).expect("fill");
    let before = subject.kernel.all_events().expect("events");
    for event in events {
        // The bucket of ICMP errors is full: the host's always is.
        subject.kernel.array::<u64>("error_rate").expect("a map").set(0, 0, 0).expect("set");
        let frame = match event {
            Happens::Packet(sent) => sent.frame(),
            Happens::Error(sent) => sent.error(),
            Happens::Relayed(complaint) => match &last {
                Some(sent) => complaint.error(sent),
                None => continue,
            },
            Happens::Switch(ending) => {
                switches::switch(&host, &mut subject.kernel, 0, *ending);
                continue;
            }
        };
        let found = agree_on_frame(subject, &host, Way::By(program), &frame)?;
        match (event, found) {
            (Happens::Packet(sent), Some(found)) => {
                let is_sent = found.action == Action::Redirect && found.frame.len() == frame.len() + sent.room();
                last = if is_sent && sent.room() != 0 { Some(found.frame) } else { last };
            }
            (Happens::Relayed(_), Some(found)) => relayed += u64::from(found.action == Action::Redirect),
            _ => {}
        }
    }
    assert_eq!(subject.kernel.flows().expect("flows"), host.flows(), "flows");
    let after = subject.kernel.all_events().expect("events");
    for event in Event::ALL {
        assert_eq!(after[event as usize] - before[event as usize], host.events(event), "{event:?}");
    }
    let mut counted = host.all_events().to_vec();
    counted.push(relayed);
    Ok(counted)
}

fn compare_direct(program: Program, explains: bool) {
    // SAFETY: only this thread's namespace changes, and nothing of it is shared by memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    lay_routes().expect("routes");
    for client in CLIENTS_OF_ALL {
        run(&format!("ip route replace {client} dev out")).expect("a route");
        run(&format!("ip neigh replace {client} lladdr {} dev out nud permanent", text(DMAC))).expect("a neighbour");
    }
    let cases = if explains { cases() / 10 } else { cases() / 2 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut kernel = Kernel::load(Sizes { rows: 4096, heads: Host::HEADS }).expect("load");
    let explainer = explains.then(|| Explainer::load(&mut kernel).expect("load"));
    let subject = RefCell::new(Subject { kernel, explainer });
    let seen = RefCell::new(vec![0; Event::COUNT as usize + 1]);
    TestRunner::new(config)
        .run(&events(), |events| {
            let counted = run_events(&mut subject.borrow_mut(), program, &events)?;
            seen.borrow_mut().iter_mut().zip(counted).for_each(|(sum, count)| *sum += count);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    if program == Program::TcIngress && !explains {
        for event in [Event::DirectTooBig, Event::DirectExpired, Event::NextHopByStack, Event::Malformed] {
            assert!(seen.borrow()[event as usize] > 0, "{event:?} has not happened");
        }
        assert!(seen.borrow()[Event::COUNT as usize] > 10, "errors are passed on");
    }
}

#[test]
fn xdp_sends_to_backends_that_reply_directly_as_the_host_engine_does() {
    compare_direct(Program::Xdp, false);
}

#[test]
fn tc_sends_to_backends_that_reply_directly_as_the_host_engine_does() {
    compare_direct(Program::TcIngress, false);
}

#[test]
fn what_is_sent_to_backends_that_reply_directly_is_explained() {
    compare_direct(Program::TcIngress, true);
}
