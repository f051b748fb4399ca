//! `bench datapath`: what a packet costs, without a NIC and without a network stack around it.
//!
//! A wrapper program writes a fresh frame, of the next flow, and tail-calls the program under test; an empty
//! program behind the same wrapper is the baseline. Verdict and counters are checked, so that what is
//! measured is the whole job: parse, flow look-up, rewrite, checksums, next hop, counters, redirect.

use super::{
    edge::{ifindex, wire},
    report::{Axis, Cell, Plot, Report, Series, Table},
    stats::Summary,
    test_run::{EDGE_MAC, PASS, REDIRECT, SENDER_MAC, TX, Wrapper, most_left_to_tc, program, warm},
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result, ensure};
use aya::{
    maps::DevMap,
    programs::{ProgramFd, SchedClassifier},
};
use bg_common::{Backend, FrameTemplate, Mode, NextHop, Protocol};
use bg_tests::{
    Processor, Sandbox,
    twin::{BackendAt, Kernel, Scenario, ServiceAt},
};
use etherparse::PacketBuilder;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Barrier,
    time::Instant,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; each runs every program once.
    #[arg(long, default_value_t = 11)]
    rounds: u32,
    /// Packets a round.
    #[arg(long, default_value_t = 1 << 20)]
    packets: u32,
    /// Numbers of flows, powers of two.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 65_536, 524_288, 1_048_576])]
    flows: Vec<u32>,
    /// A few rounds of few packets: seconds, and figures that are worth little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 3 } else { self.rounds }
    }

    fn packets(&self) -> u32 {
        if self.quick { 1 << 16 } else { self.packets }
    }

    fn flows(&self) -> Vec<u32> {
        if self.quick { vec![1, 65_536] } else { self.flows.clone() }
    }
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    client: IpAddr,
    vip: SocketAddr,
    backend: SocketAddr,
    protocol: Protocol,
    /// Measure the backend's answers rather than the client's packets.
    reply: bool,
    /// In and out by one interface: no redirect.
    one_arm: bool,
    mode: Mode,
}

impl Case {
    fn verdict(&self) -> u32 {
        match (self.mode, self.one_arm) {
            (Mode::Local, _) => PASS,
            (Mode::Nat, true) => TX,
            (Mode::Nat, false) => REDIRECT,
        }
    }

    fn family(&self) -> &'static str {
        if self.vip.is_ipv4() { "IPv4 TCP" } else { "IPv6 TCP" }
    }

    /// Interface that a frame comes in by.
    fn ingress(&self, reply: bool, sides: Sides) -> u32 {
        if reply != self.one_arm { sides.backend } else { sides.client }
    }
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let objects = Objects { bench: build_ebpf::build_bench()?, reference: build_ebpf::build_reference()? };
    let sandbox = Sandbox::create()?;
    let edge = wire(&sandbox)?;
    let sides = Sides { client: ifindex(&edge, "c0")?, backend: ifindex(&edge, "b0")? };
    edge.enter(|| measure(args, &objects, sides))?
}

/// What is loaded beside the object under test.
struct Objects {
    bench: PathBuf,
    reference: PathBuf,
}

/// Backends of a case: the same one in each colour.
const BACKENDS: u32 = 2;

/// Indexes of the edge's interfaces.
#[derive(Clone, Copy)]
struct Sides {
    client: u32,
    backend: u32,
}

fn cases() -> Result<Vec<Case>> {
    let (v4, v6) = ("198.18.0.1".parse()?, "2001:db8:c::1".parse()?);
    let (vip4, vip6): (SocketAddr, SocketAddr) = ("203.0.113.10:443".parse()?, "[2001:db8::10]:443".parse()?);
    let (backend4, backend6): (SocketAddr, SocketAddr) = ("10.0.1.11:8443".parse()?, "[fd00:1::11]:8443".parse()?);
    let case = |name, client, vip, backend, protocol, reply| Case {
        name,
        client,
        vip,
        backend,
        protocol,
        reply,
        one_arm: false,
        mode: Mode::Nat,
    };
    Ok(vec![
        case("IPv4 TCP, client to backend", v4, vip4, backend4, Protocol::Tcp, false),
        Case { one_arm: true, ..case("IPv4 TCP, one-armed", v4, vip4, backend4, Protocol::Tcp, false) },
        case("IPv4 TCP, backend to client", v4, vip4, backend4, Protocol::Tcp, true),
        case("IPv4 UDP, client to backend", v4, vip4, backend4, Protocol::Udp, false),
        case("IPv6 TCP, client to backend", v6, vip6, backend6, Protocol::Tcp, false),
        case("IPv6 TCP, backend to client", v6, vip6, backend6, Protocol::Tcp, true),
    ])
}

