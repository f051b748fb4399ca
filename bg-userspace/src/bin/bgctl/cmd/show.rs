//! `bgctl show`: print the running configuration.

use bg_userspace::Instance;

use crate::{args::Global, exit::Outcome, output};

pub(super) fn run(global: &Global) -> anyhow::Result<Outcome> {
    let text = Instance::open(&global.paths())?.configuration()?.to_toml();
    if global.json {
        let same: serde_json::Value = toml::from_str(&text)?;
        output::print_json(&same)?;
    } else {
        output::print(&text)?;
    }
    Ok(Outcome::Done)
}
