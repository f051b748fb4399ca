//! `bgctl freeze` and `bgctl thaw`: hold new flows, and let them go on.

use bg_userspace::{FreezeRequest, Frozen, Instance, Thawed};

use crate::{
    args::{Freeze, Global, Thaw},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Freeze) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    let request = FreezeRequest { max: Some(args.max), drop: args.drop, reason: args.reason.clone() };
    let frozen = instance.freeze(&args.deployment, &request);
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let frozen = frozen?;
    instance.thaw_at_the_end(&frozen);
    if global.json {
        output::print_json(&frozen)?;
    } else {
        let Frozen { deployment, frozen_until, drop, .. } = &frozen;
        let fate = if *drop { "are dropped" } else { "wait" };
        output::print(&format!("{deployment}: new flows {fate} until {frozen_until}, or a thaw\n"))?;
    }
    Ok(Outcome::Done)
}

pub(super) fn run_thaw(global: &Global, args: &Thaw) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    let thawed = instance.thaw(&args.deployment, args.reason.as_deref());
    instance.warnings().iter().for_each(|warning| output::message(warning));
    let thawed = thawed?;
    if global.json {
        output::print_json(&thawed)?;
    } else {
        output::print(&render(&thawed))?;
    }
    Ok(Outcome::Done)
}

fn render(thawed: &Thawed) -> String {
    let Thawed { deployment, changed, played_back, expired, .. } = thawed;
    let count = |number: u64, what| output::count(usize::try_from(number).unwrap_or(usize::MAX), what);
    if !changed {
        return format!("{deployment}: not frozen, nothing changed\n");
    }
    let expired = match expired {
        0 => String::new(),
        _ => format!(", {} too old for that", count(*expired, "packet")),
    };
    format!("{deployment}: thawed, {} played back{expired}\n", count(*played_back, "held packet"))
}