/// A loaded object whose flow tables are in use, and the wrapper in front of it.
struct Bench {
    kernel: Kernel,
    wrapper: Wrapper,
    sides: Sides,
}

impl Bench {
    /// Loads the object under test, or another, with room for so many flows at half load.
    fn load(object: Option<&Path>, wrapper: &Path, flows: u32, sides: Sides) -> Result<Self> {
        // An entry for each direction, half of them in use.
        let entries = 4 * flows.max(65_536);
        let kernel = match object {
            Some(path) => Kernel::load_object(path, entries)?,
            None => Kernel::load(entries)?,
        };
        Ok(Self { kernel, wrapper: Wrapper::load(wrapper)?, sides })
    }

    fn ours(&mut self) -> Result<ProgramFd> {
        Ok(program(self.kernel.object(), "ingress")?.fd()?.try_clone()?)
    }

    fn empty(&mut self) -> Result<ProgramFd> {
        self.wrapper.empty()
    }

    /// Forgets all flows and fills the maps for a case.
    fn prepare(&mut self, case: &Case) -> Result<()> {
        self.kernel.forget_flows()?;
        self.kernel.fill(&scenario(case))?;
        let sides = [self.sides.client, self.sides.backend];
        let mut egress: DevMap<_> = self.kernel.object().map_mut("egress").context("egress")?.try_into()?;
        for ifindex in sides {
            egress.set(ifindex, ifindex, None, 0)?;
        }
        // No next hop is known. The scenario says that there is none, which is believed for a second.
        let mut backends = self.kernel.array::<Backend>("backends")?;
        for slot in 0..BACKENDS {
            let backend = backends.get(&slot, 0)?;
            backends.set(slot, Backend { next_hop: NextHop::NONE, ..backend }, 0)?;
        }
        let tc_ingress = self.kernel.object().program("tc_ingress").context("tc_ingress")?;
        let tc_ingress: &SchedClassifier = tc_ingress.try_into()?;
        sides.into_iter().try_for_each(|ifindex| warm(tc_ingress, ifindex))
    }

    /// Sends packets of new flows, so many from the `first` on; ns a packet.
    fn open(&mut self, case: &Case, first: u32, flows: u32) -> Result<f64> {
        let ours = self.ours()?;
        let template = FrameTemplate { first, ..template(case, false, flows, Order::Linear)? };
        self.wrapper.aim(&ours, &template)?;
        // One flow needs more than one packet to count as seen.
        let opened = self.wrapper.run(case.ingress(false, self.sides), flows.max(16), case.verdict());
        let opened = opened.with_context(|| format!("{}; events {:?}", case.name, self.kernel.all_events()))?;
        Ok(opened.ns)
    }

    /// Rounds of packets of a template through the empty program and through ours; each must return this verdict.
    fn rounds(
        &mut self,
        args: &Args,
        name: &str,
        ingress: u32,
        template: &FrameTemplate,
        expected: u32,
    ) -> Result<Rounds> {
        let (ours, empty) = (self.ours()?, self.empty()?);
        let (mut ours_ns, mut empty_ns, mut packets) = (Vec::new(), Vec::new(), 0);
        for _ in 0..args.rounds() {
            self.wrapper.aim(&empty, template)?;
            empty_ns.push(self.wrapper.run(ingress, args.packets(), TX).context("the empty program")?.ns);
            self.wrapper.aim(&ours, template)?;
            let sent = self.wrapper.run(ingress, args.packets(), expected);
            let sent = sent.with_context(|| format!("{name}; events {:?}", self.kernel.all_events()))?;
            ours_ns.push(sent.ns);
            packets += sent.packets;
        }
        Ok(Rounds { ours: Summary::of(ours_ns), empty: Summary::of(empty_ns), packets })
    }

