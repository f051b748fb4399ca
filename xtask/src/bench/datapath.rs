//! `bench datapath`: what a packet costs, without a NIC and without a network stack around it.
//!
//! A wrapper program writes a fresh frame, of the next flow, and tail-calls the program under test; an empty
//! program behind the same wrapper is the baseline. Verdict and counters are checked, so that what is
//! measured is the whole job: parse, flow look-up, rewrite, checksums, next hop, counters, redirect.

use super::{
    report::{Axis, Plot, Report, Series, Table},
    stats::Summary,
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, DevMap, ProgramArray},
    programs::{ProgramFd, TestRunOptions, Xdp},
};
use bg_common::{FrameTemplate, Mode, Protocol};
use bg_tests::{
    Namespace, Sandbox,
    twin::{BackendAt, Kernel, Scenario, ServiceAt},
};
use etherparse::PacketBuilder;
use std::{
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    path::Path,
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
    #[arg(long, value_delimiter = ',', default_values_t = [1, 65_536])]
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
}

/// XDP_REDIRECT and XDP_TX (linux/bpf.h).
const REDIRECT: u32 = 4;
const TX: u32 = 3;

/// One row of the table.
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
}

impl Case {
    fn verdict(&self) -> u32 {
        if self.one_arm { TX } else { REDIRECT }
    }

    /// Interface that a frame comes in by.
    fn ingress(&self, reply: bool, sides: Sides) -> u32 {
        if reply != self.one_arm { sides.backend } else { sides.client }
    }
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let object = build_ebpf::build_bench()?;
    // The table holds both directions of every flow, with room: an LRU that is full measures its own evictions.
    let entries = 4 * args.flows.iter().max().context("no number of flows")?.max(&65_536);
    let sandbox = Sandbox::create()?;
    let edge = wire(&sandbox)?;
    let sides = Sides { client: ifindex(&edge, "c0")?, backend: ifindex(&edge, "b0")? };
    edge.enter(|| measure(args, &object, entries, sides))?
}

/// Indexes of the edge's interfaces.
#[derive(Clone, Copy)]
struct Sides {
    client: u32,
    backend: u32,
}

pub(super) fn ifindex(namespace: &Namespace, name: &str) -> Result<u32> {
    let shown = namespace.ip(&format!("-oneline link show {name}"))?;
    let index = shown.split(':').next().and_then(|index| index.trim().parse().ok());
    index.with_context(|| format!("ip does not tell the index of {name}: {shown}"))
}

