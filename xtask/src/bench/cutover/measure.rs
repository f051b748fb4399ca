//! Measuring a contender: at rest, then at each rate of switches, then at each rate of changes of a backend.

use super::{
    arena::{self, Arena},
    contender::{Contender, Running},
    judge::{Change, Instants, Quantiles},
    load::{Load, Seen, Shape},
    plan::{Plan, Schedule},
    serving::{Kind, Serving},
};
use crate::process::say;
use anyhow::{Context, Result, ensure};
use bg_tests::{monotonic_ns, output};
use serde::{Deserialize, Serialize};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// The memory that must be free at each change, in MiB. Reloads leave processes behind.
const SPARE_MIB: u64 = 3000;

/// The results of a contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) contender: String,
    pub(super) plan: Plan,
    /// When it began, in UTC.
    pub(super) date: String,
    /// The machine's load averages of a minute, before and after.
    pub(super) load: [f64; 2],
    pub(super) connections: u32,
    pub(super) points: Vec<Point>,
    /// The most processes on the edge, and the most MiB that they had.
    pub(super) processes: u64,
    pub(super) memory: f64,
    /// Open flows that were evicted from its flow table.
    pub(super) evicted: Option<u64>,
}

/// The results at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    /// `None` at rest.
    pub(super) kind: Option<Kind>,
    /// Changes a minute.
    pub(super) rate: f64,
    pub(super) seconds: f64,
    /// Connections that ended by themselves in that time.
    pub(super) ended: u64,
    /// Connections that broke in that time, or were found broken just after: ended, strayed, silent.
    pub(super) broken: [u64; 3],
    /// New connections without an answer.
    pub(super) failed: u64,
    /// The first failure of any kind.
    pub(super) first: Option<String>,
    pub(super) changes: Vec<Instants>,
    /// The time of a request on an open connection.
    pub(super) request: Quantiles,
    /// How late requests were sent.
    pub(super) late: Quantiles,
    /// The time of a new connection, until its first answer.
    pub(super) opening: Quantiles,
    pub(super) opened_per_second: f64,
    pub(super) answers_per_second: f64,
    /// Packets of the client.
    pub(super) packets_per_second: f64,
}

impl Point {
    pub(super) fn all_broken(&self) -> u64 {
        self.broken.iter().sum()
    }
}

/// Measures a contender in a network of its own.
pub(super) fn measure(contender: Contender, plan: &Plan) -> Result<Measured> {
    let date = output(std::process::Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M"]))?.trim().to_owned();
    let before = load_average()?;
    let (connections, _) = contender.size(plan);
    let arena = Arena::build(connections, plan)?;
    let running = contender.start(&arena, plan)?;
    let shape = Shape {
        target: arena::vip(),
        sources: arena::sources(),
        connections,
        life: plan.life,
        interval: plan.interval,
        patience: plan.patience,
        ramp: plan.ramp(),
        threads: connections.div_ceil(plan.of_thread()),
    };
    let load = Load::start(&arena.lab.client, shape)?;
    let mut stage = Stage { contender, arena: &arena, running, load, state: Serving::first(), used: (0, 0.0) };
    let mut points = vec![stage.point(None, 0.0, Schedule { changes: 0, period: Duration::ZERO }, plan.window)?];
    for kind in [Kind::Switches, Kind::Backends] {
        for rate in &plan.rates {
            let schedule = plan.schedule(*rate);
            points.push(stage.point(Some(kind), *rate, schedule, schedule.period * schedule.changes)?);
        }
    }
    let ((processes, memory), evicted) = (stage.used, stage.running.evicted()?);
    let load = [before, load_average()?];
    Ok(Measured {
        contender: contender.name(),
        plan: plan.clone(),
        date,
        load,
        connections,
        points,
        processes,
        memory,
        evicted,
    })
}

/// A contender under load.
struct Stage<'a> {
    contender: Contender,
    arena: &'a Arena,
    running: Box<dyn Running>,
    load: Load,
    state: Serving,
    /// The most processes and MiB seen.
    used: (u64, f64),
}