    /// A packet of an open flow, among so many.
    fn open_flow(&mut self, args: &Args, case: &Case, flows: u32) -> Result<Rounds> {
        self.prepare(case)?;
        self.open(case, 0, flows)?;
        let (before, began) = (self.kernel.traffic(0, 0)?, Instant::now());
        let template = template(case, case.reply, flows, Order::Random)?;
        let ingress = case.ingress(case.reply, self.sides);
        let rounds = self.rounds(args, case.name, ingress, &template, case.verdict())?;
        let counted = self.kernel.traffic(0, 0)?;
        // Neither replies nor what XDP leaves to tc.
        let expected = if case.reply || case.mode == Mode::Local { 0 } else { rounds.packets };
        let packets = counted.packets - before.packets;
        let all = expected.saturating_sub(most_left_to_tc(began.elapsed()))..=expected;
        ensure!(all.contains(&packets), "{}: {packets} packets counted, expected {all:?}", case.name);
        let reopened = counted.flows_opened - before.flows_opened;
        // Those that the table had no room for.
        ensure!(reopened * 1000 <= u64::from(flows), "{}: {reopened} of {flows} flows opened again", case.name);
        Ok(rounds)
    }
}

/// What rounds of packets have taken.
struct Rounds {
    ours: Summary,
    empty: Summary,
    /// Packets sent through ours.
    packets: u64,
}

impl Rounds {
    /// Ours, the empty program, and the difference.
    fn cells(&self) -> [Cell; 3] {
        [self.ours.into(), self.empty.into(), (self.ours.median - self.empty.median).into()]
    }
}

fn measure(args: &Args, objects: &Objects, sides: Sides) -> Result<Report> {
    let all = Processor::all()?;
    // The wrapper counts flows on each processor by itself.
    all.last().context("no processor")?.adopt_thread()?;
    let (open, plot) = open_flows(args, objects, sides)?;
    let tables = vec![
        open,
        reference(args, objects, sides)?,
        new_flows(args, objects, sides)?,
        others(args, objects, sides)?,
        processors(args, objects, sides, &all)?,
    ];
    Ok(Report {
        part: "datapath".into(),
        about: "Nanoseconds a packet, by test runs of the loaded program, the frame restored before each run by a \
                wrapper that tail-calls it. An empty program behind the same wrapper is the baseline of the same run. \
                Verdicts and counters are checked. Flows come in random order, and the table has room for twice as \
                many."
            .into(),
        tables,
        plots: vec![plot],
    })
}

fn open_flows(args: &Args, objects: &Objects, sides: Sides) -> Result<(Table, Plot)> {
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for case in cases()? {
        let mut line = Series { name: case.name.into(), points: Vec::new() };
        for flows in args.flows() {
            let mut bench = Bench::load(None, &objects.bench, flows, sides)?;
            let rounds = bench.open_flow(args, &case, flows)?;
            let Rounds { ours, empty, .. } = rounds;
            say(format_args!("{:<30} {flows:>8} flows: {ours} ns, empty program {empty} ns", case.name));
            line.points.push((flows.into(), ours));
            rows.push([case.name.into(), f64::from(flows).into()].into_iter().chain(rounds.cells()).collect());
        }
        lines.push(line);
    }
    let columns = ["packet", "flows", "ours, ns", "empty program, ns", "ours less that, ns"];
    let table = Table {
        title: "A packet of an open flow".into(),
        about: format!("{} rounds of {} packets.", args.rounds(), args.packets()),
        columns: columns.map(Into::into).into(),
        rows,
    };
    let plot = Plot {
        name: "datapath-flows".into(),
        title: "A packet of an open flow, by number of flows".into(),
        x: Axis { label: "open flows".into(), logarithmic: true },
        y: Axis { label: "ns a packet".into(), logarithmic: false },
        series: lines,
    };
    Ok((table, plot))
}

