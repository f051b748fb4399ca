//! `package`: builds the Debian package, from a release build of bgctl.

use crate::{
    cargo_tools::{self, CARGO_DEB},
    packages::{Tools, install_tools},
    process::{as_root, output, run as run_command, say},
    toolchain, workspace,
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Package the bgctl of the last release build
    #[arg(long)]
    no_build: bool,
    /// Install the package on this machine, by apt
    #[arg(long)]
    install: bool,
}

/// Builds bgctl and packages it.
pub(crate) fn run(args: &Args) -> Result<()> {
    install_tools(Tools::Package)?;
    cargo_tools::install(&[CARGO_DEB])?;
    if !args.no_build {
        run_command(cargo().args(["build", "--release", "--package", "bg-userspace"]))?;
    }
    let deb = build()?;
    say(format_args!("made {}", deb.display()));
    if args.install {
        // Of the same version, too: what is packaged may have changed.
        run_command(as_root("apt-get").args(["install", "--yes", "--reinstall"]).arg(&deb))?;
    }
    Ok(())
}

/// Packages the bgctl of the last release build. The package has the same name whatever its version.
pub(crate) fn build() -> Result<PathBuf> {
    let release = workspace::target_dir().join("release");
    let maintainer = maintainer();
    generate(&release.join("bgctl"), &release.join("package"), &maintainer)?;
    let deb = workspace::target_dir().join("debian/bgctl.deb");
    let mut command = cargo();
    command.env("PATH", toolchain::path_with_cargo_bin());
    command.args(["deb", "--package", "bg-userspace", "--no-build", "--quiet", "--output"]).arg(&deb);
    command.args(["--maintainer", &maintainer]);
    // cargo-deb says where the package is on its standard output.
    output(&mut command).context("cargo-deb failed; `cargo xtask setup` installs it")?;
    Ok(deb)
}

/// The manual pages, completions and changelog of the package, compressed as Debian requires.
fn generate(bgctl: &Path, dir: &Path, maintainer: &str) -> Result<()> {
    // Pages of an earlier build might be of commands that are gone.
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let man = dir.join("man");
    fs::create_dir_all(&man).with_context(|| format!("cannot make {}", man.display()))?;
    output(Command::new(bgctl).arg("man").arg(&man))?;
    for shell in ["bash", "zsh", "fish"] {
        let script = output(Command::new(bgctl).args(["completions", shell]))?;
        write(&dir.join(format!("bgctl.{shell}")), &(script + "\n"))?;
    }
    let changelog = dir.join("changelog");
    write(&changelog, &debian_changelog(maintainer))?;

    let mut files = vec![changelog];
    for page in fs::read_dir(&man)? {
        files.push(page?.path());
    }
    run_command(Command::new("gzip").args(["-9", "-n", "--"]).args(files))
}

/// The package's maintainer is whoever builds it: from Debian's variables, or else from the packaged commit.
fn maintainer() -> String {
    if let Ok(email) = std::env::var("DEBEMAIL") {
        let name = std::env::var("DEBFULLNAME").unwrap_or_else(|_| "bgctl".to_owned());
        return format!("{name} <{email}>");
    }
    // Outside of a clone nobody is known.
    last_commit("%cn <%ce>").unwrap_or_else(|| "bgctl <root@localhost>".to_owned())
}

/// A changelog in Debian's form, with version and date. The changes are in the repository's changelog beside it.
fn debian_changelog(maintainer: &str) -> String {
    // Outside of a clone there is no date of a commit; any will do.
    let date = last_commit("%cD").unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 +0000".to_owned());
    format!(
        "bgctl ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {maintainer}  {date}\n",
        env!("CARGO_PKG_VERSION"),
    )
}

/// Information from git about the last commit.
fn last_commit(format: &str) -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["log", "-1", &format!("--format={format}")]);
    output(&mut git).ok()
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}