impl Stage<'_> {
    fn point(&mut self, kind: Option<Kind>, rate: f64, schedule: Schedule, time: Duration) -> Result<Point> {
        self.load.take();
        let (start, packets) = (Instant::now(), self.arena.packets()?);
        let mut changes = Vec::new();
        if let Some(kind) = kind {
            for number in 0..schedule.changes {
                let due = schedule.period * number + schedule.period / 2;
                thread::sleep(due.saturating_sub(start.elapsed()));
                changes.push(self.change(kind)?);
            }
        }
        thread::sleep(time.saturating_sub(start.elapsed()));
        let (ended, elapsed, packets) = (self.load.ended(), start.elapsed(), self.arena.packets()? - packets);
        self.load.settle();
        let mut seen = self.load.take();
        seen.ended = ended;
        let (processes, memory) = self.arena.processes()?;
        self.used = (self.used.0.max(processes), self.used.1.max(memory));
        let point = Point::of(kind, rate, elapsed, packets, &changes, seen);
        say(format_args!(
            "{}: {kind:?}, {rate} a minute: {} broken, {} ended, {} not opened{}",
            self.contender.name(),
            point.all_broken(),
            point.ended,
            point.failed,
            point.first.as_ref().map_or(String::new(), |first| format!("; first {first}"))
        ));
        Ok(point)
    }

    fn change(&mut self, kind: Kind) -> Result<Change> {
        arena::has_memory(SPARE_MIB)?;
        let to = self.state.next(kind);
        let mut command = self.running.change(kind, to)?;
        // Commands run in the namespace of the thread that starts them.
        let (issued_ns, said, returned_ns) = self.arena.lab.edge.enter(|| {
            let issued_ns = monotonic_ns();
            let said = output(&mut command);
            (issued_ns, said, monotonic_ns())
        })?;
        let said = said.with_context(|| self.contender.name())?;
        // HAProxy's runtime API reports errors like results.
        ensure!(self.contender != Contender::HaproxyApi || said.trim().is_empty(), "HAProxy said: {said}");
        let change = self.state.change(to, issued_ns, returned_ns);
        self.state = to;
        Ok(change)
    }
}

impl Point {
    fn of(kind: Option<Kind>, rate: f64, elapsed: Duration, packets: u64, changes: &[Change], seen: Seen) -> Self {
        let seconds = elapsed.as_secs_f64();
        let mut answers: Vec<u64> = seen.answers.iter().map(|answer| answer.at_ns).collect();
        answers.sort_unstable();
        let until = |next: usize| changes.get(next).map_or(u64::MAX, |change| change.issued_ns);
        let judged = changes.iter().enumerate();
        let changes = judged.map(|(number, one)| Instants::of(one, until(number + 1), &seen.opened, &answers));
        let opening = |one: &super::judge::Opened| ((one.answered_ns - one.begun_ns) / 1000) as u32;
        // What follows the time itself is not slower or faster than it.
        let whole = answers.first().zip(answers.last()).map_or(seconds, |(first, last)| (last - first) as f64 / 1e9);
        Self {
            kind,
            rate,
            seconds,
            ended: seen.ended,
            broken: seen.broken,
            failed: seen.failed,
            first: seen.first,
            changes: changes.collect(),
            request: Quantiles::of(seen.answers.iter().map(|answer| answer.took).collect()),
            late: Quantiles::of(seen.answers.iter().map(|answer| answer.late).collect()),
            opening: Quantiles::of(seen.opened.iter().map(opening).collect()),
            opened_per_second: seen.opened.len() as f64 / whole,
            answers_per_second: answers.len() as f64 / whole,
            packets_per_second: packets as f64 / seconds,
        }
    }
}

fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("an empty /proc/loadavg")?.parse()?)
}

/// Fails unless the contender without state broke as many connections as it must, at rest and at the first rate of each kind: later ones
/// find fewer connections open, if the machine is slow to open them again. If it did not, then the benchmark cannot see a connection
/// that breaks.
pub(super) fn prove(measured: &Measured, backends: u64) -> Result<()> {
    let first = |kind| measured.points.iter().find(|point| point.kind == kind);
    for point in [None, Some(Kind::Switches), Some(Kind::Backends)].into_iter().filter_map(first) {
        let (broken, open) = (point.all_broken(), u64::from(measured.connections));
        let expected = match point.kind {
            None => 0..=open / 1000,
            // Each switch breaks all connections but those that were just opened.
            Some(Kind::Switches) => open * 8 / 10..=u64::MAX,
            // One of the backends loses its connections. Those that it gets later are fewer.
            Some(Kind::Backends) => open / (backends * 3)..=u64::MAX,
        };
        ensure!(
            expected.contains(&broken),
            "a hash without state broke {broken} of {open} connections ({:?}, {} a minute), expected {expected:?}: the \
             benchmark does not see what it is to count",
            point.kind,
            point.rate
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(kind: Option<Kind>, broken: [u64; 3]) -> Measured {
        let seen = Seen { broken, ended: 100, ..Seen::default() };
        let plan = Plan::new(1000, 20_000, true);
        Measured {
            contender: "hash".into(),
            date: String::new(),
            load: [0.0; 2],
            connections: plan.connections,
            plan,
            points: vec![Point::of(kind, 78.0, Duration::from_secs(4), 0, &[], seen)],
            processes: 0,
            memory: 0.0,
            evicted: None,
        }
    }

    #[test]
    fn a_benchmark_that_sees_no_connection_break_fails() {
        assert!(prove(&measured(None, [0, 0, 1]), 16).is_ok());
        assert!(prove(&measured(None, [0, 0, 2]), 16).is_err());
        assert!(prove(&measured(Some(Kind::Switches), [900, 50, 50]), 16).is_ok());
        assert!(prove(&measured(Some(Kind::Switches), [0, 799, 0]), 16).is_err());
        assert!(prove(&measured(Some(Kind::Backends), [62, 0, 0]), 16).is_ok());
        assert!(prove(&measured(Some(Kind::Backends), [0, 0, 0]), 16).is_err());
    }
}
