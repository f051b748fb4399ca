//! `bgctl drill`: rehearse the recovery.

use std::fmt::Write as _;

use bg_userspace::{
    Instance,
    drill::{self, Drill, DrillRequest, Leg},
    history::Moment,
};

use super::gated;
use crate::{
    args::{self, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &args::Drill) -> anyhow::Result<Outcome> {
    let request = DrillRequest {
        back_after: args.back_after,
        on_switch: args.on_switch.map(Into::into),
        if_generation: args.if_generation,
        force: args.force,
        reason: args.reason.clone(),
    };
    let instance = Instance::open(&global.paths())?;
    let gates = instance.gates(&args.deployment)?;
    let drill = drill::drill(&instance, &args.deployment, &request, &gates, &mut gated::tell);
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let drill = drill?;
    if global.json {
        output::print_json(&drill)?;
    } else {
        output::print(&render(&drill))?;
    }
    Ok(if drill.passed { Outcome::Done } else { Outcome::Refused })
}

fn render(drill: &Drill) -> String {
    let Drill { deployment, failed, from, there, back, away, gates, .. } = drill;
    let name = |moment: &Moment| moment.live.name();
    let outcome = match failed {
        None if gates.is_empty() => "done, without gates".to_owned(),
        None => "passed".to_owned(),
        Some(failed) => format!("failed: gate {failed}"),
    };
    let mut text =
        format!("{deployment}: drill {} -> {} -> {}, {outcome}\n", name(from), name(&there.to), name(&back.to));
    let leg = |leg: &Leg| {
        let first = leg
            .first_new_us
            .map_or_else(|| "no new flow yet".to_owned(), |after| format!("first new flow after {after} µs"));
        let (call, fence) = (leg.call.as_secs_f64() * 1e3, leg.fence.as_secs_f64() * 1e3);
        format!("{call:.1} ms, of which the fence {fence:.1} ms; {first}; generation {}", leg.to.generation)
    };
    _ = writeln!(text, "  switch: {}", leg(there));
    for report in gates {
        let attempts = output::count(report.attempts as usize, "attempt");
        let outcome = if report.passed { "passed" } else { "failed" };
        let (when, gate) = (report.when.name(), output::printable(&report.gate));
        _ = writeln!(
            text,
            "  gate {gate} ({when}): {outcome}, {attempts}, the longest {} ms",
            report.longest.as_millis()
        );
    }
    _ = writeln!(text, "  {} was live for {:.3} s", name(&there.to), away.as_secs_f64());
    _ = writeln!(text, "  back: {}", leg(back));
    text
}