/// The two flow tables side by side.
fn reference(args: &Args, objects: &Objects, sides: Sides) -> Result<Table> {
    let case = &cases()?[0];
    let mut rows = Vec::new();
    for flows in args.flows() {
        let mut row = vec![f64::from(flows).into(), random_line(args, flows)?.into()];
        for object in [None, Some(&*objects.reference)] {
            let mut bench = Bench::load(object, &objects.bench, flows, sides)?;
            row.push(bench.open_flow(args, case, flows)?.ours.into());
        }
        rows.push(row);
    }
    Ok(Table {
        title: "The flow table, beside the kernel's LRU hash in its place".into(),
        about: format!(
            "{}. The same programs with another table behind the same trait. Beside them what this machine takes for one \
             dependent load of a cache line at random, from as many lines as there are flows, in ordinary memory as large \
             as the table: the least that a flow table can add to a packet of one flow of many.",
            case.name
        ),
        columns: ["flows", "one cache line at random, ns", "set-associative, ns", "LRU hash, ns"]
            .map(Into::into)
            .into(),
        rows,
    })
}

/// Nanoseconds for one dependent load of a cache line at random: one line a flow, every other line of the memory.
fn random_line(args: &Args, flows: u32) -> Result<Summary> {
    const LINE: usize = 8;
    let flows = flows.max(2) as usize;
    let mut memory = vec![0_u64; 2 * LINE * flows];
    // Sattolo's algorithm: one cycle through all of them.
    let mut order: Vec<usize> = (0..flows).collect();
    let mut state = 1_u64;
    for last in (1..flows).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % last);
    }
    for (from, to) in order.iter().zip(order.iter().cycle().skip(1)) {
        memory[2 * LINE * from] = 2 * (LINE * to) as u64;
    }
    let mut times = Vec::new();
    let mut at = 0_u64;
    for _ in 0..args.rounds() {
        let start = Instant::now();
        for _ in 0..args.packets() {
            at = memory[at as usize];
        }
        times.push(start.elapsed().as_nanos() as f64 / f64::from(args.packets()));
    }
    ensure!(std::hint::black_box(at) < memory.len() as u64, "an address outside of the memory");
    Ok(Summary::of(times))
}

/// A packet that opens a flow: an entry in each direction.
fn new_flows(args: &Args, objects: &Objects, sides: Sides) -> Result<Table> {
    let flows: u32 = if args.quick { 1 << 14 } else { 1 << 18 };
    let mut rows = Vec::new();
    for case in cases()?.iter().filter(|case| !case.reply && !case.one_arm) {
        for (name, object) in [("set-associative", None), ("LRU hash", Some(&*objects.reference))] {
            let (mut to_half, mut full) = (Vec::new(), Vec::new());
            for _ in 0..args.rounds() {
                let mut bench = Bench::load(object, &objects.bench, flows, sides)?;
                bench.prepare(case)?;
                // At least 65,536 flows fit at half load.
                let flows = flows.max(65_536);
                to_half.push(bench.open(case, 0, flows)?);
                bench.open(case, flows, flows)?;
                full.push(bench.open(case, 2 * flows, flows)?);
            }
            let (to_half, full) = (Summary::of(to_half), Summary::of(full));
            say(format_args!("{:<30} new flow, {name}: {to_half} ns, table full {full} ns", case.name));
            rows.push(vec![case.name.into(), name.into(), to_half.into(), full.into()]);
        }
    }
    Ok(Table {
        title: "A packet that opens a flow".into(),
        about: "Until the table is half full, and when it is full of flows that are open: then each new one takes the \
                place of another, or is sent on without an entry."
            .into(),
        columns: ["packet", "flow table", "until half full, ns", "full, ns"].map(Into::into).into(),
        rows,
    })
}

