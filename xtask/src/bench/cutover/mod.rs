//! `bench cutover`: how many of many open connections break when the balancer in front of them changes.

mod arena;
mod contender;
mod crew;
mod judge;
mod load;
mod measure;
mod plan;
mod server;
mod serving;
mod tables;

use super::{bgctl, record, report::Report};
use crate::process::say;
use anyhow::{Context, Result, ensure};
use contender::Contender;
use measure::Measured;
use plan::Plan;
use std::{fs, path::PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Connections that are open at a time, by default 70,000, or 7,000 in a quick run.
    #[arg(long)]
    connections: Option<u32>,
    /// Only contenders whose names contain this. The page shows them with the last results of the others, if their settings
    /// were the same.
    #[arg(long)]
    only: Option<String>,
    /// Measure nothing; generate the page again from the last results.
    #[arg(long)]
    pub(super) page: bool,
    /// Three minutes with few connections and one rate; the figures mean little.
    #[arg(long)]
    pub(super) quick: bool,
}

impl Args {
    fn plan(&self, files: u32) -> Plan {
        let connections = self.connections.unwrap_or(if self.quick { 7000 } else { 70_000 });
        Plan::new(connections, files, self.quick)
    }

    fn wants(&self, contender: Contender) -> bool {
        self.only.as_ref().is_none_or(|part| contender.name().contains(part))
    }
}

pub(crate) fn run(args: &Args) -> Result<Report> {
    bgctl::build()?;
    let plan = args.plan(crew::allow_files()?);
    let mut wanted = Contender::ALL.into_iter().filter(|contender| args.wants(*contender)).peekable();
    ensure!(wanted.peek().is_some(), "no contender's name contains {:?}", args.only.as_deref().unwrap_or_default());
    for contender in wanted {
        if let Some(missing) = contender.missing() {
            say(format_args!("cutover: without {}: {missing}", contender.name()));
            continue;
        }
        say(format_args!("cutover: {}", contender.name()));
        let measured = measure::measure(contender, &plan).with_context(|| contender.name())?;
        if contender == Contender::Hash {
            measure::prove(&measured, arena::BACKENDS as u64)?;
        }
        keep(contender, &measured)?;
    }
    Ok(report(&plan))
}

/// The report of the last results.
pub(super) fn last(args: &Args) -> Result<Report> {
    Ok(report(&args.plan(crew::allow_files()?)))
}

fn report(plan: &Plan) -> Report {
    let kept: Vec<_> = Contender::ALL.into_iter().map(|one| (one, kept(one, plan))).collect();
    tables::report(plan, &kept)
}

/// The file with the last results of a contender.
fn file(contender: Contender) -> PathBuf {
    let letters = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = contender.name().chars().map(letters).collect();
    record::dir().join("cutover").join(name).with_extension("json")
}

fn keep(contender: Contender, measured: &Measured) -> Result<()> {
    let path = file(contender);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(&path, serde_json::to_vec(measured)?).with_context(|| format!("cannot write {}", path.display()))
}

/// The last results of a contender with these settings. Those of an older version may have another form.
fn kept(contender: Contender, plan: &Plan) -> Option<Measured> {
    let measured: Measured = serde_json::from_slice(&fs::read(file(contender)).ok()?).ok()?;
    (measured.plan == *plan).then_some(measured)
}
