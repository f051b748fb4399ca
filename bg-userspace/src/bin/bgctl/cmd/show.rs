//! `bgctl show`: print the running configuration.

use bg_userspace::{Error, Instance};

use crate::{args::Global, exit::Outcome, output};

pub(super) fn run(global: &Global) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    let config = instance.configuration().or_else(|error| {
        let rest = instance.configuration_without_gates()?;
        if let Error::GatesUnknown { why } = &error {
            output::message(&format!("warning: no gates are printed, and who applies this removes them: {why}"));
            return Ok(rest);
        }
        Err(error)
    })?;
    let text = config.to_toml();
    if global.json {
        let same: serde_json::Value = toml::from_str(&text)?;
        output::print_json(&same)?;
    } else {
        output::print(&text)?;
    }
    Ok(Outcome::Done)
}
