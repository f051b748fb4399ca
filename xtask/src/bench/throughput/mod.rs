//! `bench throughput`: packets per second through an edge of veth interfaces, from one end to the other, beside the
//! least work that XDP can do there.

mod live;
mod stage;
mod traffic;

pub(super) use live::{LiveFrames, Shot};
pub(super) use stage::{SERVICES, STREAM_PORT, attach, attach_with, counted, lab};
pub(super) use traffic::Traffic;

use super::{
    bgctl,
    report::{Axis, Cell, Plot, Report, Series, Table},
    stats::Summary,
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result};
use bg_common::Protocol;
use bg_tests::Offloads;
use std::path::Path;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds. Each sends every traffic through every path.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Frames per round.
    #[arg(long, default_value_t = 2 << 20)]
    frames: u32,
    /// Two rounds of a few frames, which take seconds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 2 } else { self.rounds }
    }

    fn frames(&self) -> u32 {
        if self.quick { 1 << 17 } else { self.frames }
    }
}

/// The paths between the client and the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Drop,
    Redirect,
    Ours(&'static str),
}

impl Way {
    const ALL: [Self; 5] = {
        let [native, generic, tc] = bgctl::MODES;
        [Self::Drop, Self::Redirect, Self::Ours(native), Self::Ours(generic), Self::Ours(tc)]
    };

    fn name(self) -> String {
        match self {
            Self::Drop => "bare drop at the edge".into(),
            Self::Redirect => "bare redirect".into(),
            Self::Ours(mode) => bgctl::name(mode),
        }
    }
}

const TRAFFICS: [Traffic; 5] = [
    Traffic { ipv6: false, protocol: Protocol::Udp, flows: 1 },
    Traffic { ipv6: false, protocol: Protocol::Udp, flows: 1024 },
    Traffic { ipv6: false, protocol: Protocol::Udp, flows: 65_536 },
    Traffic { ipv6: false, protocol: Protocol::Tcp, flows: 1024 },
    Traffic { ipv6: true, protocol: Protocol::Tcp, flows: 1024 },
];

pub(crate) fn run(args: &Args) -> Result<Report> {
    let (object, bgctl) = (build_ebpf::build_bench()?, bgctl::build()?);
    // By way, then by traffic, then by round.
    let mut shots: Vec<Vec<Vec<Shot>>> = Way::ALL.map(|_| TRAFFICS.map(|_| Vec::new()).into()).into();
    for round in 1..=args.rounds() {
        say(format_args!("throughput, round {round} of {}", args.rounds()));
        for (way, shots) in Way::ALL.into_iter().zip(&mut shots) {
            let round = send_all(args, way, &object, &bgctl).with_context(|| way.name())?;
            shots.iter_mut().zip(round).for_each(|(shots, shot)| shots.push(shot));
        }
    }
    Ok(report(args, &shots))
}

/// Sends each traffic through this path, in a separate network.
fn send_all(args: &Args, way: Way, object: &Path, bgctl: &Path) -> Result<Vec<Shot>> {
    let lab = lab(Offloads::Wire)?;
    let mut live = LiveFrames::load(object)?;
    let (far, interface) = match way {
        Way::Drop => (&lab.edge, "front"),
        Way::Redirect | Way::Ours(_) => (&lab.backends[0].namespace, "eth0"),
    };
    let _receiver = live.receive_at(far, interface)?;
    let _redirect = match way {
        Way::Redirect => Some(live.redirect(&lab.edge, "front", "back")?),
        Way::Drop | Way::Ours(_) => None,
    };
    let ours = match way {
        Way::Ours(mode) => Some(attach(&lab, bgctl, mode)?),
        Way::Drop | Way::Redirect => None,
    };
    let mut send = |traffic: Traffic| -> Result<Shot> {
        let way = (traffic.vip(), if ours.is_some() { traffic.backend() } else { traffic.vip() });
        // Opens the flows, and warms up what can be warmed.
        live.send(&lab, traffic, way, (4 * traffic.flows).max(1 << 16))?;
        live.send_alone(&lab, traffic, way, args.frames(), ours.as_ref())
    };
    TRAFFICS.into_iter().map(|traffic| send(traffic).with_context(|| traffic.name())).collect()
}

/// `shots` by path, traffic and round.
fn report(args: &Args, shots: &[Vec<Vec<Shot>>]) -> Report {
    let mut rows = Vec::new();
    let mut lines = Way::ALL.map(|way| Series { name: way.name(), points: Vec::new() });
    let redirect = &shots[1];
    for (index, traffic) in TRAFFICS.into_iter().enumerate() {
        for (way, (of_way, line)) in Way::ALL.into_iter().zip(shots.iter().zip(&mut lines)) {
            let of = |figure: fn(&Shot) -> f64| Summary::of(of_way[index].iter().map(figure).collect());
            let against = of_way[index].iter().zip(&redirect[index]);
            let ratio = Summary::of(against.map(|(shot, bare)| shot.mpps() / bare.mpps()).collect());
            let ratio = if matches!(way, Way::Ours(_)) { Cell::Figure(ratio) } else { Cell::Empty };
            let (mpps, ns, lost) = (of(Shot::mpps), of(Shot::ns), of(Shot::lost));
            rows.push(vec![
                traffic.name().into(),
                f64::from(traffic.flows).into(),
                way.name().into(),
                mpps.into(),
                ns.into(),
                ratio,
                lost.into(),
            ]);
            if traffic.protocol == Protocol::Udp {
                line.points.push((f64::from(traffic.flows), mpps));
            }
        }
    }
    let columns = ["frames", "flows", "through", "Mpps", "ns per packet", "of bare redirect", "lost, %"];
    let table = Table {
        title: "Packets per second, on one processor".into(),
        about: format!(
            "{} rounds of {} frames through each path. Frames have {} bytes (IPv6: {}), and flows are in random order. Each round \
             creates a new network for each path. `Of bare redirect` is the ratio to the bare redirect of the same round.",
            args.rounds(),
            args.frames(),
            TRAFFICS[0].len(),
            TRAFFICS[4].len(),
        ),
        columns: columns.map(Into::into).into(),
        rows,
    };
    let plot = Plot {
        name: "throughput-flows".into(),
        title: "IPv4 UDP through one processor, by number of flows".into(),
        x: Axis { label: "open flows".into(), logarithmic: true },
        y: Axis { label: "Mpps".into(), logarithmic: false },
        series: lines.into(),
    };
    Report {
        part: "throughput".into(),
        about: "Frames cross two veth pairs, from a client through an edge to the backends' machine, where an XDP program \
                counts and drops them. `BPF_PROG_TEST_RUN` creates them as live frames, so generator, edge and \
                receiver run to completion on one processor, one after the other. A packet's time is the time that this processor \
                worked, for the sending thread and for ksoftirqd, divided by the number of delivered packets. It includes \
                sending and receiving, which the bare drop shows. Packets per second are its inverse. The bare redirect is \
                an XDP program that only redirects through a devmap. \"Ours\" is what `bgctl attach` and `apply` \
                set up. Packets that have passed the host's stack (generic XDP, tc) are turned into frames again for the receiver, \
                which is part of their time. If another processor handled some frames of a call, the call is repeated, and its \
                losses do not count. The first delivered frame of each call is parsed, its addresses and checksums are verified, and \
                bgctl's counters are compared with what was sent."
            .into(),
        tables: vec![table],
        plots: vec![plot],
    }
}
