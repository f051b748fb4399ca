//! `fuzz`: feeds bytes that nobody has chosen to the targets of `fuzz/`, by libFuzzer, or without it.
//!
//! | who chooses the bytes | needs | for |
//! | --- | --- | --- |
//! | a generator with a seed (`--chosen`) | nothing | `test`: a bounded number, always the same |
//! | libFuzzer, which sees what an input reaches | a nightly compiler, cargo-fuzz | hours of search |

use crate::{
    process::{output, run as run_command, say},
    toolchain::Toolchain,
    workspace,
};
use anyhow::{Context, Result, bail, ensure};
use bg_fuzz::{
    TARGETS, Target, corpus,
    run::{self, Bounds, Fed, feed_file},
    target,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The version of cargo-fuzz with which this repository was tested.
const CARGO_FUZZ: &str = "0.13.1";

/// Packets of each script target in a full run: ten million in all.
const MANY: u64 = 5_000_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One target; all of them, if none is named.
    target: Option<String>,
    /// End each target after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// End each target after so many inputs; with `--chosen`, packets.
    #[arg(long)]
    runs: Option<u64>,
    /// Do without libFuzzer: a generator chooses the inputs.
    #[arg(long)]
    chosen: bool,
    /// With `--chosen`: the generator's seed, a number.
    #[arg(long, requires = "chosen", default_value_t = 1)]
    seed: u64,
    /// Feed this file to the target, and nothing else.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let targets: Vec<&Target> = match &args.target {
        None => TARGETS.iter().collect(),
        Some(name) => match target(name) {
            Some(target) => vec![target],
            None => bail!("no target is called {name}; there are {}", TARGETS.map(|target| target.name).join(", ")),
        },
    };
    if args.chosen || args.input.is_some() {
        return targets.into_iter().try_for_each(|target| without_libfuzzer(target, args));
    }
    let cargo_fuzz = cargo_fuzz()?;
    for target in targets {
        // Without a bound, libFuzzer goes on until it finds something.
        if args.target.is_none() && args.seconds.is_none() && args.runs.is_none() {
            bail!("expected a target, --seconds or --runs: the first target would never end");
        }
        by_libfuzzer(&cargo_fuzz, target, args)?;
    }
    Ok(())
}

fn without_libfuzzer(target: &Target, args: &Args) -> Result<()> {
    let found = directory().join("found");
    let fed = match &args.input {
        Some(file) => feed_file(target, file, &found),
        None => {
            let time = args.seconds.map(Duration::from_secs);
            run::run(target, Bounds { runs: args.runs, time, seed: args.seed }, &found)
        }
    };
    let Fed { fed, inputs, time } = fed.with_context(|| target.name)?;
    let what = if target.is_text { "files" } else { "packets" };
    let seconds = time.as_secs_f64();
    println!("{}: {fed} {what} in {inputs} inputs passed, {seconds:.1} s", target.name);
    Ok(())
}

/// The bounded part of `test`: the same inputs each time; with `full`, ten million packets and other inputs each time.
pub(crate) fn bounded(full: bool) -> Result<()> {
    let few = |target: &Target, runs, seed| {
        let args = Args { target: None, seconds: None, runs, chosen: true, seed, input: None };
        without_libfuzzer(target, &args)
    };
    if !full {
        return TARGETS.iter().try_for_each(|target| few(target, None, 1));
    }
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs();
    say(format_args!("{MANY} packets of each script, seed {seed}"));
    let start = Instant::now();
    let scripts = TARGETS.iter().filter(|target| target.is_script);
    let processes = scripts.map(|target| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["fuzz", target.name, "--chosen", "--runs", &MANY.to_string(), "--seed", &seed.to_string()]);
        command.spawn()
    });
    let processes = processes.collect::<Result<Vec<_>, _>>().context("cannot run this program once more")?;
    let others = TARGETS.iter().filter(|target| !target.is_script);
    let passed = others.map(|target| few(target, Some(10 * target.few), seed)).collect::<Vec<_>>();
    for mut process in processes {
        ensure!(process.wait()?.success(), "an input is no good; what it is, and where it is kept, is told above");
    }
    passed.into_iter().collect::<Result<()>>()?;
    say(format_args!("all passed, in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Where inputs are kept that are no good, and those that libFuzzer wants to remember.
fn directory() -> PathBuf {
    workspace::target_dir().join("fuzz")
}

/// Finds cargo-fuzz, or installs it into the target directory.
fn cargo_fuzz() -> Result<PathBuf> {
    let root = workspace::target_dir().join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let program = root.join("bin/cargo-fuzz");
    if output(Command::new(&program).arg("--version")).is_err() {
        say(format_args!("cargo install cargo-fuzz {CARGO_FUZZ} into {}: about half a minute", root.display()));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--quiet", "--root"]);
        run_command(cargo.arg(&root))?;
    }
    Ok(program)
}

fn by_libfuzzer(cargo_fuzz: &Path, target: &Target, args: &Args) -> Result<()> {
    let remembered = directory().join("corpus").join(target.name);
    fs::create_dir_all(&remembered).with_context(|| format!("cannot make {}", remembered.display()))?;
    let mut command = Toolchain::nightly_run(cargo_fuzz.as_os_str())?;
    command.current_dir(workspace::root()).env("CARGO_TARGET_DIR", directory());
    command.args(["fuzz", "run", "--fuzz-dir", "fuzz/libfuzzer", target.name]);
    // What is found is written into the first directory.
    command.arg(&remembered).arg(corpus::directory(target)).arg("--");
    command.arg(format!("-max_len={}", target.longest)).arg("-timeout=20");
    command.args(args.seconds.map(|seconds| format!("-max_total_time={seconds}")));
    command.args(args.runs.map(|runs| format!("-runs={runs}")));
    say(format_args!("{}: new inputs are remembered in {}", target.name, remembered.display()));
    run_command(&mut command).with_context(|| {
        format!(
            "an input is no good (or the target did not build): copy it from fuzz/libfuzzer/artifacts/{0} to fuzz/corpus/{0}, \
             and give it a name that says what it is",
            target.name
        )
    })
}
