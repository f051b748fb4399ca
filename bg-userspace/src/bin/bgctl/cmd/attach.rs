//! `bgctl attach`: attach to interfaces and pin.

use std::{path::Path, time::Duration};

use anyhow::bail;
use bg_userspace::{AttachMode, AttachOptions, Attached, InterfaceList};

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
    let options = AttachOptions {
        mode,
        flows: args.flows,
        services: args.services,
        backends: args.backends,
        next: args.next.clone(),
        force: args.force,
        wait: args.wait,
    };
    let Some(file) = &args.from else {
        report(global, &bg_userspace::attach(&global.paths(), &args.interfaces, &options)?)?;
        return Ok(Outcome::Done);
    };

    let listed = Listed::find(file, args.wait.unwrap_or_default(), mode)?;
    report(global, &bg_userspace::attach_in_modes(&global.paths(), &listed.interfaces, &options)?)?;
    if listed.missing.is_empty() {
        return Ok(Outcome::Done);
    }
    // The exit code says it, too.
    output::message(&format!("warning: {}", listed.complaint(file)));
    Ok(if args.wait.is_some() { Outcome::TimedOut } else { Outcome::Failed })
}

/// The interfaces that a file lists.
struct Listed {
    interfaces: Vec<(String, AttachMode)>,
    missing: Vec<String>,
}

impl Listed {
    fn find(file: &Path, patience: Duration, default: AttachMode) -> anyhow::Result<Self> {
        let selected = InterfaceList::load(file)?.wait(patience)?;
        let interfaces = selected.interfaces.into_iter().map(|(name, mode)| (name, mode.unwrap_or(default))).collect();
        let listed = Self { interfaces, missing: selected.missing };
        if listed.interfaces.is_empty() {
            bail!("nothing to attach to: {}", listed.complaint(file));
        }
        Ok(listed)
    }

    fn complaint(&self, file: &Path) -> String {
        format!(
            "no interface matches {} of {}; run `ip link` to list the interfaces",
            self.missing.join(", "),
            file.display()
        )
    }
}

fn report(global: &Global, attached: &[Attached]) -> anyhow::Result<()> {
    for interface in attached {
        for other in &interface.in_front {
            let name = &interface.name;
            output::message(&format!("warning: {}", other.warning(name)));
        }
    }
    if global.json {
        return Ok(output::print_json(&serde_json::json!({ "interfaces": attached }))?);
    }
    let lines = attached.iter().map(|interface| {
        let how = if interface.updated { "updated in place" } else { "attached" };
        format!("{} {how}, {}\n", interface.name, interface.mode.name())
    });
    Ok(output::print(&lines.collect::<String>())?)
}
