//! `bench compare`: the same network and the same traffic through alternatives to bgctl, in one run.

mod contender;
mod tcp;

use super::{
    bgctl,
    report::{Cell, Report, Table},
    stats::Summary,
    throughput::{LiveFrames, STREAM_PORT, Shot, Traffic, counted, lab},
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result, ensure};
use bg_common::Protocol;
use bg_tests::{
    HTTP_PORT, Lab, Offloads,
    address::{BACKENDS, VIP_V4},
    config::http_vip,
};
use contender::{Contender, Running};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds. Each measures every contender.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// UDP frames per round.
    #[arg(long, default_value_t = 2 << 20)]
    frames: u32,
    /// Seconds of each load of TCP.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Only contenders whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// One short round, whose figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn wants(&self, contender: Contender) -> bool {
        self.only.as_ref().is_none_or(|part| contender.name().contains(part))
    }

    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    fn frames(&self) -> u32 {
        if self.quick { 1 << 17 } else { self.frames }
    }

    fn seconds(&self) -> u32 {
        if self.quick { 1 } else { self.seconds }
    }
}

const TRAFFIC: Traffic = Traffic { ipv6: false, protocol: Protocol::Udp, flows: 1024 };

/// The results of one round for a contender.
struct Round {
    udp: Option<Udp>,
    connections: f64,
    wire: f64,
    local: Option<f64>,
    answers: tcp::Answers,
}

struct Udp {
    mpps: f64,
    /// Processor time per delivered packet.
    ns: f64,
    lost: f64,
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    let (object, bgctl) = (build_ebpf::build_bench()?, bgctl::build()?);
    let missing = Contender::ALL.map(|contender| match args.wants(contender) {
        true => contender.missing(),
        false => Some("not asked for"),
    });
    for (contender, missing) in Contender::ALL.into_iter().zip(missing) {
        if let Some(missing) = missing {
            say(format_args!("compare: without {}: {missing}", contender.name()));
        }
    }
    let mut rounds = Contender::ALL.map(|_| Vec::new());
    for number in 1..=args.rounds() {
        for ((contender, missing), rounds) in Contender::ALL.into_iter().zip(missing).zip(&mut rounds) {
            if missing.is_some() {
                continue;
            }
            say(format_args!("compare, round {number} of {}: {}", args.rounds(), contender.name()));
            rounds.push(measure(args, contender, &object, &bgctl).with_context(|| contender.name())?);
        }
    }
    Ok(report(args, &missing, &rounds))
}

/// Measures a contender in separate networks.
fn measure(args: &Args, contender: Contender, object: &Path, bgctl: &Path) -> Result<Round> {
    let blue = BACKENDS[0].2[0];
    let web = contender.target(http_vip(VIP_V4), SocketAddr::new(blue, HTTP_PORT));
    let streams = contender.target(SocketAddr::new(VIP_V4, STREAM_PORT), SocketAddr::new(blue, STREAM_PORT));

    let (udp, connections, wire, answers) = {
        let lab = lab(Offloads::Wire)?;
        let (_servers, running) = start(&lab, contender, web, bgctl)?;
        let udp = match contender.takes_udp() {
            true => Some(udp(args, contender, &lab, &running, object).context("UDP")?),
            false => None,
        };
        check_tracking(contender, &lab)?;
        let before = running.bgctl.as_ref().map(counted).transpose()?;
        let connections = tcp::connections(&lab.client, web, args.seconds()).context("connections")?;
        if let (Some(bgctl), Some(before)) = (&running.bgctl, before) {
            // A connection has its SYN, its request and its end, at the least.
            let (counted, least) =
                (counted(bgctl)?.packets - before.packets, 3.0 * connections * f64::from(args.seconds()));
            ensure!(counted as f64 >= 0.9 * least, "expected {least} packets or more, bgctl counted {counted}");
        }
        let answers = tcp::answers(&lab.client, web, args.seconds()).context("answers")?;
        let _server = tcp::stream_server(&lab.backends[0].namespace, STREAM_PORT)?;
        let wire = tcp::stream(&lab.client, streams, args.seconds()).context("a stream, as on wires")?;
        (udp, connections, wire, answers)
    };
    let local = if contender.takes_unfinished_checksums() {
        let lab = lab(Offloads::Default)?;
        let (_servers, _running) = start(&lab, contender, web, bgctl)?;
        let _server = tcp::stream_server(&lab.backends[0].namespace, STREAM_PORT)?;
        Some(tcp::stream(&lab.client, streams, args.seconds()).context("a stream, as on one host")?)
    } else {
        None
    };
    Ok(Round { udp, connections, wire, local, answers })
}

