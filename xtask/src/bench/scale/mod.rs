//! `bench scale`: what grows with the numbers of services, backends and flows, and what does not.
//!
//! Each size has its own instance. Commands are the real `bgctl`, timed as processes. Packets go through the
//! pinned program by test runs ([`packets`]).

mod memory;
mod packets;
mod size;

use super::{
    edge::{BACKEND_SIDE, CLIENT_SIDE, DEPLOYMENT, Edge, ifindex},
    report::{Axis, Cell, Plot, Report, Series, Table},
    stats::Summary,
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result, ensure};
use packets::Packets;
use serde_json::Value;
use size::{NETWORKS, Size};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Numbers of services.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000, 10_000])]
    services: Vec<u32>,
    /// Numbers of backends of each colour of each service. Sizes that do not fit into an instance are left out.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    backends: Vec<u32>,
    /// Numbers of flows, which are powers of two.
    #[arg(long, value_delimiter = ',', default_values_t = [1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22])]
    flows: Vec<u32>,
    /// The room in the table for each flow (`attach --flows`, which creates a table of twice the size).
    #[arg(long, default_value_t = 1)]
    room: u32,
    /// Rounds of each size.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Packets per round.
    #[arg(long, default_value_t = 1 << 20)]
    packets: u32,
    /// A few small sizes, which take seconds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn sizes(&self) -> Vec<Size> {
        let quick = |size: &Size| !self.quick || size.services * size.backends <= 1000;
        let all = self
            .backends
            .iter()
            .flat_map(|&backends| self.services.iter().map(move |&services| Size { services, backends }));
        all.filter(|size| size.fits()).filter(quick).collect()
    }

    fn flows(&self) -> impl Iterator<Item = u32> {
        self.flows.iter().copied().filter(|flows| !self.quick || *flows <= 1 << 18)
    }

    fn rounds(&self) -> u32 {
        if self.quick { 2 } else { self.rounds }
    }

    fn packets(&self) -> u32 {
        if self.quick { self.packets / 16 } else { self.packets }
    }
}

/// The number of open flows while sizes of configurations are measured.
const SOME_FLOWS: u32 = 1 << 12;
/// The time during which a new attach may fail.
const PATIENCE: Duration = Duration::from_secs(2);
/// Switches per round.
const SWITCHES: u32 = 5;

pub(crate) fn run(args: &Args) -> Result<Report> {
    let object = build_ebpf::build_bench()?;
    let edge = Edge::create()?;
    for network in NETWORKS {
        // Through one gateway, whose neighbour is known: no address needs one of its own.
        edge.namespace.ip(&format!("route add {network} via 10.0.1.11 dev {BACKEND_SIDE}"))?;
    }
    let ingress = ifindex(&edge.namespace, CLIENT_SIDE)?;
    let (configured, filled) = edge.namespace.enter(|| -> Result<_> {
        let bench = Bench { args, edge: &edge, object: &object, ingress };
        let configured = args.sizes().into_iter().map(|size| bench.configure(size)).collect::<Result<Vec<_>>>()?;
        let filled = args.flows().map(|flows| bench.fill(flows)).collect::<Result<Vec<_>>>()?;
        Ok((configured, filled))
    })??;
    Ok(Report {
        part: "scale".into(),
        about: "What grows with the numbers of services, backends and flows. Each size has its own instance. \
                Commands are timed as processes, from before their start until after their end, and write to the \
                disk. Memory is what the kernel accounts to the instance's maps (memlock in fdinfo). \
                Nanoseconds per packet are from test runs of the pinned program, beside an empty program. A wrapper restores the \
                frame before each run of either. Flows are in random order."
            .into(),
        tables: vec![configurations(&configured, args), maps(&configured), flow_tables(&filled, args)],
        plots: vec![apply_plot(&configured), flows_plot(&filled)],
    })
}

/// Times are milliseconds.
#[derive(Default)]
struct Configured {
    size: Option<Size>,
    first: Vec<f64>,
    nothing: Vec<f64>,
    change: Vec<f64>,
    switch: Vec<f64>,
    status: Vec<f64>,
    packet: Vec<f64>,
    empty: Vec<f64>,
    maps: Vec<(String, u64)>,
}

