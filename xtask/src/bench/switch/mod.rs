//! `bench switch`: the instant of a switch, beside alternatives.
//!
//! There are two measurements. First only bgctl, packet by packet, under as many packets as a CPU can decide ([`load`], [`instant`]).
//! Then all contenders by their commands, as new TCP connections see the switch ([`contenders`], [`probe`]).

mod contenders;
mod instant;
mod load;
mod probe;

use super::{
    edge::{BACKEND_SIDE, CLIENT_SIDE, DEPLOYMENT, Edge, ifindex},
    report::{Axis, Cell, Plot, Report, Series, Table},
    stats::Summary,
};
use crate::{build_ebpf, process::say};
use anyhow::{Context, Result, ensure};
use bg_userspace::{Instance, Paths};
use contenders::{Arena, Contender, issue};
use instant::{Commands, Live, Rounds, by_command, by_library, idle};
use load::{Cpus, Load, Shape};
use std::{
    fs,
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Switches by the library, under load.
    #[arg(long, default_value_t = 10_000)]
    switches: u32,
    /// The least number of packets to send meanwhile.
    #[arg(long, default_value_t = 10_000_000)]
    packets: u64,
    /// Switches by the command, and as many by the library without load.
    #[arg(long, default_value_t = 200)]
    commands: u32,
    /// Packets that the generator creates, and the program decides, in one batch, at most 256. Drivers use 64.
    #[arg(long, default_value_t = 64)]
    batch: u32,
    /// Switches of each contender.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Threads that open connections to the contenders.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// A few rounds, which take seconds; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    /// The given number, or a small part of it for a quick run.
    fn switches(&self) -> u32 {
        if self.quick { (self.switches / 100).max(3) } else { self.switches }
    }

    fn packets(&self) -> u64 {
        if self.quick { self.packets / 100 } else { self.packets }
    }

    fn commands(&self) -> u32 {
        if self.quick { (self.commands / 20).max(3) } else { self.commands }
    }

    fn rounds(&self) -> u32 {
        if self.quick { (self.rounds / 20).max(3) } else { self.rounds }
    }
}

/// The number of frames in one call of the generator.
const CALL: u32 = 4 << 20;

pub(crate) fn run(args: &Args) -> Result<Report> {
    let object = build_ebpf::build_bench_switch()?;
    let ours = measure_ours(args, &object)?;
    let contenders = measure_contenders(args)?;
    Ok(Report {
        part: "switch".into(),
        about:
            "How long a switch takes, for packets and for the person who runs the command. First bgctl is measured packet \
                by packet, while as many new flows are opened as a CPU can open. Then bgctl, nftables, HAProxy and nginx are \
                measured by their commands, as new TCP connections see the switch."
                .into(),
        tables: vec![instants(&ours, args), account(&ours), comparison(&contenders, args)],
        plots: vec![distribution(&ours)],
    })
}

/// The results for bgctl. Times are nanoseconds.
struct Ours {
    rounds: Rounds,
    commands: Commands,
    idle_calls: Vec<f64>,
    idle_commands: Vec<f64>,
    switches: u64,
    sent: u64,
    arrived: [u64; 2],
    opened: u64,
    dropped: u64,
    generators: usize,
}