/// The edge with a client's and a backend's side, so that routes, neighbours and interfaces are real.
pub(super) fn wire(sandbox: &Sandbox) -> Result<Namespace> {
    let edge = Namespace::create(sandbox.id(), "edge")?;
    for (name, side) in [("c0", "192.0.2.254/24 2001:db8:1::fe/64"), ("b0", "10.0.1.254/24 fd00:1::fe/64")] {
        edge.ip(&format!("link add {name} type veth peer name {name}-far"))?;
        edge.ip(&format!("link set {name}-far up"))?;
        edge.ip(&format!("link set {name} up"))?;
        for address in side.split(' ') {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            edge.ip(&format!("address add {address} dev {name} {nodad}"))?;
        }
    }
    edge.sysctl("ipv4/ip_forward", "1")?;
    edge.sysctl("ipv6/conf/all/forwarding", "1")?;
    for (address, dev) in [("192.0.2.1", "c0"), ("2001:db8:1::1", "c0"), ("10.0.1.11", "b0"), ("fd00:1::11", "b0")] {
        edge.ip(&format!("neighbour replace {address} lladdr 02:00:00:00:00:11 dev {dev} nud permanent"))?;
    }
    edge.ip("route add 198.18.0.0/15 via 192.0.2.1 dev c0")?;
    edge.ip("-6 route add 2001:db8:c::/48 via 2001:db8:1::1 dev c0")?;
    Ok(edge)
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

fn measure(args: &Args, object: &Path, entries: u32, sides: Sides) -> Result<Report> {
    let mut kernel = Kernel::load(entries)?;
    let mut wrapper = EbpfLoader::new().load_file(object)?;
    for name in ["restore", "empty"] {
        program(&mut wrapper, name)?.load()?;
    }
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for case in cases()? {
        let mut line = Series { name: case.name.into(), points: Vec::new() };
        for &flows in &args.flows {
            let (ours, empty) = measure_case(args, &case, flows, sides, &mut kernel, &mut wrapper)?;
            let less = ours.median - empty.median;
            say(format_args!("{:<30} {flows:>8} flows: {ours} ns, empty program {empty} ns", case.name));
            line.points.push((flows.into(), ours));
            rows.push(vec![case.name.into(), f64::from(flows).into(), ours.into(), empty.into(), less.into()]);
        }
        lines.push(line);
    }
    let columns = ["packet", "flows", "ours, ns", "empty program, ns", "ours less that, ns"];
    let table = Table {
        title: "A packet of an open flow".into(),
        about: format!("{} rounds of {} packets, flows in random order.", args.rounds(), args.packets()),
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
    Ok(Report {
        part: "datapath".into(),
        about: "Nanoseconds a packet, by test runs of the loaded program, the frame restored before each run by a \
                wrapper that tail-calls it. An empty program behind the same wrapper is the baseline of the same run. \
                Verdicts and counters are checked."
            .into(),
        tables: vec![table],
        plots: vec![plot],
    })
}

fn measure_case(
    args: &Args,
    case: &Case,
    flows: u32,
    sides: Sides,
    kernel: &mut Kernel,
    wrapper: &mut Ebpf,
) -> Result<(Summary, Summary)> {
    kernel.forget_flows()?;
    kernel.fill(&scenario(case))?;
    let mut egress: DevMap<_> = kernel.object().map_mut("egress").context("egress")?.try_into()?;
    for ifindex in [sides.client, sides.backend] {
        egress.set(ifindex, ifindex, None, 0)?;
    }
    let ours = program(kernel.object(), "ingress")?.fd()?.try_clone()?;
    let empty = program(wrapper, "empty")?.fd()?.try_clone()?;

    // Every flow once, in order: opens it.
    aim(wrapper, &ours, &template(case, false, flows, Order::Linear)?)?;
    let verdict = shoot(wrapper, case.ingress(false, sides), flows.max(16))?.1;
    let events = kernel.all_events()?;
    ensure!(verdict == case.verdict(), "{}: opening flows returned {verdict}; events {events:?}", case.name);

    let ingress = case.ingress(case.reply, sides);
    let template = template(case, case.reply, flows, Order::Random)?;
    let before = kernel.traffic(0, 0)?.packets;
    let (mut ours_ns, mut empty_ns) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds() {
        aim(wrapper, &empty, &template)?;
        let (ns, verdict) = shoot(wrapper, ingress, args.packets())?;
        ensure!(verdict == TX, "the empty program returned {verdict}");
        empty_ns.push(ns);
        aim(wrapper, &ours, &template)?;
        let (ns, verdict) = shoot(wrapper, ingress, args.packets())?;
        ensure!(verdict == case.verdict(), "{}: returned {verdict}; events {:?}", case.name, kernel.all_events()?);
        ours_ns.push(ns);
    }
    let counted = kernel.traffic(0, 0)?;
    let expected = if case.reply { 0 } else { u64::from(args.rounds()) * u64::from(args.packets()) };
    ensure!(
        counted.packets - before == expected,
        "{}: {} packets counted, {expected} sent",
        case.name,
        counted.packets - before
    );
    Ok((Summary::of(ours_ns), Summary::of(empty_ns)))
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
        mode: Mode::Nat,
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
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x11], [2, 0, 0, 0, 0, 0x22]);
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

/// Puts a program and a frame behind the wrapper.
pub(super) fn aim(wrapper: &mut Ebpf, target: &ProgramFd, template: &FrameTemplate) -> Result<()> {
    let mut templates: Array<_, FrameTemplate> = wrapper.map_mut("template").context("template")?.try_into()?;
    templates.set(0, template, 0)?;
    let mut targets: ProgramArray<_> = wrapper.map_mut("target").context("target")?.try_into()?;
    targets.set(0, target, 0)?;
    Ok(())
}

/// Runs the wrapper so many times; ns a run, and the last verdict.
pub(super) fn shoot(wrapper: &mut Ebpf, ingress: u32, packets: u32) -> Result<(f64, u32)> {
    let frame = [0; FrameTemplate::LEN];
    let context = context_of(ingress);
    let options =
        TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), repeat: packets, ..TestRunOptions::new() };
    let result = program(wrapper, "restore")?.test_run(options)?;
    Ok((result.duration.as_nanos() as f64, result.return_value))
}

/// A `struct xdp_md` (linux/bpf.h) for a frame that came in by an interface.
pub(super) fn context_of(ifindex: u32) -> [u8; 24] {
    #[repr(C)]
    struct XdpMd {
        data: u32,
        data_end: u32,
        data_meta: u32,
        ingress_ifindex: u32,
        rx_queue_index: u32,
        egress_ifindex: u32,
    }
    let mut context = [0; size_of::<XdpMd>()];
    context[offset_of!(XdpMd, data_end)..][..4].copy_from_slice(&(FrameTemplate::LEN as u32).to_ne_bytes());
    context[offset_of!(XdpMd, ingress_ifindex)..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

pub(super) fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
