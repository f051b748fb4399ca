//! `bgctl plan`: show what an apply would change.

use bg_userspace::Instance;

use crate::{
    args::{ConfigFile, Global},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, file: &ConfigFile) -> anyhow::Result<Outcome> {
    let config = super::load(&file.config)?;
    let instance = Instance::open(&global.paths())?;
    let plan = instance.plan(&config)?;
    instance.warnings().iter().for_each(|warning| output::message(warning));
    if global.json {
        output::print_json(&plan)?;
    } else if plan.is_empty() {
        output::print("nothing to change\n")?;
    } else {
        output::print(&plan.to_string())?;
    }
    Ok(if plan.is_empty() { Outcome::Done } else { Outcome::Changes })
}
