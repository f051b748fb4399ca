//! `kernels`: boots other kernels under QEMU, and runs bgctl there in each attach mode. It shows whether their verifiers accept
//! the programs, which no test on this kernel can show. It is not a part of `test`, because it takes a minute or two for each kernel.

mod machine;

use crate::{
    packages::apt_install,
    process::{output, run as run_command, say},
    workspace,
};
use anyhow::{Context, Result, bail, ensure};
use machine::Machine;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Debian packages with kernels and their modules: files, or names of packages that apt downloads
    #[arg(required = true, value_name = "PACKAGE")]
    packages: Vec<String>,
}

/// The attach modes that are tested.
const MODES: [&str; 3] = ["generic", "tc", "native"];

/// The programs that this uses, and their Debian packages.
const PROGRAMS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox"),
    ("cpio", "cpio"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("xzcat", "xz-utils"),
    ("zstdcat", "zstd"),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let is_missing = |program: &str| output(Command::new("which").arg(program)).is_err();
    let missing = PROGRAMS.into_iter().filter_map(|(program, package)| is_missing(program).then_some(package));
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        apt_install(&missing)?;
    }
    let dir = workspace::target_dir().join("kernels");
    let root = dir.join("root");
    unpack(&args.packages, &dir, &root)?;
    let kernels = machine::kernels(&root)?;
    ensure!(!kernels.is_empty(), "expected a package with a kernel, like linux-image-6.1.0-50-amd64");

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    run_command(build.current_dir(workspace::root()).args(["build", "--release", "--package", "bg-userspace"]))?;
    let bgctl = workspace::target_dir().join("release/bgctl");

    let mut failures = 0;
    for kernel in &kernels {
        let machine = Machine { kernel, bgctl: &bgctl };
        say(format_args!("{}, at most {} minutes", kernel.release, machine::MINUTES));
        let log = machine.boot(&dir)?;
        for (mode, result) in results(&log) {
            failures += usize::from(result != "ok");
            println!("{:<40} {mode:<8} {result}", kernel.release);
        }
    }
    if failures > 0 {
        bail!(
            "{failures} of {} lives of an instance failed; {} has the consoles",
            kernels.len() * MODES.len(),
            dir.display()
        );
    }
    Ok(())
}

/// The result of each mode, as the machine has printed it.
fn results(log: &str) -> [(&'static str, String); 3] {
    MODES.map(|mode| {
        let result =
            log.lines().find_map(|line| line.trim_end().strip_prefix("@ ")?.strip_prefix(mode)?.strip_prefix(' '));
        (mode, result.unwrap_or("no result").to_owned())
    })
}

/// Unpacks the packages into an empty root.
fn unpack(packages: &[String], dir: &Path, root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    for package in packages {
        let file = if package.ends_with(".deb") { PathBuf::from(package) } else { download(package, dir)? };
        run_command(Command::new("dpkg-deb").arg("--extract").args([&file, root]))?;
    }
    Ok(())
}

/// Downloads a package, unless its present version is there.
fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(dir).args(["download", "--quiet", package]);
        apt
    };
    // 'URI' FILE SIZE HASH
    let uri = output(apt().arg("--print-uris"))?;
    let name = uri.split(' ').nth(1).with_context(|| format!("apt-get knows no file of {package}, but {uri:?}"))?;
    let file = dir.join(name);
    if !file.exists() {
        run_command(&mut apt())?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_a_result() {
        let log = "\u{1b}[2J\r\n@ generic ok\r\n[ 1.0] @ tc ok\r\n@ native preview: expected green, got blue\r\n@ native ok\r\n";
        let expected = [("generic", "ok"), ("tc", "no result"), ("native", "preview: expected green, got blue")];
        assert_eq!(results(log), expected.map(|(mode, result)| (mode, result.to_owned())));
    }
}
