//! The tables of the results.

use super::{
    arena::BACKENDS,
    contender::Contender,
    judge::{Instants, bound_of_none, broken_share},
    measure::{Measured, Point},
    plan::{Plan, RATES},
    serving::Kind,
};
use crate::bench::{
    report::{Cell, Report, Table},
    stats::{Summary, number},
};

/// Figures that others have published, for the rates of [`RATES`].
const PUBLISHED: [(&str, [&str; 6]); 2] = [
    (
        "*published simulation (Cheetah, NSDI 2020): consistent hashing alone*",
        ["0.099", "0.199", "0.493", "1.01", "1.96", "4.9"],
    ),
    (
        "*published simulation (Cheetah, NSDI 2020): one previous hop remembered*",
        ["0.0004", "0.0017", "0.010", "0.038", "0.137", "0.62"],
    ),
];

type Results = [(Contender, Option<Measured>)];

pub(super) fn report(plan: &Plan, results: &Results) -> Report {
    Report {
        part: "cutover".into(),
        about: about(plan),
        tables: vec![
            broken(plan, results, Kind::Switches),
            broken(plan, results, Kind::Backends),
            causes(results),
            instants(results),
            latencies(results),
            contenders(plan, results),
        ],
        plots: vec![],
    }
}

fn about(plan: &Plan) -> String {
    let seconds = |time: std::time::Duration| number(time.as_secs_f64());
    format!(
        "A client holds {} TCP connections to one VIP. Each connection sends a request {} s after the last answer, and the answer names the backend. \
         A connection lives for a random time (exponential, mean {} s), then the client closes it and opens another. There are {BACKENDS} backends of each colour. \
         They run all the time and never refuse anything, so a connection that breaks is the balancer's doing. A connection is broken if it is reset or \
         closed, if another backend answers than the one on which it began, or if no answer comes within {} s. Client, edge and backends are network \
         namespaces of one machine on veth interfaces. Each contender has the edge for itself, in a new network. Its connections stay for all rates: first {} s at rest, \
         then each rate of switches, then each rate of changes of one backend, which is taken out and put back by turns. At each rate, changes are made for {} s or more, and at least one. After that, all \
         connections ask once more before the next rate begins.",
        number(plan.connections.into()),
        seconds(plan.interval),
        seconds(plan.life),
        seconds(plan.patience),
        seconds(plan.window),
        seconds(plan.window),
    )
}

fn points(measured: &Measured, kind: Option<Kind>) -> impl Iterator<Item = &Point> {
    measured.points.iter().filter(move |point| point.kind == kind)
}

fn broken(plan: &Plan, results: &Results, kind: Kind) -> Table {
    let share = |point: &Point| {
        let broken = point.all_broken();
        match broken {
            0 => Cell::from(format!("0 (< {})", number(bound_of_none(point.ended)))),
            _ => number(broken_share(broken, point.ended)).into(),
        }
    };
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for (contender, measured) in results {
        let mut row = vec![Cell::from(contender.name())];
        match measured {
            Some(measured) => row.extend(points(measured, None).chain(points(measured, Some(kind))).map(share)),
            None => row.extend(vec![Cell::Empty; plan.rates.len() + 1]),
        }
        rows.push(row);
    }
    let mut about = "The share is of all connections that ended in the time: how many ended by breaking. So each connection counts once, over its whole life. \
        After \"0\" stands the share that would have been seen with a probability of 95 %."
        .to_owned();
    if kind == Kind::Backends {
        let published = |(name, figures): (&str, [&str; 6])| {
            let of_rate = |rate: &f64| RATES.iter().position(|one| one == rate).map(|at| Cell::from(figures[at]));
            let figures = plan.rates.iter().map(|rate| of_rate(rate).unwrap_or(Cell::Empty));
            [Cell::from(name), Cell::Empty].into_iter().chain(figures).collect()
        };
        rows.extend(PUBLISHED.map(published));
        about += " The last two rows are not measurements of this benchmark. They are published results of others' simulations, with 468 servers, \
            70,000 connections and the durations of a Hadoop cluster. JET reports, from simulations too, that an LRU for a quarter of the \
            connections broke 0.158 % at 10 updates a minute, and that JET broke none.";
    }
    let title = match kind {
        Kind::Switches => "Broken connections, %, at so many switches a minute",
        Kind::Backends => "Broken connections, %, at so many changes of a backend a minute",
    };
    let head = ["contender".to_owned(), "at rest".to_owned()];
    let columns = head.into_iter().chain(plan.rates.iter().map(f64::to_string)).collect();
    Table { title: title.into(), about, columns, rows }
}

