//! `bgctl switch --dry-run`, and the same of `rollback` and `split`: say what the change would do.

use std::time::Duration;

use bg_userspace::{Colour, DryRun, Fates, Instance, TableUse, TargetBackend, WindowOutlook, Would, config::OnSwitch};

use super::words::{guard, percent};
use crate::{
    args::Global,
    exit::Outcome,
    output,
    table::{
        ALARM,
        Align::{Left, Right},
        Cell, Table, style_of, styled,
    },
};

pub(super) fn run(
    global: &Global,
    rehearse: impl FnOnce(&Instance) -> Result<DryRun, bg_userspace::Error>,
) -> anyhow::Result<Outcome> {
    let mut dry_run = rehearse(&Instance::open(&global.paths())?)?;
    dry_run.refusal = dry_run.refusal.map(|refusal| output::advice(&refusal).into_owned());
    if global.json {
        output::print_json(&dry_run)?;
    } else {
        output::print_styled(&render(&dry_run, global.verbose))?;
    }
    Ok(if dry_run.would == Would::Refuse { Outcome::Refused } else { Outcome::Done })
}

fn render(dry_run: &DryRun, all: bool) -> String {
    let mut lines = vec![headline(dry_run), format!("  open flows: {}", flows(dry_run))];
    if dry_run.services.len() > 1 || dry_run.clients > 0 {
        lines.extend(services(dry_run));
    }
    let tables = dry_run.flow_table;
    lines.push(format!("  flow tables: IPv4 {}, IPv6 {}", table_use(tables.ipv4), table_use(tables.ipv6)));
    lines.extend(dry_run.freeze.as_ref().map(|freeze| window(freeze, dry_run.to.live.other())).into_iter().flatten());
    if !dry_run.mirrored.is_empty() && dry_run.from.live != dry_run.to.live {
        let idle = dry_run.to.live.other();
        let idle = styled(style_of(idle), idle.name());
        lines.push(format!("  mirror: then {idle} gets the copies of {}", dry_run.mirrored.join(", ")));
    }
    lines.extend(dry_run.gates.iter().map(|gate| format!("  gate {}", output::printable(gate))));
    lines.extend(backends(dry_run, all));
    lines.join("\n") + "\n"
}

fn headline(dry_run: &DryRun) -> String {
    let DryRun { deployment, from, to, would, green_share, .. } = dry_run;
    let [old, new] = [from, to].map(|moment| styled(style_of(moment.live), moment.live.name()));
    let generation = to.generation;
    let is_whole = *green_share == 0.0 || *green_share == 1.0;
    let share = format!("{} % of new flows to green", percent(*green_share));
    let by = dry_run.divide_by.name();
    match would {
        Would::Switch => {
            let human = |time: Duration| humantime::format_duration(time);
            let at = dry_run.at.map_or_else(String::new, |at| format!(" at {at}"));
            let ramp = dry_run.ramp.map_or_else(String::new, |ramp| format!(", by and by in {}", human(ramp)));
            let deadline = dry_run.confirm_within.map(|within| format!("{} later", human(within)));
            let guard = guard("would go back", deadline, &dry_run.revert_if, &dry_run.not_armed, deployment);
            let guard = output::advice(&guard);
            format!("{deployment}: would switch, {old} -> {new}{at}{ramp}, generation {generation}{guard}")
        }
        Would::Split => format!("{deployment}: would send {share}, by {by}, generation {generation}"),
        Would::Nothing if is_whole => {
            format!("{deployment}: {new} is live already, generation {generation}, nothing would change")
        }
        Would::Nothing => {
            format!("{deployment}: sends {share} already, by {by}, generation {generation}, nothing would change")
        }
        Would::Refuse => {
            let refused = styled(ALARM, "would be refused");
            let why = output::printable(dry_run.refusal.as_deref().unwrap_or_default());
            let what = if is_whole { format!("the switch {old} -> {new}") } else { format!("to send {share}") };
            format!("{deployment}: {what} {refused}: {why}")
        }
    }
}

