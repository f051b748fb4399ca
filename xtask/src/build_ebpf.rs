//! `build-ebpf`: compiles the BPF objects and writes them to the files that bgctl embeds: the programs that packets meet, the same
//! engine with the feature `explain`, the program for backends, and those of health checks.
//!
//! The objects are kept in the repository so that building bgctl needs only stable Rust. The
//! danger is an object that does not match the sources. `--check` proves that it matches.

use crate::{
    process::{run as run_command, say},
    sources::{self, Record},
    toolchain::{self, Toolchain},
    workspace,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build, change nothing, and prove that the committed object matches the sources.
    #[arg(long)]
    check: bool,
}

const TARGET: &str = "bpfel-unknown-none";

pub(crate) fn run(args: &Args) -> Result<()> {
    let built = build()?;
    if args.check { check(&built) } else { install(&built) }
}

/// The path of the committed object with the programs that packets meet.
pub(crate) fn committed() -> PathBuf {
    workspace::root().join("bg-userspace/bpf/bg.bpf.o")
}

/// The path of the committed object that explains.
fn committed_explain() -> PathBuf {
    workspace::root().join("bg-userspace/bpf/explain.bpf.o")
}

/// The path of the committed object of `bgctl decap`.
fn committed_decap() -> PathBuf {
    workspace::root().join("bg-userspace/bpf/decap.bpf.o")
}

/// The path of the committed object of the health checks.
fn committed_check() -> PathBuf {
    workspace::root().join("bg-userspace/bpf/check.bpf.o")
}

fn committed_record() -> PathBuf {
    workspace::root().join("bg-userspace/bpf/bg.bpf.sources")
}

/// The objects that were just compiled.
pub(crate) struct Built {
    /// The path of the one with the programs that packets meet.
    pub(crate) path: PathBuf,
    explain: PathBuf,
    decap: PathBuf,
    check: PathBuf,
    record: Record,
}

impl Built {
    /// The variable that has bgctl and tests use the object for packets. None if the committed object has the same bytes, because cargo would
    /// build bgctl again for another path.
    pub(crate) fn variable(&self) -> Result<Option<(&'static str, &Path)>> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        Ok((read(&self.path)? != read(&committed())?).then_some(("BGCTL_BPF_OBJECT", &self.path)))
    }
}

