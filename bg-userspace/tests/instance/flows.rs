//! The flow table as the programs and user space share it: where an entry stands, and how many flows are open.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use aya::{
    maps::Array,
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use aya_obj::programs::XdpAttachType;
use bg_common::{
    Backend, Be16, Clock, Colour, DeploymentRow, Flow, FlowBackend, FlowKey4, FlowState, LiveFlags, LiveWord,
    SwitchTerms, TICK_SHIFT,
};
use bg_ebpf::flow::{memory::Words as _, table::Stored};
use bg_userspace::{AttachMode, AttachOptions, FlowFilter, Protocol, SwitchRequest, attach, config::OnSwitch};

use crate::{
    flow_map::{FlowMap, array, meta, vip_row},
    lab::{Lab, config},
};

const VIP: [u8; 4] = [203, 0, 113, 10];

/// An instance with room for these flows, native on v0.
pub(crate) fn attached(flows: u32) -> Lab {
    let lab = Lab::new();
    let options = AttachOptions { flows: Some(flows), mode: AttachMode::Native, ..AttachOptions::default() };
    attach(&lab.paths, &["v0".to_owned()], &options).unwrap();
    lab
}

/// Runs a datagram of a client through the pinned program.
pub(crate) fn send(lab: &Lab, client: [u8; 4], source: u16) {
    send_to(lab, client, source, VIP);
}

/// The same to another VIP.
pub(crate) fn send_to(lab: &Lab, client: [u8; 4], source: u16, vip: [u8; 4]) {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(client.into_iter().chain(vip));
    frame.extend(source.to_be_bytes().into_iter().chain(443_u16.to_be_bytes()));
    frame.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    frame.resize(60, 0);
    let program = Xdp::from_pin(lab.paths.program("ingress"), XdpAttachType::Interface).unwrap();
    program.test_run(TestRunOptions { data_in: Some(&frame), ..Default::default() }).unwrap();
}