/// Rows for each contender that was measured, and each kind of change.
fn by_kind<'a, T>(results: &'a Results, row: impl Fn(&'a Measured, &str, Vec<&'a Point>) -> T) -> Vec<T> {
    let mut rows = Vec::new();
    for measured in results.iter().filter_map(|(_, measured)| measured.as_ref()) {
        for (kind, name) in [(Kind::Switches, "switches"), (Kind::Backends, "backends")] {
            rows.push(row(measured, name, points(measured, Some(kind)).collect()));
        }
    }
    rows
}

fn causes(results: &Results) -> Table {
    let row = |measured: &Measured, kind: &str, points: Vec<&Point>| {
        let sum = |of: fn(&Point) -> u64| Cell::from(points.iter().map(|point| of(point)).sum::<u64>() as f64);
        let first = points.iter().find_map(|point| point.first.clone()).unwrap_or_default();
        vec![
            measured.contender.clone().into(),
            kind.into(),
            sum(|point| point.changes.len() as u64),
            sum(|point| point.ended),
            sum(|point| point.broken[0]),
            sum(|point| point.broken[1]),
            sum(|point| point.broken[2]),
            sum(|point| point.failed),
            first.into(),
        ]
    };
    Table {
        title: "How they broke".into(),
        about: "Counts over all rates. New connections that got no answer are not broken ones, and are counted beside them.".into(),
        columns: [
            "contender",
            "changes of",
            "changes",
            "connections that ended by themselves",
            "reset or closed",
            "answered by another backend",
            "no answer",
            "new connections not opened",
            "first failure",
        ]
        .map(Into::into)
        .into(),
        rows: by_kind(results, row),
    }
}

fn summary(sample: Vec<f64>) -> Cell {
    if sample.is_empty() { Cell::Empty } else { Summary::of(sample).into() }
}

fn mean(points: &[&Point], of: fn(&Point) -> f64) -> f64 {
    points.iter().map(|point| of(point)).sum::<f64>() / points.len().max(1) as f64
}

fn instants(results: &Results) -> Table {
    let row = |measured: &Measured, kind: &str, points: Vec<&Point>| {
        let changes = || points.iter().flat_map(|point| &point.changes);
        let figure = |of: fn(&Instants) -> Option<f64>| summary(changes().filter_map(of).collect());
        let new = mean(&points, |point| point.opened_per_second);
        vec![
            measured.contender.clone().into(),
            kind.into(),
            (changes().count() as f64).into(),
            figure(|one| Some(one.command)),
            figure(|one| one.first_new),
            figure(|one| one.last_old),
            (changes().map(|one| one.late).sum::<u64>() as f64).into(),
            new.round().into(),
            (1000.0 / new).into(),
        ]
    };
    Table {
        title: "The instant of a change, as new connections see it".into(),
        about: "Times are from the start of the command's process, with median and quartiles. What lies between two new connections is invisible, so no time is more exact \
            than the last column. The first answer from a new backend includes the time of the connection. If the last connection to an old backend began before the command, its time is negative. \
            A change of a backend has old ones when it goes, and new ones when it returns; few new connections are for one backend, so its times are coarser by a factor of \
            the number of backends."
            .into(),
        columns: [
            "contender",
            "changes of",
            "changes",
            "command, ms",
            "first answer from a new backend, ms",
            "last connection to an old backend begun, ms",
            "to an old backend after the return",
            "new connections a second",
            "between two, ms",
        ]
        .map(Into::into)
        .into(),
        rows: by_kind(results, row),
    }
}