/// Packets that are not ours, and those that the host's stack sends on.
fn others(args: &Args, objects: &Objects, sides: Sides) -> Result<Table> {
    let cases = cases()?;
    let row = |name: String, rounds: &Rounds| [name.into()].into_iter().chain(rounds.cells()).collect();
    let mut rows = Vec::new();
    for case in [&cases[0], &cases[4]] {
        let mut bench = Bench::load(None, &objects.bench, 65_536, sides)?;
        bench.prepare(case)?;
        bench.open(case, 0, 65_536)?;
        // The host's addresses are no VIPs.
        let elsewhere = match case.vip {
            SocketAddr::V4(_) => "192.0.2.254:443".parse()?,
            SocketAddr::V6(_) => "[2001:db8:1::fe]:443".parse()?,
        };
        let other = Case { vip: elsewhere, ..*case };
        let template = template(&other, false, 1, Order::Random)?;
        let rounds = bench.rounds(args, "not for a VIP", sides.client, &template, PASS)?;
        rows.push(row(format!("{}, not for a VIP", case.family()), &rounds));
    }
    let mut bench = Bench::load(None, &objects.bench, 65_536, sides)?;
    bench.prepare(&cases[0])?;
    let arp = {
        let mut arp = template(&cases[0], false, 1, Order::Random)?;
        let bytes: &mut [u8] = bytemuck::bytes_of_mut(&mut arp.frame);
        bytes[12..14].copy_from_slice(&[0x08, 0x06]);
        arp
    };
    rows.push(row("ARP".into(), &bench.rounds(args, "ARP", sides.client, &arp, PASS)?));
    let vlan = tagged(&template(&cases[0], false, 1, Order::Random)?);
    rows.push(row(
        "IPv4 TCP of a VLAN, open flow: left to tc".into(),
        &bench.rounds(args, "VLAN", sides.client, &vlan, PASS)?,
    ));
    for case in [&cases[0], &cases[4]] {
        let case = Case { mode: Mode::Local, ..*case };
        let mut bench = Bench::load(None, &objects.bench, 65_536, sides)?;
        let rounds = bench.open_flow(args, &case, 1)?;
        rows.push(row(format!("{}, mode `local`, open flow: left to tc", case.family()), &rounds));
    }
    Ok(Table {
        title: "Packets that XDP passes on".into(),
        about: "65,536 flows are open where nothing else is said.".into(),
        columns: ["packet", "ours, ns", "empty program, ns", "ours less that, ns"].map(Into::into).into(),
        rows,
    })
}

/// The same frame with a VLAN tag, cut to the same length.
fn tagged(template: &FrameTemplate) -> FrameTemplate {
    let mut bytes = bytemuck::bytes_of(&template.frame).to_vec();
    bytes.splice(12..12, [0x81, 0x00, 0x00, 0x2a]);
    bytes.truncate(FrameTemplate::LEN);
    // The IP packet is as long as its frame still has room for.
    let ip_len = (FrameTemplate::LEN - 18) as u16;
    bytes[20..22].copy_from_slice(&ip_len.to_be_bytes());
    FrameTemplate {
        frame: bytemuck::pod_read_unaligned(&bytes),
        address_at: template.address_at + 4,
        port_at: template.port_at + 4,
        ..*template
    }
}

