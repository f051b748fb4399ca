//! `budget`: counts the instructions of the hot paths and compares them with a committed file. Nothing is timed, so the same
//! sources and compiler give the same counts on any machine of the same kind, however busy it is.
//!
//! | what | how it is counted | what it catches |
//! | --- | --- | --- |
//! | a packet on each path | the engine's host build under callgrind (`tests/examples/hot_path`) | more work |
//! | each program of the object | instructions in the committed object | more code, also outside the engine |
//!
//! Each run also checks that the check works: an engine that looks up each flow twice must fail it.

mod count;
mod file;
mod object;
mod verdict;

use crate::{build_ebpf, process::say};
use anyhow::{Result, bail};
use count::Counts;
use file::Budgets;
use verdict::{Finding, Margin, judge};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Write the present counts as the new budgets.
    #[arg(long)]
    update: bool,
}

/// A count that exceeds its budget by more than this fails. Counts of one compiler do not vary, so the margin is for changes.
/// It allows eight more instructions for a packet of an open flow. Another look-up costs a third of all its instructions, and 4 % of
/// those that open a flow.
const SAME_COMPILER: Margin = Margin { percent: 2.0 };

/// Another compiler generates other code from the same sources. This margin still catches another look-up for an open flow.
const OTHER_COMPILER: Margin = Margin { percent: 10.0 };

pub(crate) fn run(args: &Args) -> Result<()> {
    let object = object::instructions(&build_ebpf::committed())?;
    let Counts { engine, twice, compiler } = count::count()?;
    if args.update {
        let budgets = Budgets { compiler, packet: engine, object };
        return budgets.write();
    }
    let budgets = Budgets::read()?;
    let mut failed = report("instructions of a program of the object", judge(&budgets.object, &object, SAME_COMPILER));

    let margin = if budgets.compiler == compiler { SAME_COMPILER } else { OTHER_COMPILER };
    if budgets.compiler.target != compiler.target {
        say(format_args!(
            "instructions of a packet not compared: budgets are of {}, this is {}",
            budgets.compiler.target, compiler.target
        ));
    } else {
        if budgets.compiler != compiler {
            let (theirs, ours) = (&budgets.compiler.rustc, &compiler.rustc);
            say(format_args!("budgets are of {theirs}, this is {ours}: held within {} % only", margin.percent));
        }
        failed += report("instructions of a packet", judge(&budgets.packet, &engine, margin));
        // Else a broken check would be taken for a fast engine. Each path that reads the flow table has to fail.
        let caught = judge(&engine, &twice, SAME_COMPILER).iter().filter(|finding| finding.is_over()).count();
        if caught != engine.len() {
            bail!(
                "the check does not work: of {} paths with an extra look-up of the flow only {caught} were found slower",
                engine.len()
            );
        }
        say(format_args!("an engine with an extra look-up of each flow was caught, on all {caught} paths"));
    }
    if failed > 0 {
        bail!(
            "{failed} over budget or without one, see above: make it cheaper, or, if it is worth that, run \
             `cargo xtask budget --update`, commit {} and say why in the commit",
            file::NAME
        );
    }
    Ok(())
}

/// Prints a table. Returns how many findings fail.
fn report(what: &str, findings: Vec<Finding>) -> usize {
    println!("{:<40} {:>9} {:>9} {:>8}", what, "budget", "counted", "");
    findings.iter().for_each(|finding| println!("  {finding}"));
    if findings.iter().any(Finding::is_far_under) {
        say("some need far less than their budgets: hold them to that, by `cargo xtask budget --update`");
    }
    findings.iter().filter(|finding| finding.fails()).count()
}
