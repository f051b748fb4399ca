//! `bgctl attach`: load if needed, attach, pin.

use bg_userspace::{AttachMode, AttachOptions};

use crate::{
    args::{Attach, Global, Mode},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Attach) -> anyhow::Result<Outcome> {
    let mode = match args.mode {
        Mode::Auto => AttachMode::Auto,
        Mode::Native => AttachMode::Native,
        Mode::Generic => AttachMode::Generic,
        Mode::Tc => AttachMode::Tc,
    };
    let options = AttachOptions { mode, flows: args.flows, next: args.next.clone() };
    let attached = bg_userspace::attach(&global.paths(), &args.interfaces, &options)?;
    if global.json {
        output::print_json(&serde_json::json!({ "interfaces": attached }))?;
    } else {
        let lines = attached.iter().map(|interface| {
            let how = if interface.updated { "updated in place" } else { "attached" };
            format!("{} {how}, {}\n", interface.name, interface.mode.name())
        });
        output::print(&lines.collect::<String>())?;
    }
    Ok(Outcome::Done)
}
