//! The sources of the BPF object, and the record of them beside the object.
//!
//! The record has a checksum over the sources, so that an object that no longer matches them is
//! detected without a compiler. It also has the versions of compiler and linker, so that with the same
//! versions the object can be compared byte by byte.

use crate::{process::output, workspace};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The content of `bg.bpf.sources`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// SHA-256 over sources, manifests, locked dependencies and flags.
    pub(crate) sources: String,
    /// SHA-256 of the object with the programs that packets meet.
    pub(crate) object: String,
    /// SHA-256 of the object that explains.
    pub(crate) explain: String,
    /// SHA-256 of the object for backends.
    pub(crate) decap: String,
    /// SHA-256 of the object of the health checks.
    pub(crate) check: String,
    /// The compiler's version line.
    pub(crate) compiler: String,
    /// The linker's version line.
    pub(crate) linker: String,
}

impl Record {
    /// Parses a record.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
            let value = line.map(|value| value.trim().trim_matches('"').to_owned());
            value.with_context(|| format!("{}: expected a line `{name} = \"...\"`", path.display()))
        };
        Ok(Self {
            sources: field("sources")?,
            object: field("object")?,
            explain: field("explain")?,
            decap: field("decap")?,
            check: field("check")?,
            compiler: field("compiler")?,
            linker: field("linker")?,
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by `cargo xtask build-ebpf`, proved by `cargo xtask build-ebpf --check`.")?;
        writeln!(f, "sources = \"{}\"", self.sources)?;
        writeln!(f, "object = \"{}\"", self.object)?;
        writeln!(f, "explain = \"{}\"", self.explain)?;
        writeln!(f, "decap = \"{}\"", self.decap)?;
        writeln!(f, "check = \"{}\"", self.check)?;
        writeln!(f, "compiler = \"{}\"", self.compiler)?;
        writeln!(f, "linker = \"{}\"", self.linker)
    }
}

/// SHA-256 over everything that determines the object except the compiler: the sources and
/// manifests of the two crates, the locked versions of their dependencies with these `features`, and `flags`.
pub(crate) fn checksum(flags: &[String], features: &[&str]) -> Result<String> {
    let root = workspace::root();
    let mut files = vec![root.join("bg-ebpf/Cargo.toml"), root.join("bg-common/Cargo.toml")];
    collect(&root.join("bg-ebpf/src"), &mut files)?;
    collect(&root.join("bg-common/src"), &mut files)?;
    files.sort();

    let mut hash = Sha256::new();
    let mut add = |name: &str, content: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    };
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy();
        add(&name, &fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    add("dependencies", locked_dependencies(features)?.as_bytes());
    add("flags", flags.join("\n").as_bytes());
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name and version of each crate in the object, one per line.
fn locked_dependencies(features: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = output(
        Command::new(cargo)
            .current_dir(workspace::root())
            .args(["tree", "--package", "bg-ebpf", "--target", "bpfel-unknown-none", "--edges", "normal,build"])
            .args(["--prefix", "none", "--format", "{p}"])
            .args(features),
    )?;
    // `{p}` is "name vX.Y.Z", followed by the path for a crate of the workspace, which is hashed as source.
    let mut crates: Vec<_> = tree.lines().map(|line| line.split(" (").next().unwrap_or(line)).collect();
    crates.sort_unstable();
    crates.dedup();
    Ok(crates.join("\n"))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_what_was_written() {
        let record = Record {
            sources: "ab".into(),
            object: "cd".into(),
            explain: "ef".into(),
            decap: "01".into(),
            check: "23".into(),
            compiler: "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)".into(),
            linker: "bpf-linker 0.13.0".into(),
        };
        let path = std::env::temp_dir().join(format!("bg-record-{}", std::process::id()));
        fs::write(&path, record.to_string()).unwrap();
        let read = Record::read(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), record);
    }
}