/// Compiles the objects that bgctl embeds.
pub(crate) fn build() -> Result<Built> {
    let features = &["--features", EXPLAIN];
    let explain = compile("bg-ebpf", features)?;
    let path = compile("bg-ebpf", &[])?;
    let decap = compile("bg-decap", &[])?;
    let check = compile("bg-check", &[])?;
    let sha256 = |path: &Path| -> Result<String> {
        Ok(sources::sha256(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
    };
    let record = Record {
        sources: sources::checksum(&[codegen_flags(), profile()].concat(), features)?,
        object: sha256(&path)?,
        explain: sha256(&explain)?,
        decap: sha256(&decap)?,
        check: sha256(&check)?,
        compiler: Toolchain::require()?.version()?,
        linker: toolchain::require_bpf_linker()?,
    };
    Ok(Built { path, explain, decap, check, record })
}

/// The feature of the object that explains.
const EXPLAIN: &str = "explain";

/// The variable that is set for a process that was started again as root. The objects of the benchmarks were built before, by the
/// owner of the target directory.
pub(crate) const PREBUILT: &str = "BG_PREBUILT";

/// Whether this is such a process.
pub(crate) fn is_prebuilt() -> bool {
    std::env::var_os(PREBUILT).is_some()
}

/// The names of the benchmarks' programs.
const BENCHES: [&str; 2] = [BENCH, BENCH_SWITCH];
const BENCH: &str = "bg-bench";
const BENCH_SWITCH: &str = "bg-bench-switch";

/// Compiles all programs of the benchmarks.
pub(crate) fn prebuild_benches() -> Result<()> {
    BENCHES.iter().try_for_each(|program| compile(program, &[]).map(drop))
}

/// Compiles the benchmarks' programs. Returns the path of the object.
pub(crate) fn build_bench() -> Result<PathBuf> {
    compiled(BENCH)
}

fn compiled(program: &str) -> Result<PathBuf> {
    if is_prebuilt() { Ok(object_path(program)) } else { compile(program, &[]) }
}

fn object_path(program: &str) -> PathBuf {
    workspace::target_dir().join("bpf").join(program).with_extension("bpf.o")
}

/// Compiles the programs that measure the instant of a switch.
pub(crate) fn build_bench_switch() -> Result<PathBuf> {
    compiled(BENCH_SWITCH)
}

/// Compiles a program of the package with options such as features. Returns the path of the object.
fn compile(program: &str, options: &[&str]) -> Result<PathBuf> {
    let toolchain = Toolchain::require()?;
    let linker = toolchain::require_bpf_linker()?;
    let compiler = toolchain.version()?;
    say(format_args!("building the BPF object with {}: {compiler}, {linker}", toolchain.describe()));

    let target_dir = workspace::target_dir().join("bpf");
    let flags = [codegen_flags(), remap_flags(toolchain)?].concat();
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(workspace::root())
        .env("PATH", toolchain::path_with_cargo_bin())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // An incremental build divides the crates otherwise, and what comes of that has larger frames than old kernels allow.
        .env("CARGO_INCREMENTAL", "0")
        .args(["build", "--release", "--package", "bg-ebpf"])
        .args(["--bin", program])
        .args(options)
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    for setting in profile() {
        cargo.args(["--config", &setting]);
    }
    run_command(&mut cargo).with_context(|| {
        format!(
            "the BPF object did not build (if the linker complains about its input, the LLVM of bpf-linker is older \
             than the compiler's; expected {})",
            toolchain::LLVM
        )
    })?;

    let linked = target_dir.join(TARGET).join("release").join(program);
    let path = object_path(&[&[program], options].concat().join("-"));
    strip(&linked, &path)?;
    Ok(path)
}

/// Removes the DWARF, which is five sixths of the linked object. The BTF, which loaders read, stays.
fn strip(linked: &Path, stripped: &Path) -> Result<()> {
    let mut command = Command::new(format!("/usr/lib/llvm-{}/bin/llvm-strip", toolchain::LLVM));
    command.arg("--strip-debug").arg("-o").arg(stripped).arg(linked);
    run_command(&mut command)
        .with_context(|| format!("llvm-strip of LLVM {} is needed; run `cargo xtask setup`", toolchain::LLVM))
}

fn install(built: &Built) -> Result<()> {
    let objects = [
        (&built.path, committed()),
        (&built.explain, committed_explain()),
        (&built.decap, committed_decap()),
        (&built.check, committed_check()),
    ];
    for (from, to) in objects {
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        let size = fs::copy(from, &to).with_context(|| format!("cannot write {}", to.display()))?;
        say(format_args!("wrote {} ({size} bytes)", display(&to)));
    }
    fs::write(committed_record(), built.record.to_string())?;
    Ok(())
}

/// Proves that the committed objects are current. An error says what differs.
pub(crate) fn check(built: &Built) -> Result<()> {
    let (fresh, record) = (&built.record, Record::read(&committed_record())?);
    let stale = |path: &Path, what: &str, expected: &str, found: &str| {
        bail!(
            "{} does not match its sources: {what}: expected {expected}, found {found}; \
             run `cargo xtask build-ebpf` and commit the result",
            display(path)
        )
    };
    if record.sources != fresh.sources {
        return stale(&committed(), "checksum of the sources", &fresh.sources, &record.sources);
    }
    let is_same_toolchain = (&record.compiler, &record.linker) == (&fresh.compiler, &fresh.linker);
    let objects = [
        (committed(), &record.object, &fresh.object),
        (committed_explain(), &record.explain, &fresh.explain),
        (committed_decap(), &record.decap, &fresh.decap),
        (committed_check(), &record.check, &fresh.check),
    ];
    for (path, recorded, fresh) in objects {
        let bytes =
            fs::read(&path).with_context(|| format!("cannot read {}; run `cargo xtask build-ebpf`", display(&path)))?;
        let found = sources::sha256(&bytes);
        if *recorded != found {
            return stale(&path, "checksum of the object in its record", &found, recorded);
        }
        if is_same_toolchain && recorded != fresh {
            return stale(&path, "checksum of the object", fresh, recorded);
        }
    }
    if is_same_toolchain {
        say("the committed objects match their sources byte for byte");
    } else {
        say(format_args!(
            "the objects match their sources by checksum; the bytes were not compared, because they were built with {}, {}",
            record.compiler, record.linker
        ));
    }
    Ok(())
}

/// The flags that determine the generated code.
fn codegen_flags() -> Vec<String> {
    [
        "linker=bpf-linker",
        "link-arg=--btf",
        "debuginfo=2",
        "target-cpu=v3",
        // Small copies and fills become stores; else they are calls, which the verifier refuses.
        "link-arg=--disable-expand-memcpy-in-order",
    ]
    .iter()
    .flat_map(|flag| ["-C".to_owned(), (*flag).to_owned()])
    .collect()
}

/// The release profile for the object, whatever the workspace sets for programs of the host.
fn profile() -> Vec<String> {
    [
        "opt-level=3",
        "debug=2",
        "panic=\"abort\"",
        "lto=false",
        "codegen-units=1",
        "strip=false",
        "overflow-checks=false",
    ]
    .iter()
    .map(|setting| format!("profile.release.{setting}"))
    .collect()
}

/// Remaps paths, so that the object contains no path of the machine. It neither reveals who built it, nor
/// differs between two directories.
fn remap_flags(toolchain: Toolchain) -> Result<Vec<String>> {
    let mut remaps = vec![(workspace::root().to_owned(), "."), (toolchain.sysroot()?, "/rust")];
    let registries = toolchain::cargo_home().map(|home| home.join("registry/src"));
    // One directory a registry: its name tells which registry it was, so it is part of what goes.
    for entry in registries.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten() {
        remaps.push((entry?.path(), "/crates"));
    }
    Ok(remaps.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect())
}

fn display(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(workspace::root()).unwrap_or(path).display()
}