fn measure_ours(args: &Args, object: &Path) -> Result<Ours> {
    let edge = Edge::create()?;
    let vip = SocketAddrV4::new([203, 0, 113, 10].into(), 53);
    let ingress = ifindex(&edge.namespace, CLIENT_SIDE)?;
    edge.namespace.enter(|| -> Result<Ours> {
        let cpus = Cpus::of_this_machine()?;
        Cpus::pin(cpus.switcher)?;
        edge.run(&["attach", "--mode", "native", CLIENT_SIDE, BACKEND_SIDE])?;
        let config = edge.write_config(&format!(
            "[deployments.{DEPLOYMENT}]\n[[deployments.{DEPLOYMENT}.services]]\nvip = \"{vip}\"\nprotocol = \"udp\"\n\
             mode = \"nat\"\nblue = [\"10.0.1.11:{port}\"]\ngreen = [\"10.0.2.11:{port}\"]\n",
            port = bg_common::SwitchLoad::BACKEND_PORT,
        ))?;
        edge.run(&["apply", "-c", &config])?;
        let paths = edge.paths();
        let instance = Instance::open(&paths)?;
        let mut live = Live::first();

        say(format_args!("switches without load: {} by the library, as many by the command", args.commands()));
        let (idle_calls, idle_commands) = idle(&edge, &instance, args.commands(), &mut live)?;

        // Ten thousand switches would wait for the disk most of the time, which commands do above.
        let journal = MemoryDir::create()?;
        let instance = Instance::open(&Paths { state_dir: journal.0.clone(), ..paths.clone() })?;
        let call = if args.quick { CALL / 4 } else { CALL };
        let shape = Shape { ingress, vip, batch: args.batch, call };
        let load = Load::prepare(object, &paths.program("ingress"), &shape, &cpus)?;
        let before = live.switches();
        say(format_args!(
            "switches under load: {} by the library, {} by the command",
            args.switches(),
            args.commands()
        ));
        let (rounds, commands) = load.during(args.packets(), || {
            let rounds = by_library(&instance, &load, args.switches(), &mut live)?;
            let commands = by_command(&edge, &load, args.commands(), &mut live)?;
            Ok((rounds, commands))
        })?;
        let (sent, arrived) = load.sent();
        let status = instance.status(None)?;
        let service = status.deployments.first().and_then(|deployment| deployment.services.first());
        let colours = &service.context("the service is gone")?.colours;
        let (blue, green) = (&colours.blue, &colours.green);
        let (opened, packets) = (blue.flows_opened + green.flows_opened, blue.packets + green.packets);
        ensure!(packets == sent, "{sent} frames were sent, and the program has counted {packets}");
        ensure!(opened == sent, "{sent} frames were sent, each of a flow of its own, and {opened} flows were opened");
        let switches = live.switches() - before;
        let dropped = status.drops.values().sum();
        let generators = cpus.generators.len();
        Ok(Ours { rounds, commands, idle_calls, idle_commands, switches, sent, arrived, opened, dropped, generators })
    })?
}

/// A directory in memory, removed when dropped.
struct MemoryDir(PathBuf);