fn flows(dry_run: &DryRun) -> String {
    let Fates { stay, moved, reset } = dry_run.flows;
    let is_drain = dry_run.would == Would::Switch && dry_run.on_switch == OnSwitch::Drain;
    let until = match dry_run.drain_timeout.filter(|_| is_drain) {
        Some(timeout) => format!(" (for at most {})", humantime::format_duration(timeout)),
        None => String::new(),
    };
    let moves = if moved == 1 { "moves" } else { "move" };
    let is = if reset == 1 { "is" } else { "are" };
    format!("{stay} stay{until}, {moved} {moves}, {reset} {is} reset")
}

/// What waits, and for what.
fn window(freeze: &WindowOutlook, from: Colour) -> [String; 2] {
    let WindowOutlook { max, waits, in_flight, room } = freeze;
    let (max, room) = (humantime::format_duration(*max), output::bytes(*room));
    let count = |number: u64, what| output::count(usize::try_from(number).unwrap_or(usize::MAX), what);
    let connections = count(in_flight.connections, "connection");
    let (handshakes, udp) = (count(in_flight.handshakes, "handshake"), count(in_flight.udp, "UDP flow"));
    let from = styled(style_of(from), from.name());
    let end = if *waits { "the switch waits until these are over" } else { "the switch cuts these" };
    [
        format!("  freeze: new flows wait for at most {max}, in {room} of memory"),
        format!("  in flight on {from}: {connections}, {handshakes}, {udp}; {end}"),
    ]
}

fn services(dry_run: &DryRun) -> Vec<String> {
    let mut table = Table::new([
        ("SERVICE", Left),
        ("STAY", Right),
        ("MOVE", Right),
        ("RESET", Right),
        ("CLIENTS", Right),
        ("OF WHICH MOVE", Right),
        ("ARE RESET", Right),
    ]);
    let mut row = |name: &str, flows: &Fates, clients: u64, by_fate: &Fates| {
        let numbers = [flows.stay, flows.moved, flows.reset, clients, by_fate.moved, by_fate.reset];
        let [stay, moved, reset, clients, clients_moved, clients_reset] =
            numbers.map(|number| number.to_string().into());
        table.row([Cell::from(name), stay, moved, reset, clients, clients_moved, clients_reset]);
    };
    for service in &dry_run.services {
        row(&service.service, &service.flows, service.clients, &service.clients_by_fate);
    }
    if dry_run.services.len() > 1 {
        row("(all)", &dry_run.flows, dry_run.clients, &dry_run.clients_by_fate);
    }
    table.lines("  ")
}

fn table_use(TableUse { open, room }: TableUse) -> String {
    format!("{open} of {room} ({:.1} %)", open as f64 * 100.0 / (room.max(1)) as f64)
}

/// How many backends are ready, and those that are not, or all of them.
fn backends(dry_run: &DryRun, all: bool) -> Vec<String> {
    let is_ready = |backend: &&TargetBackend| backend.ready == Some(true);
    let target = &dry_run.target;
    let mut lines = Vec::new();
    for colour in Colour::ALL {
        let of_colour = || target.iter().filter(|backend| backend.colour == colour);
        let ready = of_colour().filter(is_ready).count();
        let name = styled(style_of(colour), colour.name());
        if of_colour().count() > 0 {
            lines.push(format!("  {name}: {ready} of {} ready", output::count(of_colour().count(), "backend")));
        }
    }
    let mut table =
        Table::new([("SERVICE", Left), ("BACKEND", Left), ("WEIGHT", Right), ("READY", Left), ("WHY", Left)]);
    for backend in target.iter().filter(|backend| all || !is_ready(backend)) {
        let ready = match backend.ready {
            Some(true) => Cell::from("yes"),
            Some(false) => Cell::new("no", ALARM),
            None => Cell::from("unknown"),
        };
        let (address, weight) = (backend.backend.to_string(), backend.weight.to_string());
        let why = backend.why.as_deref().unwrap_or_default();
        table.row([backend.service.as_str().into(), address.into(), weight.into(), ready, why.into()]);
    }
    if !table.is_empty() {
        lines.extend(table.lines("  "));
    }
    lines
}