fn latencies(results: &Results) -> Table {
    let row = |measured: &Measured, kind: &str, points: Vec<&Point>| {
        let figure = |of: fn(&Point) -> f64| summary(points.iter().map(|point| of(point)).collect());
        let largest = |of: fn(&Point) -> f64| Cell::from(points.iter().map(|point| of(point)).fold(0.0, f64::max));
        let pauses = points.iter().flat_map(|point| &point.changes).filter_map(|one| one.pause).collect();
        let answers = mean(&points, |point| point.answers_per_second);
        vec![
            measured.contender.clone().into(),
            kind.into(),
            figure(|point| point.request.p50),
            figure(|point| point.request.p99),
            largest(|point| point.request.max),
            figure(|point| point.opening.p50),
            figure(|point| point.opening.p99),
            largest(|point| point.opening.max),
            figure(|point| point.late.p99),
            summary(pauses),
            answers.round().into(),
            (1000.0 / answers).into(),
            mean(&points, |point| point.packets_per_second).round().into(),
        ]
    };
    Table {
        title: "Latency, and the longest pause".into(),
        about: "Milliseconds. Quantiles are of each rate, with median and quartiles of the rates; the maximum is over all. Requests are sent late when the load itself waits for a processor, \
            and what waits so long before a request waits as long for its answer: this much of a latency is the machine's. The pause is the longest time between two answers on any open connections, from a command's start until half a second after its end. \
            It cannot be shorter than the time between two answers. Client, edge and backends share the machine's processors with the command, so a part of each pause is the command's own work."
            .into(),
        columns: [
            "contender",
            "changes of",
            "request p50",
            "p99",
            "max",
            "new connection p50",
            "p99",
            "max",
            "sent late, p99",
            "longest pause at a change",
            "answers a second",
            "between two",
            "packets a second from the client",
        ]
        .map(Into::into)
        .into(),
        rows: by_kind(results, row),
    }
}

fn contenders(plan: &Plan, results: &Results) -> Table {
    let row = |(contender, measured): &(Contender, Option<Measured>)| {
        let [switch, backend] = contender.commands();
        let commands = if switch == backend { switch.to_owned() } else { format!("{switch}; {backend}") };
        let mut row = vec![contender.name().into(), contender.settings().into(), commands.into()];
        match measured {
            Some(measured) => row.extend([
                f64::from(measured.connections).into(),
                (measured.processes as f64).into(),
                measured.memory.round().into(),
                measured.evicted.map_or(Cell::Empty, |flows| (flows as f64).into()),
                measured.date.clone().into(),
                format!("{} and {}", measured.load[0], measured.load[1]).into(),
            ]),
            None => row.extend([(); 6].map(|()| contender.missing().map_or(Cell::Empty, Cell::from))),
        }
        row
    };
    Table {
        title: "The contenders".into(),
        about: format!(
            "Settings that differ from defaults, and the commands. A flow table has a power of two of rows, so with a size other than the default ours has as many connections as make the rows the share in its name. A proxy has no more connections than the system lets one of its processes have: two files for each, and {} files here. Processes and memory are the most that the contender had on the edge: after a reload, old processes stay until their last connection ends. \
            Evicted flows are open ones that lost their row to another (`pushed_out`). \
            The load averages are those of one minute before and after the contender was measured: a load before it is work of others.",
            plan.files
        ),
        columns: [
            "contender",
            "settings",
            "commands",
            "connections",
            "processes",
            "MiB",
            "evicted flows",
            "began, UTC",
            "load averages",
        ]
        .map(Into::into)
        .into(),
        rows: results.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_figures_stand_below_what_was_measured_and_are_marked() {
        let plan = Plan::new(70_000, 20_000, false);
        let results = Contender::ALL.map(|contender| (contender, None));
        let table = broken(&plan, &results, Kind::Backends);
        assert_eq!(table.columns[1..], ["at rest", "1.56", "3.12", "7.8", "15.6", "31.2", "78"].map(String::from));
        assert_eq!(table.rows.len(), results.len() + PUBLISHED.len());
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        let published = &table.rows[results.len()..];
        assert!(published.iter().all(|row| row[0].to_string().contains("published simulation")));
        assert_eq!(published[0][7], "4.9".into());
        assert_eq!(broken(&plan, &results, Kind::Switches).rows.len(), results.len());
    }
}