#[test]
fn each_instance_has_hash_keys_of_its_own_and_keeps_them() {
    let labs = [attached(1000), attached(1000)];
    let keys = labs.each_ref().map(|lab| meta(lab).flow_hash);
    assert_ne!(keys[0], keys[1]);
    assert_ne!(keys[0], bg_common::FlowHash::PUBLIC);

    let [_, lab] = &labs;
    let mut shop = config("shop", &[(1, 1)], &[(1, 1)]);
    shop.deployments[0].services[0].protocol = Protocol::Udp;
    lab.instance().apply(&shop).unwrap();
    let map = FlowMap::open(lab);
    let clients = |from: u8, to: u8| (from..to).map(|octet| [198, 51, 100, octet]);
    clients(0, 40).for_each(|client| send(lab, client, 5000));
    lab.attach("v0", AttachMode::Auto).unwrap();
    assert_eq!(meta(lab).flow_hash, keys[1]);
    clients(0, 80).for_each(|client| send(lab, client, 5000));
    assert_eq!(map.flows().len(), 80, "the new program finds what the old one has opened");
    let vip = vip_row(lab, VIP, 443, Protocol::Udp as u8).unwrap();
    for client in clients(0, 80) {
        let key = FlowKey4 { client: u32::from_ne_bytes(client), port: Be16::new(5000), vip };
        assert!(map.find(&key).is_some(), "{client:?} stands where the keys say");
    }
    let open = lab.instance().flows(&FlowFilter::default()).unwrap();
    assert_eq!(open.len(), 80);
    assert!(open.iter().all(|flow| flow.backend.to_string() == "10.0.0.1:8443" && flow.via == "user"));
    let listed: Vec<_> = open.iter().map(|flow| flow.client).collect();
    let expected: Vec<_> = clients(0, 80).map(|client| (Ipv4Addr::from(client), 5000).into()).collect();
    assert_eq!(listed, expected);
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Fills the table with flows of all sorts.
fn fill(lab: &Lab, flows: u32, now: u32, silent: bool) {
    let map = FlowMap::open(lab);
    let backends: Array<_, Backend> = array(lab, "backends");
    let backends: Vec<(u32, Backend)> = (0..16)
        .map(|slot| (slot, backends.get(&slot, 0).unwrap()))
        .filter(|(_, backend)| backend.identity.in_use == 1)
        .collect();
    let mut numbers = Numbers(1);
    let mut evicted = 0;
    for number in 0..flows {
        let (slot, backend) = backends[numbers.below(backends.len() as u64) as usize];
        let [a, b, c, d] = number.to_be_bytes();
        let client = u32::from_ne_bytes([198, 18 | a, b, c]);
        let key = FlowKey4 { client, port: Be16::new(u16::from(d) + 1024), vip: 2 * backend.service };
        let epoch = backend.identity.epoch + u32::from(numbers.one_in(10));
        let mut bits = 0;
        for (bit, chance) in [
            (FlowState::IDLE_ONLY, 10),
            (FlowState::CLIENT_FIN, 10),
            (FlowState::BACKEND_FIN, 10),
            (FlowState::CLIENT_RESET, 20),
            (FlowState::BACKEND_RESET, 20),
        ] {
            bits |= if numbers.one_in(chance) { bit } else { 0 };
        }
        bits |= if numbers.one_in(10) { 0 } else { FlowState::CONFIRMED };
        // Far from each limit, so that a few ticks more or less do not matter.
        let silence = if silent { [0, 2, 100, 600, 20_000, 1_000_000][numbers.below(6) as usize] } else { 1 };
        let flow = Flow {
            // A limit so long that none is taken for over when a place is chosen.
            state: FlowState(bits).with_limit(u32::MAX),
            backend: FlowBackend::new(slot, epoch),
            generation: 1 + number % 3,
            last_seen: now.wrapping_sub(silence),
            ..Flow::default()
        };
        let stored = map.insert(&key, &flow, now);
        assert_ne!(stored, Stored::No);
        evicted += u32::from(stored == Stored::Evicted);
    }
    assert!(evicted <= flows / 1000, "{evicted} of {flows} were evicted at half load");
}

/// Open flows of the first deployment by colour, counted in another way than the library's.
fn count(lab: &Lab, now: u32) -> [u64; 2] {
    let backends: Array<_, Backend> = array(lab, "backends");
    let backends: Vec<Backend> = (0..16).map(|slot| backends.get(&slot, 0).unwrap()).collect();
    let row = array::<DeploymentRow>(lab, "deployments").get(&0, 0).unwrap();
    let word = array::<LiveWord>(lab, "live").get(&0, 0).unwrap();
    let terms = array::<[SwitchTerms; 2]>(lab, "terms").get(&0, 0).unwrap()[word.generation() as usize % 2];
    let mut counts = [0; 2];
    for (_, flow) in FlowMap::open(lab).flows() {
        let backend = backends[flow.backend.slot() as usize];
        let limit = match (backend.protocol, flow.state.has(FlowState::CONFIRMED)) {
            (17, _) => row.udp_idle,
            (_, true) => row.tcp_idle,
            (_, false) => row.tcp_opening,
        };
        let is_live = backend.colour == word.live() as u8;
        let has = |bits| flow.state.has(bits);
        let is_over = flow.backend != FlowBackend::new(flow.backend.slot(), backend.identity.epoch)
            || has(FlowState::CLIENT_FIN | FlowState::BACKEND_FIN)
            || has(FlowState::CLIENT_RESET)
            || has(FlowState::BACKEND_RESET)
            || now.wrapping_sub(flow.last_seen) > limit
            || (is_live && has(FlowState::IDLE_ONLY))
            || flow.generation < terms.ended_before[usize::from(backend.colour)];
        counts[usize::from(backend.colour)] += u64::from(!is_over);
    }
    counts
}

/// An instance whose deployment was cut over once, and now.
fn switched(flows: u32) -> (Lab, u32) {
    let lab = attached(flows);
    let mut shop = config("shop", &[(1, 1), (2, 1)], &[(1, 1), (2, 1)]);
    shop.deployments[0].on_switch = OnSwitch::Cut;
    let mut dns = shop.deployments[0].services[0].clone();
    (dns.name, dns.protocol) = ("dns".to_owned(), Protocol::Udp);
    shop.deployments[0].services.push(dns);
    lab.instance().apply(&shop).unwrap();
    let force = SwitchRequest { force: true, ..SwitchRequest::default() };
    assert_eq!(lab.instance().switch("shop", &force).unwrap().to.live, Colour::Green);
    lab.instance().status(None).unwrap();
    // Reading the status has read the clock.
    let clock: Clock = array(&lab, "clock").get(&0, 0).unwrap();
    (lab, (clock.jiffies >> TICK_SHIFT) as u32)
}

#[test]
fn the_count_of_open_flows_is_that_of_the_table() {
    for flows in [50, 70_000] {
        let (lab, now) = switched(flows);
        fill(&lab, flows, now, true);
        let counted = lab.instance().status(None).unwrap().deployments[0].flows;
        assert_eq!([counted.blue, counted.green], count(&lab, now), "{flows}");
        assert!(counted.blue > 0 && counted.green > 0);
        let listed =
            lab.instance().flows(&FlowFilter { deployment: Some("shop".into()), ..FlowFilter::default() }).unwrap();
        assert_eq!(listed.len() as u64, counted.blue + counted.green);
    }
}

#[test]
fn a_drain_ends_when_it_has_lasted_a_minute_and_surely_waits_for_no_flow() {
    let lab = attached(1000);
    let mut shop = config("shop", &[(1, 1)], &[(1, 1)]);
    shop.deployments[0].services[0].protocol = Protocol::Udp;
    lab.instance().apply(&shop).unwrap();
    send(&lab, [198, 51, 100, 1], 5000);
    let force = SwitchRequest { force: true, ..SwitchRequest::default() };
    lab.instance().switch("shop", &force).unwrap();
    let live = array::<LiveWord>(&lab, "live");
    let is_draining = || live.get(&0, 0).unwrap().flags().has(LiveFlags::DRAINING);
    let is_draining_after_status = || {
        lab.instance().status(None).unwrap();
        is_draining()
    };
    let mut terms = array::<[SwitchTerms; 2]>(&lab, "terms");
    let began = terms.get(&0, 0).unwrap()[0].drain_began;
    assert_ne!(began, 0);
    let mut begin = |drain_began| {
        let [even, odd] = terms.get(&0, 0).unwrap();
        terms.set(0, [SwitchTerms { drain_began, ..even }, odd], 0).unwrap();
    };
    // 120 seconds at the highest timer frequency, and more at others.
    let long_ago = began.wrapping_sub((120 * 1000) >> TICK_SHIFT);
    begin(long_ago);
    assert!(is_draining_after_status(), "the flow is open");

    let vip = vip_row(&lab, VIP, 443, Protocol::Udp as u8).unwrap();
    let key = FlowKey4 { client: u32::from_ne_bytes([198, 51, 100, 1]), port: Be16::new(5000), vip };
    let map = FlowMap::open(&lab);
    let row = map.find(&key).unwrap().words();
    row.store_low(0, row.load(0) as u32 & !FlowState::STATUS | FlowState::BUSY);
    assert!(is_draining_after_status(), "a program has claimed the row, and may put the flow back");

    row.store(0, 0);
    // 30 seconds at the lowest timer frequency, and less at others.
    let not_long_ago = began.wrapping_sub((30 * 100) >> TICK_SHIFT);
    for (drain_began, why) in [(0, "nobody knows since when"), (not_long_ago, "for less than a minute")] {
        begin(drain_began);
        assert!(is_draining_after_status(), "{why}");
    }
    begin(long_ago);
    let lock = std::fs::File::open(lab.paths.maps()).unwrap();
    lock.lock().unwrap();
    assert!(is_draining_after_status(), "somebody switches");
    lock.unlock().unwrap();
    assert!(!is_draining_after_status());
}

/// `cargo test --release -p bg-userspace --test instance a_million -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn a_million_flows_are_counted_in_milliseconds() {
    const FLOWS: u32 = 1_000_000;
    let cpu_time = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    };
    // The time of all threads beside that of the clock: it tells more on a machine that is busy with something else.
    let time = |lab: &Lab| {
        let instance = lab.instance();
        let mut times: Vec<_> = (0..21)
            .map(|_| {
                let start = (Instant::now(), cpu_time());
                instance.status(None).unwrap();
                (start.0.elapsed(), cpu_time() - start.1)
            })
            .collect();
        times.sort();
        let mut cpu: Vec<_> = times.iter().map(|(_, cpu)| *cpu).collect();
        cpu.sort();
        format!("fastest {:?}, median {:?}; CPU time {:?}, {:?}", times[0].0, times[10].0, cpu[0], cpu[10])
    };
    println!("status of an instance with room for two flows: {}", time(&switched(2).0));
    let (lab, now) = switched(FLOWS);
    println!("with room for {FLOWS}: {}", time(&lab));
    fill(&lab, FLOWS, now, false);
    println!("with {FLOWS} flows: {}", time(&lab));
    for words in [&["flows", "--count"][..], &["flows"], &["flows", "--json"]] {
        let start = Instant::now();
        let output = lab.bgctl().args(words).output().unwrap();
        assert!(output.status.success());
        println!("bgctl {}: {:?}, {} bytes", words.join(" "), start.elapsed(), output.stdout.len());
    }
    let (lab, now) = switched(FLOWS);
    fill(&lab, FLOWS, now, true);
    println!("with {FLOWS} flows, many of them silent: {}", time(&lab));
    let counted = lab.instance().status(None).unwrap().deployments[0].flows;
    assert_eq!([counted.blue, counted.green], count(&lab, now));
    println!("{counted:?}");
}
