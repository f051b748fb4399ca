//! Running other programs, with messages about what runs and what fails.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// Prints one line of progress.
pub(crate) fn say(line: impl std::fmt::Display) {
    eprintln!("==> {line}");
}

/// Runs a command to its end, with the same output streams as this process.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = program(command);
    let status = command.status().with_context(|| format!("cannot run `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns its standard output, without the last line break.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = program(command);
    let output = command.stderr(Stdio::piped()).output().with_context(|| format!("cannot run `{name}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed: {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// A command that runs as root: directly if this process is root, else by sudo.
pub(crate) fn as_root(name: &str) -> Command {
    if is_root() {
        return Command::new(name);
    }
    let mut command = Command::new("sudo");
    command.arg(name);
    command
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid == "0")
}

/// Whether [`as_root`] is possible.
pub(crate) fn can_be_root() -> bool {
    is_root() || output(Command::new("sudo").arg("--version")).is_ok()
}

fn program(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).take(4);
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