/// Starts the backends' servers and the contender, and waits for a first answer.
fn start(lab: &Lab, contender: Contender, web: SocketAddr, bgctl: &Path) -> Result<(Vec<bg_tests::Nginx>, Running)> {
    let servers = lab.nginxes()?;
    let running = contender.start(lab, bgctl)?;
    let answer = tcp::answer(&lab.client, web)?;
    let expected = lab.backends[0].says();
    ensure!(answer.trim_end() == expected, "expected an answer of {expected}, got {answer:?}");
    Ok((servers, running))
}

/// Checks that the kernel tracks connections if, and only if, the contender uses that.
fn check_tracking(contender: Contender, lab: &Lab) -> Result<()> {
    let read = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    // Where the kernel has no connection tracking at all there is no such file.
    let count: u32 = lab.edge.enter(read)?.map_or(Ok(0), |text| text.trim().parse())?;
    if contender.is_tracked() {
        ensure!(count >= TRAFFIC.flows, "expected {} tracked connections or more, got {count}", TRAFFIC.flows);
    } else if contender.tracking_is_known() {
        ensure!(count == 0, "expected no tracked connections, got {count}");
    }
    Ok(())
}

fn udp(args: &Args, contender: Contender, lab: &Lab, running: &Running, object: &Path) -> Result<Udp> {
    let mut live = LiveFrames::load(object)?;
    let _receiver = live.receive_at(&lab.backends[0].namespace, "eth0")?;
    let way = (contender.target(TRAFFIC.vip(), TRAFFIC.backend()), TRAFFIC.backend());
    live.send(lab, TRAFFIC, way, 1 << 16)?;
    if !contender.is_proxy() {
        let shot = live.send_alone(lab, TRAFFIC, way, args.frames(), running.bgctl.as_ref())?;
        return Ok(Udp { mpps: shot.mpps(), ns: shot.ns(), lost: shot.lost() });
    }
    let process = running.process.as_ref().context("a proxy without a process")?.id();
    settle(&live)?;
    let (start, before) = (Instant::now(), tcp::worked(process)?);
    let mut shot: Shot = live.send(lab, TRAFFIC, way, args.frames())?;
    let late = settle(&live)?;
    let (elapsed, worked) = (start.elapsed() - late, tcp::worked(process)? - before);
    shot.delivered = live.received()?.delivered;
    shot.check(None, TRAFFIC.backend())?;
    let delivered = shot.delivered as f64;
    let (mpps, ns) = (delivered / elapsed.as_nanos() as f64 * 1e3, worked.as_nanos() as f64 / delivered);
    Ok(Udp { mpps, ns, lost: shot.lost() })
}

/// Waits until nothing arrives any more. Returns for how long nothing has arrived.
fn settle(live: &LiveFrames) -> Result<Duration> {
    let (mut last, mut since) = (live.received()?, Instant::now());
    while since.elapsed() < Duration::from_millis(50) {
        thread::sleep(Duration::from_millis(1));
        let received = live.received()?;
        if received != last {
            (last, since) = (received, Instant::now());
        }
    }
    Ok(since.elapsed())
}