/// Times are milliseconds.
#[derive(Default)]
struct Filled {
    flows: u32,
    open: u64,
    opening: f64,
    packet: Vec<f64>,
    empty: Vec<f64>,
    switch: Vec<f64>,
    change: Vec<f64>,
    status: Vec<f64>,
    list: Vec<f64>,
    table_bytes: u64,
    octets: u64,
}

struct Bench<'a> {
    args: &'a Args,
    edge: &'a Edge,
    object: &'a Path,
    ingress: u32,
}

impl Bench<'_> {
    /// Applies a configuration of this size to new instances, repeatedly.
    fn configure(&self, size: Size) -> Result<Configured> {
        let mut found = Configured { size: Some(size), ..Configured::default() };
        for _ in 0..self.args.rounds() {
            self.attach(size, None)?;
            let file = self.edge.write_config(&size.config(0))?;
            found.first.push(self.timed(&["apply", "-c", &file])?);
            found.nothing.push(self.timed(&["apply", "-c", &file])?);
            self.edge.write_config(&size.config(1))?;
            found.change.push(self.timed(&["apply", "-c", &file])?);
            self.check(size)?;
            for _ in 0..SWITCHES {
                found.switch.push(self.timed(&["switch", DEPLOYMENT])?);
            }
            let mut packets = self.packets()?;
            packets.open(size.vip(), SOME_FLOWS)?;
            found.status.push(self.timed(&["status"])?);
            let (packet, empty) = packets.measure(size.vip(), SOME_FLOWS, self.args.packets())?;
            found.packet.push(packet);
            found.empty.push(empty);
            self.account(size, SOME_FLOWS, &packets)?;
        }
        found.maps = memory::of_maps(&self.edge.paths().maps())?;
        say(format_args!(
            "{} services of {} backends a colour: first apply {} ms",
            size.services,
            size.backends,
            Summary::of(found.first.clone())
        ));
        Ok(found)
    }

    /// Checks that the running state is as configured.
    fn check(&self, size: Size) -> Result<()> {
        let status = self.status()?;
        let services = status["deployments"][0]["services"].as_array().context("no services")?;
        let backends = |colour: &str| {
            let of = services.iter().filter_map(|service| service[colour]["backends"].as_array());
            of.map(Vec::len).sum::<usize>()
        };
        let found = (services.len(), backends("blue"), backends("green"));
        let all = (size.services * size.backends) as usize;
        ensure!(found == (size.services as usize, all, all), "expected {size:?} to run, got {found:?}");
        Ok(())
    }

    /// Measures this many flows of one service with ten backends per colour, in a table that was made for them.
    fn fill(&self, flows: u32) -> Result<Filled> {
        let size = Size { services: 1, backends: 10 };
        self.attach(size, Some(flows.saturating_mul(self.args.room)))?;
        let file = self.edge.write_config(&size.config(0))?;
        self.edge.run(&["apply", "-c", &file])?;
        let mut packets = self.packets()?;
        let mut found = Filled { flows, opening: packets.open(size.vip(), flows)?, ..Filled::default() };

        for _ in 0..self.args.rounds() {
            let (packet, empty) = packets.measure(size.vip(), flows, self.args.packets())?;
            found.packet.push(packet);
            found.empty.push(empty);
        }
        found.open = self.account(size, flows, &packets)?;
        for round in 1..=self.rounds_of_commands(flows) {
            found.status.push(self.timed(&["status"])?);
            found.list.push(self.timed(&["flows"])?);
            found.switch.push(self.timed(&["switch", DEPLOYMENT])?);
            // Last: the flows of the backend that goes have to open anew.
            self.edge.write_config(&size.config(round))?;
            found.change.push(self.timed(&["apply", "-c", &file])?);
        }
        let maps = memory::of_maps(&self.edge.paths().maps())?;
        let sum =
            |wanted: fn(&str) -> bool| maps.iter().filter(|(name, _)| wanted(name)).map(|(_, octets)| octets).sum();
        found.octets = sum(|_| true);
        found.table_bytes = sum(|name| name.contains("flows4"));
        say(format_args!("{flows} flows: {} ns per packet", Summary::of(found.packet.clone())));
        Ok(found)
    }

    /// Checks that the program has opened this many flows and counted every packet. Returns how many of the flows are open.
    fn account(&self, size: Size, flows: u32, packets: &Packets) -> Result<u64> {
        let expected = packets.expected(size.backends);
        let status = self.status()?;
        let deployment = &status["deployments"][0];
        let services = deployment["services"].as_array().context("no services")?;
        let vip = size.vip().to_string();
        let service = services.iter().find(|service| service["vip"] == vip.as_str()).context("no such service")?;
        let sum = |of: &Value, key: &str| -> u64 {
            let counts = ["blue", "green"].map(|colour| if key.is_empty() { &of[colour] } else { &of[colour][key] });
            counts.iter().filter_map(|count| count.as_u64()).sum()
        };
        let (opened, counted) = (sum(service, "flows_opened"), sum(service, "packets"));
        // A flow that the table had no room for is opened again.
        let all = u64::from(flows)..=u64::from(flows) * 1001 / 1000;
        ensure!(all.contains(&opened), "expected {all:?} flows opened, got {opened}");
        ensure!(expected.contains(&counted), "expected {expected:?} packets counted, got {counted}");
        Ok(sum(&deployment["flows"], ""))
    }

    /// Printing millions of flows takes long.
    fn rounds_of_commands(&self, flows: u32) -> u32 {
        match flows {
            ..=0xf_ffff => self.args.rounds(),
            0x10_0000..=0x1f_ffff => self.args.rounds().min(3),
            _ => 1,
        }
    }

    /// Creates an instance with room for this configuration and this many flows.
    fn attach(&self, size: Size, flows: Option<u32>) -> Result<()> {
        // There may be none yet.
        if self.edge.paths().maps().exists() {
            self.edge.run(&["detach", "--all"])?;
        }
        let [services, backends] = [size.services, size.all_backends()].map(|number| number.to_string());
        let flows = flows.map(|flows| flows.to_string());
        let mut arguments = vec!["attach", "--mode", "native", CLIENT_SIDE, BACKEND_SIDE];
        arguments.extend(["--services", &services, "--backends", &backends]);
        arguments.extend(flows.iter().flat_map(|flows| ["--flows", flows]));
        // The kernel lets go of an interface some time after the pin of the link has been removed.
        let end = Instant::now() + PATIENCE;
        loop {
            match self.edge.run(&arguments) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn packets(&self) -> Result<Packets> {
        Packets::prepare(self.object, &self.edge.paths(), self.ingress)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.edge.run(&["--json", "status"])?)?)
    }

    fn timed(&self, arguments: &[&str]) -> Result<f64> {
        self.edge.timed(arguments).map(milliseconds)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mebibytes(octets: u64) -> Cell {
    (octets as f64 / f64::from(1 << 20)).into()
}

fn figure(sample: &[f64]) -> Cell {
    Summary::of(sample.to_owned()).into()
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn configurations(all: &[Configured], args: &Args) -> Table {
    let row = |found: &Configured| {
        let size = found.size?;
        Some(vec![
            f64::from(size.services).into(),
            f64::from(size.backends).into(),
            figure(&found.first),
            figure(&found.nothing),
            figure(&found.change),
            figure(&found.switch),
            figure(&found.status),
            figure(&found.packet),
            figure(&found.empty),
            mebibytes(found.maps.iter().map(|(_, octets)| octets).sum()),
        ])
    };
    Table {
        title: "Services and backends".into(),
        about: format!(
            "{} rounds, each with a new instance: the first apply, an apply that changes nothing, an apply that replaces one \
             backend, then {SWITCHES} switches, and {SOME_FLOWS} flows of the service in the middle. The number of backends is \
             for each colour of each service. Memory is allocated when the instance is created, whatever is applied later.",
            args.rounds()
        ),
        columns: columns(&[
            "services",
            "backends",
            "first apply, ms",
            "apply of nothing, ms",
            "apply of one backend, ms",
            "switch, ms",
            "status, ms",
            "a packet, ns",
            "empty program, ns",
            "memory, MiB",
        ]),
        rows: all.iter().filter_map(row).collect(),
    }
}

/// The memory by map.
fn maps(all: &[Configured]) -> Table {
    let (least, most) = (all.first(), all.last());
    let of = |found: Option<&Configured>, name: &str| {
        let maps = found.into_iter().flat_map(|found| &found.maps);
        maps.filter(|(other, _)| name == other).map(|(_, octets)| octets).sum::<u64>()
    };
    let mut names: Vec<_> = most.into_iter().flat_map(|found| &found.maps).map(|(name, _)| name.as_str()).collect();
    names.sort_by_key(|name| std::cmp::Reverse(of(most, name)));
    let size = |found: Option<&Configured>| {
        found
            .and_then(|found| found.size)
            .map_or(String::new(), |size| format!("{} services of {} backends, MiB", size.services, size.backends))
    };
    let row = |name: &&str| vec![Cell::from(*name), mebibytes(of(least, name)), mebibytes(of(most, name))];
    Table {
        title: "Memory by map".into(),
        about: "With the default number of flows, after the last round of the first and of the last size above. The next table \
                shows what grows with the number of flows."
            .into(),
        columns: vec!["map".into(), size(least), size(most)],
        rows: names.iter().map(row).collect(),
    }
}

fn flow_tables(all: &[Filled], args: &Args) -> Table {
    let row = |found: &Filled| {
        vec![
            f64::from(found.flows).into(),
            (found.open as f64).into(),
            found.opening.into(),
            figure(&found.packet),
            figure(&found.empty),
            figure(&found.status),
            figure(&found.list),
            figure(&found.switch),
            figure(&found.change),
            mebibytes(found.table_bytes),
            (found.table_bytes as f64 / f64::from(found.flows)).into(),
            mebibytes(found.octets),
        ]
    };
    Table {
        title: "Flows".into(),
        about: format!(
            "IPv4 TCP flows of one service with ten backends per colour. The tables, one \
             for IPv4 and one for IPv6, are made for {} (`attach --flows`). Opening is measured once, with one packet per \
             flow, followed by {} rounds, with fewer commands from a million flows on. `status` counts the open flows, and `flows` \
             prints all of them (to /dev/null).",
            if args.room == 1 { "as many".to_owned() } else { format!("{} times as many", args.room) },
            args.rounds(),
        ),
        columns: columns(&[
            "flows",
            "of them open",
            "opening one, ns",
            "a packet, ns",
            "empty program, ns",
            "`status`, ms",
            "`flows`, ms",
            "switch, ms",
            "apply of one backend, ms",
            "IPv4 table, MiB",
            "bytes per flow",
            "all maps, MiB",
        ]),
        rows: all.iter().map(row).collect(),
    }
}

fn apply_plot(all: &[Configured]) -> Plot {
    let mut series: Vec<Series> = Vec::new();
    for (what, of) in [
        ("first apply", (|found| &found.first) as fn(&Configured) -> &Vec<f64>),
        ("apply of one backend", |found| &found.change),
        ("switch", |found| &found.switch),
    ] {
        for (found, size) in all.iter().filter_map(|found| Some((found, found.size?))) {
            let name = format!("{what}, {} a colour", size.backends);
            let point = (f64::from(size.services), Summary::of(of(found).clone()));
            match series.iter_mut().find(|series| series.name == name) {
                Some(series) => series.points.push(point),
                // Two numbers of backends say it; four would hide it.
                None if [10, 100].contains(&size.backends) => series.push(Series { name, points: vec![point] }),
                None => {}
            }
        }
    }
    Plot {
        name: "scale-apply".into(),
        title: "Commands, by number of services".into(),
        x: Axis { label: "services".into(), logarithmic: true },
        y: Axis { label: "ms".into(), logarithmic: true },
        series,
    }
}

fn flows_plot(all: &[Filled]) -> Plot {
    let series = |name: &str, of: fn(&Filled) -> &Vec<f64>| Series {
        name: name.into(),
        points: all.iter().map(|found| (f64::from(found.flows), Summary::of(of(found).clone()))).collect(),
    };
    Plot {
        name: "scale-flows".into(),
        title: "A packet of an open flow, by number of flows".into(),
        x: Axis { label: "open flows".into(), logarithmic: true },
        y: Axis { label: "ns per packet".into(), logarithmic: false },
        series: vec![series("ours", |found| &found.packet), series("empty program", |found| &found.empty)],
    }
}