impl MemoryDir {
    fn create() -> Result<Self> {
        let path = PathBuf::from(format!("/dev/shm/bg-{}-journal", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for MemoryDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The results of one switch of a contender. Times are milliseconds.
struct Round {
    command: f64,
    /// The time from the command's start to the first answer by the new colour.
    first_new: f64,
    /// The time from the command's start to the beginning of the last connection that went to the old colour.
    last_old: f64,
    /// The number of connections that began after the command had returned and went to the old colour.
    late: u64,
    connections: u64,
    failed: u64,
    /// The duration of a connection.
    connection: Vec<f64>,
}

struct Compared {
    name: &'static str,
    command: &'static str,
    rounds: Vec<Round>,
    first_failure: Option<String>,
}

fn measure_contenders(args: &Args) -> Result<Vec<Compared>> {
    let mut arena = Arena::build()?;
    let rounds = args.rounds();
    say(format_args!("{rounds} switches of each of {} contenders, by turns", arena.contenders.len()));
    let new = |contender: &Contender| Compared {
        name: contender.name,
        command: contender.command,
        rounds: Vec::new(),
        first_failure: None,
    };
    let mut all: Vec<_> = arena.contenders.iter().map(new).collect();
    let lab = &arena.lab;
    for _ in 0..rounds {
        for (contender, compared) in arena.contenders.iter_mut().zip(&mut all) {
            let colour = contender.live.other();
            let command = contender.prepare(colour)?;
            let mut took = None;
            // Commands run in the namespace of the thread that starts them.
            let seen = lab.edge.enter(|| {
                probe::watch(&lab.client, contender.vip, args.clients, colour, || {
                    took = Some(issue(command)?);
                    Ok(())
                })
            })?;
            let seen = seen.with_context(|| contender.name)?;
            contender.live = colour;
            let command = took.context("the command was not issued")?;
            let since = |ns: u64| (ns as f64 - seen.issued_ns as f64) / 1e6;
            let of = |wanted| seen.probes.iter().filter(move |probe| probe.answer == Ok(wanted));
            let first_new = of(colour).map(|probe| since(probe.answered_ns)).min_by(f64::total_cmp);
            let last_old = of(colour.other()).map(|probe| since(probe.begun_ns)).max_by(f64::total_cmp);
            let failures = || seen.probes.iter().filter_map(|probe| probe.answer.as_ref().err());
            compared.first_failure = compared.first_failure.take().or_else(|| failures().next().cloned());
            compared.rounds.push(Round {
                command: command.as_nanos() as f64 / 1e6,
                first_new: first_new.context("no connection to the new colour")?,
                last_old: last_old.context("no connection to the old colour before the command")?,
                late: of(colour.other()).filter(|probe| probe.begun_ns > seen.returned_ns).count() as u64,
                connections: seen.probes.len() as u64,
                failed: failures().count() as u64,
                connection: seen.probes.iter().map(|probe| (probe.answered_ns - probe.begun_ns) as f64 / 1e6).collect(),
            });
        }
    }
    Ok(all)
}

/// The quantiles of a sample, in microseconds.
fn quantiles(nanoseconds: &[f64], shares: &[f64]) -> Vec<Cell> {
    let mut sorted = nanoseconds.to_owned();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize] / 1000.0;
    // A quantile that is the largest of the sample is none.
    let says = |share: f64| share == 1.0 || (1.0 - share) * sorted.len() as f64 >= 1.0;
    shares.iter().map(|share| if says(*share) { at(*share).into() } else { Cell::Empty }).collect()
}

fn instants(ours: &Ours, args: &Args) -> Table {
    let row = |what: &str, sample: &[f64]| {
        let head = [Cell::from(what), (sample.len() as f64).into()];
        head.into_iter().chain(quantiles(sample, &[0.5, 0.99, 0.999, 1.0])).collect()
    };
    let Ours { rounds, commands, .. } = ours;
    Table {
        title: "A switch of bgctl, with and without load".into(),
        about: format!(
            "The load is live frames of 96 bytes on {} CPU(s). Each frame is a new flow, and {} are created and decided in one \
             batch. The switching process has the first CPU to itself. Each frame is stamped when it is passed to the \
             pinned program. An XDP program records its arrival at the other end of the backends' interface. \
             The store is the compare-exchange of the live word. A negative time belongs to a packet that was being processed \
             at that moment. The benchmark fails if a packet that was stamped after the fence reaches the old colour. \
             Commands, and calls without load, write the journal to the disk before they return. Calls under load write it to memory.",
            ours.generators, args.batch
        ),
        columns: ["µs", "switches", "p50", "p99", "p99.9", "max"].map(str::to_owned).into(),
        rows: vec![
            row("store to the first packet decided by the new word", &rounds.decided),
            row("store to its arrival at the backend", &rounds.arrived),
            row("store to the last packet decided by the old word", &rounds.overlap),
            row("store to the end of the fence", &rounds.fence),
            row("the whole call of the library", &rounds.call),
            row("`bgctl switch`, from the start of its process to its end", &commands.wall),
            row("from its start to the first packet decided by the new word", &commands.decided),
            row("the library's call, without load", &ours.idle_calls),
            row("`bgctl switch`, without load", &ours.idle_commands),
        ],
    }
}

fn account(ours: &Ours) -> Table {
    let arrived: u64 = ours.arrived.iter().sum();
    let row = |what: &str, count: u64| vec![Cell::from(what), (count as f64).into()];
    Table {
        title: "Counts of this load".into(),
        about: "Every frame is accounted for, in the program's counters and where it should arrive.".into(),
        columns: ["", "count"].map(str::to_owned).into(),
        rows: vec![
            row("switches", ours.switches),
            row("packets sent", ours.sent),
            row("flows opened by these", ours.opened),
            row("arrived at blue", ours.arrived[0]),
            row("arrived at green", ours.arrived[1]),
            row("dropped by the program, for any reason", ours.dropped),
            row("lost", ours.sent.saturating_sub(arrived)),
            row("switches not evaluated, because the generator paused", ours.rounds.discarded),
        ],
    }
}

fn comparison(all: &[Compared], args: &Args) -> Table {
    let row = |compared: &Compared| {
        let rounds = &compared.rounds;
        let figure = |of: fn(&Round) -> f64| Cell::from(Summary::of(rounds.iter().map(of).collect()));
        let count = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>() as f64;
        let connection = rounds.iter().flat_map(|round| round.connection.iter().copied()).collect();
        vec![
            Cell::from(compared.name),
            compared.command.into(),
            figure(|round| round.command),
            figure(|round| round.first_new),
            figure(|round| round.last_old),
            count(|round| round.late).into(),
            count(|round| round.failed).into(),
            count(|round| round.connections).into(),
            Summary::of(connection).into(),
        ]
    };
    let failures: Vec<_> = all
        .iter()
        .filter_map(|compared| Some(format!("{}: {}", compared.name, compared.first_failure.as_ref()?)))
        .collect();
    Table {
        title: "Compared with alternatives".into(),
        about: format!(
            "One edge, one client, and one backend of each colour (network namespaces on wires). All contenders are set up at \
             the same time, each with its own VIP, and make {} switches each, in turns. {} threads open TCP connections one after \
             the other, each with a new five-tuple, send one HTTP request and close. Times are from the start of the \
             command's process, so the first answer includes the time of a connection (last column). Files that a command \
             reads are written before. \"After the return\" counts connections that began after the command had \
             returned and still went to the old colour.{}{}",
            all.first().map_or(0, |compared| compared.rounds.len()),
            args.clients,
            if failures.is_empty() { "" } else { " First failures: " },
            failures.join("; "),
        ),
        columns: [
            "contender",
            "command",
            "command, ms",
            "first answer by the new colour, ms",
            "last connection to the old colour begun, ms",
            "to the old colour after the return",
            "failed",
            "connections",
            "a connection, ms",
        ]
        .map(str::to_owned)
        .into(),
        rows: all.iter().map(row).collect(),
    }
}

/// The number of switches whose first packet came within each time.
fn distribution(ours: &Ours) -> Plot {
    let series = |name: &str, sample: &[f64]| {
        let mut sorted = sample.to_owned();
        sorted.sort_by(f64::total_cmp);
        let points = (0..=60).map(|step| {
            // Closer together towards the end: 0, 10 %, ... 90, 99, 99.9.
            let share = 1.0 - 10_f64.powf(-f64::from(step) / 15.0);
            let at = sorted[((sorted.len() - 1) as f64 * share).round() as usize] / 1000.0;
            let percent = 100.0 * share;
            // The axis is logarithmic: a packet under way at the store counts as that much after it.
            (at.max(0.01), Summary { median: percent, low: percent, high: percent })
        });
        Series { name: name.into(), points: points.collect() }
    };
    Plot {
        name: "switch-instant".into(),
        title: "From the store to the first packet on the new colour".into(),
        x: Axis { label: "time since the store, µs".into(), logarithmic: true },
        y: Axis { label: "switches that had it by then, %".into(), logarithmic: false },
        series: vec![
            series("decided by the new word", &ours.rounds.decided),
            series("arrived at the backend", &ours.rounds.arrived),
            series("last packet by the old word", &ours.rounds.overlap),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_shown_if_the_sample_has_it() {
        let sample: Vec<f64> = (1..=1000).rev().map(|number| f64::from(number) * 1000.0).collect();
        let shown = quantiles(&sample, &[0.5, 0.99, 0.999, 1.0]);
        assert_eq!(shown, [501.0, 990.0, 999.0, 1000.0].map(Cell::from));
        let shown = quantiles(&sample[..100], &[0.99, 0.999, 1.0]);
        assert_eq!(shown, [999.0.into(), Cell::Empty, 1000.0.into()]);
    }
}