fn report(args: &Args, missing: &[Option<&str>], rounds: &[Vec<Round>]) -> Report {
    let (mut packets, mut connections) = (Vec::new(), Vec::new());
    let tracked = Contender::ALL.iter().position(|contender| *contender == Contender::Stateful);
    let stateful = tracked.map_or(&[][..], |index| &rounds[index]);
    for ((contender, missing), rounds) in Contender::ALL.into_iter().zip(missing).zip(rounds) {
        let remark = || Cell::from(missing.unwrap_or(contender.remark()));
        let cell = |figure: &dyn Fn(&Round) -> Option<f64>| cell(rounds.iter().filter_map(figure).collect());
        let udp = |figure: fn(&Udp) -> f64| cell(&|round| round.udp.as_ref().map(figure));
        let against = rounds
            .iter()
            .zip(stateful)
            .filter_map(|(round, stateful)| Some(round.udp.as_ref()?.mpps / stateful.udp.as_ref()?.mpps));
        packets.push(vec![
            contender.name().into(),
            udp(|udp| udp.mpps),
            udp(|udp| udp.ns),
            self::cell(against.collect()),
            udp(|udp| udp.lost),
            remark(),
        ]);
        connections.push(vec![
            contender.name().into(),
            cell(&|round| Some(round.connections)),
            cell(&|round| Some(round.wire)),
            cell(&|round| round.local),
            cell(&|round| Some(round.answers.p50)),
            cell(&|round| Some(round.answers.p99)),
            cell(&|round| Some(round.answers.processor)),
            remark(),
        ]);
    }
    let columns = ["through", "Mpps", "processor, ns per packet", "times nftables stateful", "lost, %", "remark"];
    let packets = Table {
        title: "UDP packets".into(),
        about: format!(
            "Each round sends {} frames of {} bytes in {} flows. As in `throughput`, generator, edge and receiver run on one \
             processor, and a packet's time is the whole time that this processor worked. For all but native XDP, it includes \
             turning the packets from the host's stack into frames again for the receiver. The proxy works when it is \
             scheduled. Its packets per second are the delivered packets divided by the time that they took, and its time per \
             packet is only that of its own processes, without the kernel's work to pass packets to it.",
            args.frames(),
            TRAFFIC.len(),
            TRAFFIC.flows,
        ),
        columns: columns.map(Into::into).into(),
        rows: packets,
    };
    let columns = [
        "through",
        "connections/s",
        "Gbit/s, as on wires",
        "Gbit/s, as on one host",
        "p50, µs",
        "p99, µs",
        "processor, µs per request",
        "remark",
    ];
    let connections = Table {
        title: "TCP".into(),
        about: format!(
            "Connections: wrk with `Connection: close`, 64 at a time. Gbit/s: one stream of iperf3. \"As on wires\" means that the \
             senders finish checksums (`ethtool -K tx off`, which also disables segmentation offload), as in frames from a \
             network card. Native XDP needs that between veth interfaces. \"As on one host\" means default settings. \
             p50 and p99: {} requests per second over 64 kept connections, timed from when each was due. \
             Processor: the time of all processors of the machine, including clients and backends, divided by the number of \
             requests; computed from the idle time in /proc/stat. Each load takes {} s. Backends are nginx.",
            tcp::RATE,
            args.seconds(),
        ),
        columns: columns.map(Into::into).into(),
        rows: connections,
    };
    Report {
        part: "compare".into(),
        about: format!(
            "The network is a client, an edge and a machine with backends on two veth pairs. The contenders run on the edge in \
             turns, each in a new network, in {} rounds. All translate the same VIP to the same backend. A contender is \
             measured only after it has returned the right answer from the right backend. The first delivered frame is parsed \
             and its checksums are verified. The kernel must track connections for stateful nftables, and for no other contender.",
            args.rounds(),
        ),
        tables: vec![packets, connections],
        plots: vec![],
    }
}

fn cell(sample: Vec<f64>) -> Cell {
    if sample.is_empty() { Cell::Empty } else { Summary::of(sample).into() }
}
