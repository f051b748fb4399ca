//! The test programs that cargo builds. Programs with labs run one after the other, and all others beside them.
//!
//! A lab sleeps for much of its time, and two labs would disturb each other's measurements. Programs without a lab compute
//! meanwhile, at a lower priority, and so do labs that measure nothing.

use crate::{process::say, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

/// The package of the labs.
const LABS: &str = "tests";

/// Its programs that make no labs: they feed frames to the engine, or look at files.
const WITHOUT_LABS: [&str; 6] = ["bg_tests", "differential", "engine", "flow_table", "layers", "old_kernels"];

/// Its programs whose labs wait for answers and measure no times, so that neither they nor those beside them are disturbed.
const MEASURES_NOTHING: [&str; 9] =
    ["api", "controller_killed", "gates", "installed", "metrics", "notified", "page", "served", "top"];

/// Puts a program behind those that make labs.
const BEHIND: [&str; 3] = ["nice", "-n", "5"];

/// A test program.
struct Program {
    /// The directory of its package, in which it runs.
    directory: PathBuf,
    name: String,
    path: PathBuf,
}

/// How programs are run.
pub(super) struct Run<'a> {
    /// The command that runs a program, if it cannot run by itself.
    pub(super) runner: &'a [&'a str],
    pub(super) environment: &'a [(&'a str, &'a Path)],
    /// Only tests whose names contain this.
    pub(super) filter: Option<&'a str>,
}

/// The directory of the programs' output.
fn logs() -> PathBuf {
    workspace::target_dir().join("tests")
}

fn build(cargo: &mut Command) -> Result<Vec<Program>> {
    let built =
        cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit()).output();
    let built = built.context("cannot run cargo")?;
    if !built.status.success() {
        bail!("the tests do not build: {}", built.status);
    }
    let messages = serde_json::Deserializer::from_slice(&built.stdout).into_iter::<Value>();
    let programs = messages.filter_map(|message| message.map(|message| Program::of(&message)).transpose());
    programs.collect::<Result<_, _>>().context("cargo's messages are no JSON")
}

impl Program {
    /// The test program that a message of cargo tells of, if it tells of one.
    fn of(message: &Value) -> Option<Self> {
        let path = PathBuf::from(message["executable"].as_str()?);
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let name = message["target"]["name"].as_str()?.to_owned();
        (message["profile"]["test"] == true).then_some(Self { directory, name, path })
    }

    /// Whether it makes labs that must be alone.
    fn runs_alone(&self) -> bool {
        let name = self.name.as_str();
        self.directory.ends_with(LABS) && !WITHOUT_LABS.contains(&name) && !MEASURES_NOTHING.contains(&name)
    }

    /// Package and program, for example `tests/switching`.
    fn title(&self) -> String {
        let package = self.directory.file_name().unwrap_or_default();
        format!("{}/{}", package.display(), self.name)
    }
}

impl Run<'_> {
    /// Builds the test programs by this `cargo test` and runs them. Fails if a test does, after all have run.
    pub(super) fn build_and_run(&self, cargo: &mut Command) -> Result<()> {
        let (labs, others): (Vec<_>, Vec<_>) = build(cargo)?.into_iter().partition(Program::runs_alone);
        let failed = thread::scope(|scope| {
            let others = scope.spawn(|| self.all(&others, &BEHIND));
            let labs = self.all(&labs, &[]);
            let others = others.join().expect("running a program does not panic");
            anyhow::Ok([labs?, others?].concat())
        })?;
        if !failed.is_empty() {
            bail!("tests failed in {}; what they said is above, and in {}", failed.join(", "), logs().display());
        }
        Ok(())
    }

    /// Runs programs one after the other. Returns the titles of those that have failed.
    fn all(&self, programs: &[Program], priority: &[&str]) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        for program in programs {
            if !self.one(program, priority)? {
                failed.push(program.title());
            }
        }
        Ok(failed)
    }

    /// Runs a program to its end, and prints then what it has said, which another one may not interrupt. Returns whether it has passed.
    fn one(&self, program: &Program, priority: &[&str]) -> Result<bool> {
        let title = program.title();
        let log = logs().join(format!("{}.log", title.replace('/', "-")));
        fs::create_dir_all(logs()).with_context(|| format!("cannot make {}", logs().display()))?;
        // Not a pipe: a process that a test has left would keep it open.
        let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let path = program.path.as_os_str();
        let before = priority.iter().chain(self.runner).map(OsStr::new);
        let mut words = before.chain([path]).chain(self.filter.map(OsStr::new));
        let mut command = Command::new(words.next().expect("the path, at least"));
        command.args(words).current_dir(&program.directory).envs(self.environment.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        say(format_args!("{title} begins"));
        let start = Instant::now();
        let status = command.status().with_context(|| format!("cannot run {}", program.path.display()))?;
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let mut out = io::stdout().lock();
        writeln!(out, "\n     Ran {title} in {:.1} s: {status}", start.elapsed().as_secs_f64())?;
        out.write_all(&said)?;
        Ok(status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_messages_about_test_profiles() {
        let message = |executable: &str, is_test: bool| -> Value {
            serde_json::from_str(&format!(
                r#"{{"reason": "compiler-artifact", "manifest_path": "/clone/tests/Cargo.toml", "target": {{"name": "drain"}},
                    "profile": {{"test": {is_test}}}, "executable": {executable}}}"#
            ))
            .unwrap()
        };
        let drain = Program::of(&message(r#""/clone/target/debug/deps/drain-7""#, true)).unwrap();
        assert_eq!((drain.title().as_str(), drain.runs_alone()), ("tests/drain", true));
        assert!(Program::of(&message(r#""/clone/target/debug/drain""#, false)).is_none());
        assert!(Program::of(&message("null", true)).is_none());
        let model = Program { directory: "/clone/model".into(), ..drain };
        assert!(!model.runs_alone());
    }

    /// Otherwise one would be run beside the labs of another.
    #[test]
    fn programs_without_labs_make_none() {
        for name in WITHOUT_LABS.into_iter().filter(|name| *name != "bg_tests") {
            let path = workspace::root().join(LABS).join("tests").join(name);
            let files: Vec<_> = match fs::read_dir(&path) {
                Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
                Err(_) => vec![path.with_extension("rs")],
            };
            for file in files.iter().filter(|file| file.is_file()) {
                let text = fs::read_to_string(file).unwrap();
                assert!(!["Lab::", "Ready::", "Setting::"].iter().any(|lab| text.contains(lab)), "{}", file.display());
            }
        }
    }
}
