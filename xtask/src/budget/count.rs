//! Counting the instructions of a packet, with callgrind in the engine's host build.

use super::{file::Compiler, verdict::Numbers};
use crate::{
    process::{output, run as run_command, say},
    workspace,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The counts.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Instructions per packet, by path.
    pub(crate) engine: Numbers,
    /// The same for an engine that looks up each flow twice.
    pub(crate) twice: Numbers,
    /// The compiler.
    pub(crate) compiler: Compiler,
}

/// The profile of the build, in the root manifest.
const PROFILE: &str = "budget";

/// The program, which is an example of the tests' crate, its counted functions, and the function that ends a path.
const PROGRAM: &str = "hot_path";
const COUNTED: &str = "counted_packet*";
const END: &str = "path_taken";

/// Builds the program and counts.
pub(crate) fn count() -> Result<Counts> {
    let compiler = compiler()?;
    let program = build()?;
    let file = program.with_extension("callgrind");
    let paths = under_callgrind(&program, &file)?;
    let profile = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let (engine, twice) = attribute(&paths, &profile, &program)?;
    Ok(Counts { engine, twice, compiler })
}

fn compiler() -> Result<Compiler> {
    let verbose = output(Command::new("rustc").current_dir(workspace::root()).arg("-vV"))?;
    let target = verbose.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let rustc = verbose.lines().next().context("rustc -vV says nothing")?;
    Ok(Compiler { target: target.to_owned(), rustc: rustc.to_owned() })
}

fn build() -> Result<PathBuf> {
    say("building the engine's host build, to be counted");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    // Flags of whoever calls would make other code.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_INCREMENTAL"] {
        cargo.env_remove(name);
    }
    cargo.args(["build", "--quiet", "--profile", PROFILE, "--package", "bg-tests", "--example", PROGRAM]);
    run_command(&mut cargo)?;
    Ok(workspace::target_dir().join(PROFILE).join("examples").join(PROGRAM))
}

/// Runs the program. The counts go to `file`. The program's output names the counted paths, in order.
fn under_callgrind(program: &Path, file: &Path) -> Result<String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--combine-dumps=yes"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}")).arg(format!("--dump-after={END}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg("--").arg(program);
    // It appends.
    if file.exists() {
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    output(&mut valgrind).context("counting needs Debian's valgrind (`cargo xtask setup`), and paths that work")
}

/// Assigns callgrind's sums, one for each path, to the names that the program has printed.
fn attribute(paths: &str, profile: &str, program: &Path) -> Result<(Numbers, Numbers)> {
    let mut sums = profile.lines().filter_map(|line| line.strip_prefix("totals: ")?.trim().parse::<f64>().ok());
    let (mut engine, mut twice) = (Numbers::new(), Numbers::new());
    for line in paths.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let [which, name, packets] = fields[..] else { bail!("{PROGRAM} printed {line:?}") };
        let packets: f64 = packets.parse().with_context(|| format!("{PROGRAM} printed {line:?}"))?;
        let sum = sums.next().with_context(|| format!("callgrind has counted nothing for {name}"))?;
        ensure!(sum > 0.0, "callgrind has not met {COUNTED} on {name}");
        let numbers = if which == "engine" { &mut engine } else { &mut twice };
        // As exact as it is written down.
        let per_packet = (10.0 * sum / packets).round() / 10.0;
        ensure!(numbers.insert(name.to_owned(), per_packet).is_none(), "{name} was counted twice");
    }
    ensure!(!engine.is_empty() && engine.keys().eq(twice.keys()), "both engines take the same paths");
    ensure!(sums.all(|rest| rest == 0.0), "callgrind has counted beyond the last path");
    let foreign = foreign_code(profile, program);
    ensure!(foreign.is_empty(), "a packet's way leads through {foreign:?}, which is no code of the engine");
    Ok((engine, twice))
}

/// Other programs and libraries in which instructions were counted. Their code differs between systems and
/// processors.
///
/// The format is callgrind's: `ob=(id) name` begins an object, which is later only `ob=(id)`. A line of costs belongs to the
/// function itself, unless it follows a line `calls=`, when it belongs to the called function.
fn foreign_code(profile: &str, program: &Path) -> BTreeSet<String> {
    let (mut names, mut object, mut is_call) = (HashMap::new(), "", false);
    let mut foreign = BTreeSet::new();
    for line in profile.lines() {
        let (key, value) = line.split_once('=').unwrap_or_default();
        if let "ob" | "cob" = key {
            let (id, name) = value.split_once(' ').unwrap_or((value, ""));
            if !name.is_empty() {
                names.insert(id, name);
            }
            if key == "ob" {
                object = names.get(id).copied().unwrap_or(id);
            }
        }
        let is_cost = line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c));
        if is_cost && !is_call && Path::new(object) != program {
            foreign.insert(object.to_owned());
        }
        is_call = key == "calls";
    }
    foreign
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: &str = "engine\topen\t10\nengine\tnew\t10\ntwice\topen\t10\ntwice\tnew\t10";

    fn profile(sums: [u32; 5]) -> String {
        sums.iter().map(|sum| format!("part: 1\nob=(1) /it\nfn=(3) packet\n0 5\ntotals: {sum}\n")).collect()
    }

    #[test]
    fn sums_go_to_their_paths() {
        let (engine, twice) = attribute(PATHS, &profile([2000, 3000, 2500, 3500, 0]), Path::new("/it")).unwrap();
        assert_eq!((engine["open"], engine["new"], twice["open"], twice["new"]), (200.0, 300.0, 250.0, 350.0));
    }

    #[test]
    fn what_was_not_counted_is_no_success() {
        let error = |sums, program| attribute(PATHS, &profile(sums), Path::new(program)).unwrap_err().to_string();
        assert!(error([2000, 0, 2500, 3500, 0], "/it").contains("not met"));
        assert!(error([2000, 3000, 2500, 3500, 1], "/it").contains("beyond"));
        assert!(error([2000, 3000, 2500, 3500, 0], "/other").contains("no code of the engine"));
    }

    #[test]
    fn callers_are_no_part_of_a_packets_way_and_callees_are() {
        let callers = "ob=(1) /it\nfn=(1) packet\n0 5\nob=(2) /lib/libc.so\nfn=(2) main\ncob=(1)\ncalls=1 0\n0 5\n";
        assert!(foreign_code(callers, Path::new("/it")).is_empty());
        let callee =
            "ob=(1) /it\nfn=(1) packet\n0 5\ncob=(2) /lib/libc.so\ncalls=1 0\n0 5\nob=(2)\nfn=(2) bcmp\n+3 5\n";
        assert_eq!(foreign_code(callee, Path::new("/it")), BTreeSet::from(["/lib/libc.so".to_owned()]));
    }
}