/// Two processors at once, against one alone.
fn processors(args: &Args, objects: &Objects, sides: Sides, all: &[Processor]) -> Result<Table> {
    const FLOWS: u32 = 1024;
    let case = &cases()?[0];
    let mut bench = Bench::load(None, &objects.bench, 65_536, sides)?;
    bench.prepare(case)?;
    bench.open(case, 0, 4 * FLOWS)?;
    let ours = bench.ours()?;
    let empty = bench.empty()?;
    let mut wrappers = [Wrapper::load(&objects.bench)?, Wrapper::load(&objects.bench)?];
    let mut rows = Vec::new();
    let disjoint = [0, FLOWS].map(|first| (first, FLOWS));
    for (name, target, verdict, ranges) in [
        ("empty program", &empty, TX, disjoint),
        ("1,024 flows each", &ours, REDIRECT, disjoint),
        ("one flow of both", &ours, REDIRECT, [(0, 1), (0, 1)]),
    ] {
        let (mut alone, mut both, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for (wrapper, (first, flows)) in wrappers.iter_mut().zip(ranges) {
            wrapper.aim(target, &FrameTemplate { first, ..template(case, false, flows, Order::Random)? })?;
        }
        for _ in 0..args.rounds() {
            let one = on_processors(&mut wrappers[..1], all, sides.client, (args.packets(), verdict))?;
            let two = on_processors(&mut wrappers, all, sides.client, (args.packets(), verdict))?;
            alone.push(one);
            both.push(two);
            times.push(2.0 * one / two);
        }
        let (alone, both, times) = (Summary::of(alone), Summary::of(both), Summary::of(times));
        say(format_args!("{name}: two processors {times} times one"));
        rows.push(vec![name.into(), alone.into(), both.into(), times.into()]);
    }
    Ok(Table {
        title: "Two processors at once".into(),
        about: format!("{}. The rate of both together, against that of one alone in the same round.", case.name),
        columns: ["flows", "one alone, ns", "each of two, ns", "rate, times one"].map(Into::into).into(),
        rows,
    })
}

/// Runs each wrapper on a processor of its own, all at once; the mean ns a packet.
fn on_processors(
    wrappers: &mut [Wrapper],
    all: &[Processor],
    ingress: u32,
    (packets, verdict): (u32, u32),
) -> Result<f64> {
    let barrier = Barrier::new(wrappers.len());
    ensure!(all.len() >= wrappers.len(), "{} processors are too few", all.len());
    let count = wrappers.len() as f64;
    std::thread::scope(|scope| {
        let threads: Vec<_> = wrappers
            .iter_mut()
            .zip(all)
            .map(|(wrapper, processor)| {
                scope.spawn(|| {
                    processor.adopt_thread()?;
                    barrier.wait();
                    Ok::<_, anyhow::Error>(wrapper.run(ingress, packets, verdict)?.ns)
                })
            })
            .collect();
        let mut sum = 0.0;
        for thread in threads {
            sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(sum / count)
    })
}

fn scenario(case: &Case) -> Scenario {
    let mut scenario = Scenario::default();
    let deployment = scenario.deployment();
    let backends = vec![BackendAt { address: case.backend, out_of: None }];
    scenario.service(&ServiceAt {
        deployment,
        vip: case.vip,
        preview: None,
        protocol: case.protocol,
        mode: case.mode,
        backends: [backends.clone(), backends],
    });
    scenario
}

enum Order {
    Linear,
    Random,
}

fn template(case: &Case, reply: bool, flows: u32, order: Order) -> Result<FrameTemplate> {
    let client = SocketAddr::new(case.client, FrameTemplate::FIRST_PORT);
    let (from, to) = if reply { (case.backend, client) } else { (client, case.vip) };
    let builder = PacketBuilder::ethernet2(SENDER_MAC, EDGE_MAC);
    let (builder, addresses_at, address_len, l4, address) = match (from.ip(), to.ip(), case.client) {
        (IpAddr::V4(from), IpAddr::V4(to), IpAddr::V4(client)) => {
            (builder.ipv4(from.octets(), to.octets(), 64), 14 + 12, 4, 14 + 20, u32::from(client))
        }
        (IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(client)) => {
            (builder.ipv6(from.octets(), to.octets(), 64), 14 + 8, 16, 14 + 40, u128::from(client) as u32)
        }
        _ => anyhow::bail!("mixed families"),
    };
    let mut bytes = Vec::new();
    let headers = l4 + if case.protocol == Protocol::Tcp { 20 } else { 8 };
    let payload = vec![0; FrameTemplate::LEN - headers];
    match case.protocol {
        Protocol::Tcp => builder.tcp(from.port(), to.port(), 1, 1024).ack(1).write(&mut bytes, &payload)?,
        Protocol::Udp => builder.udp(from.port(), to.port()).write(&mut bytes, &payload)?,
    }
    let mut template = FrameTemplate {
        frame: bytemuck::pod_read_unaligned(&bytes),
        // The client's end: the destination of a reply.
        address_at: (addresses_at + if reply { 2 * address_len } else { address_len } - 4) as u32,
        port_at: (l4 + if reply { 2 } else { 0 }) as u32,
        address,
        first: 0,
        mask: flows - 1,
        multiplier: 1,
        increment: 1,
        reserved: 0,
    };
    if let Order::Random = order {
        // Numerical Recipes' generator: full period modulo any power of two.
        (template.multiplier, template.increment) = (1_664_525, 1_013_904_223);
    }
    Ok(template)
}
