//! Schemathesis, which compares the controller's answers with its OpenAPI document. It comes from PyPI, into a Python environment of its own
//! in the target directory.

use crate::{
    packages::apt_install,
    process::{output, run, say},
};
use anyhow::{Context, Result};
use bg_tests::SCHEMATHESIS;
use std::{fs, process::Command};

/// Installs it if it is missing.
pub(crate) fn install() -> Result<()> {
    let target = crate::workspace::target_dir();
    let environment = target.join(SCHEMATHESIS);
    if environment.join("bin/schemathesis").exists() {
        say(format_args!("schemathesis: {}", environment.display()));
        return Ok(());
    }
    if output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        say("missing: what makes Python environments (Debian's python3-venv), for schemathesis");
        apt_install(&["python3", "python3-venv"])?;
    }
    let version = SCHEMATHESIS.rsplit('-').next().unwrap_or_default();
    say(format_args!("pip install schemathesis {version} into {}: about a minute", environment.display()));
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    // Made elsewhere and moved, an environment would not find itself. So an unfinished one is removed.
    let made = output(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        .context("python3 cannot make an environment")
        .and_then(|_| {
            let mut pip = Command::new(environment.join("bin/pip"));
            run(pip.args(["install", "--quiet", "--disable-pip-version-check", &format!("schemathesis=={version}")]))
        });
    if made.is_err() {
        let _ = fs::remove_dir_all(&environment);
    }
    made
}
