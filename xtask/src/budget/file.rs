//! `bg-ebpf/budgets.toml`: the budgets, and the compiler with which they were counted.

use super::verdict::Numbers;
use crate::{process::say, workspace};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
};

/// The path of the budgets, from the root of the repository.
pub(crate) const NAME: &str = "bg-ebpf/budgets.toml";

/// The file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budgets {
    /// The compiler with which `packet` was counted.
    pub(crate) compiler: Compiler,
    /// Instructions per packet, by path.
    pub(crate) packet: Numbers,
    /// Instructions of each program of the object.
    pub(crate) object: Numbers,
}

/// A compiler, and its target.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compiler {
    /// Target triple.
    pub(crate) target: String,
    /// Version line.
    pub(crate) rustc: String,
}

impl Budgets {
    /// Reads the committed file.
    pub(crate) fn read() -> Result<Self> {
        let path = path();
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {NAME}; run `cargo xtask budget --update`, and commit it"))?;
        toml::from_str(&text).with_context(|| format!("{NAME} is not what `cargo xtask budget --update` writes"))
    }

    /// Writes it.
    pub(crate) fn write(&self) -> Result<()> {
        fs::write(path(), self.to_string()).with_context(|| format!("cannot write {NAME}"))?;
        say(format_args!("wrote {NAME}: {} paths, {} programs", self.packet.len(), self.object.len()));
        Ok(())
    }
}

fn path() -> PathBuf {
    workspace::root().join(NAME)
}

impl fmt::Display for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |numbers: &Numbers| {
            numbers.iter().fold(String::new(), |mut table, (name, number)| {
                // Writing to a string does not fail.
                let _ = writeln!(table, "{name:?} = {number:.1}");
                table
            })
        };
        let Compiler { target, rustc } = &self.compiler;
        write!(
            f,
            "# Instructions that hot paths may need. Written by `cargo xtask budget --update`, held by `cargo xtask test`.\n\
             # A change that raises one says why in its commit.\n\n\
             [compiler]\ntarget = \"{target}\"\nrustc = \"{rustc}\"\n\n\
             # A packet, through the engine's host build with tables in plain memory.\n\
             [packet]\n{}\n\
             # Each program of the committed object, with what it calls.\n\
             [object]\n{}",
            table(&self.packet),
            table(&self.object)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_read_back_what_was_written() {
        let numbers = |name: &str, number: f64| Numbers::from([(name.to_owned(), number)]);
        let budgets = Budgets {
            compiler: Compiler { target: "x86_64-unknown-linux-gnu".into(), rustc: "rustc 1.95.0 (abc)".into() },
            packet: numbers("open flow, IPv4 \"TCP\"", 214.5),
            object: numbers("ingress", 5050.0),
        };
        assert_eq!(toml::from_str::<Budgets>(&budgets.to_string()).unwrap(), budgets);
    }
}
