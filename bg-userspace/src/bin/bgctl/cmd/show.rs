//! `bgctl show`: print the running configuration.

use bg_userspace::{Error, Instance};

use crate::{args::Global, exit::Outcome, output};

pub(super) fn run(global: &Global) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    let (config, missing) = match instance.configuration() {
        Err(Error::GatesUnknown { why }) => (instance.configuration_without_gates()?, Some(why)),
        config => (config?, None),
    };
    let mut text = config.to_toml();
    if let Some(why) = &missing {
        output::message(&format!("the gates are missing in this: {why}"));
        // Whoever applies it would remove them. No file may have this key.
        text = format!("gates = \"unknown\"\n{text}");
    }
    if global.json {
        let same: serde_json::Value = toml::from_str(&text)?;
        output::print_json(&same)?;
    } else {
        output::print(&text)?;
    }
    Ok(if missing.is_some() { Outcome::Failed } else { Outcome::Done })
}
