//! `bgctl doctor`: check this host.

use std::path::Path;

use anyhow::Context as _;
use bg_userspace::doctor::{self, Level};

use crate::{
    args::{Doctor, Global, USUAL_CONFIG},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Doctor) -> anyhow::Result<Outcome> {
    let usual = || Some(Path::new(USUAL_CONFIG)).filter(|path| path.exists());
    let config = args.config.as_deref().or_else(usual).map(super::load).transpose()?;
    if args.notrack {
        let config = config.context("--notrack needs a configuration: name it with -c FILE")?;
        output::print(&doctor::notrack(&config))?;
        return Ok(Outcome::Done);
    }
    let mut report =
        doctor::examine(&global.paths(), &args.interfaces, config.as_ref()).map_err(bg_userspace::Error::from)?;
    for finding in &mut report.findings {
        for text in std::iter::once(&mut finding.message).chain(&mut finding.remedy) {
            *text = output::advice(text).into_owned();
        }
    }
    if global.json {
        output::print_json(&report)?;
    } else {
        let mut text = String::new();
        let mut subject = "";
        for finding in &report.findings {
            if finding.subject != subject {
                subject = &finding.subject;
                text += &format!("{subject}\n");
            }
            text += &format!("  {:4}  {}: {}\n", finding.level.name(), finding.check, finding.message);
            if let Some(remedy) = &finding.remedy {
                text += &format!("        -> {remedy}\n");
            }
        }
        output::print(&text)?;
    }
    Ok(if report.worst() == Level::Fail { Outcome::Failed } else { Outcome::Done })
}
