//! Records: reports that are kept with the machine and the time of the measurement, so that the page can be
//! generated again without measuring.

use super::{
    machine::{self, Fact, Quiet},
    report::Report,
};
use crate::{process::output, workspace};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// A report and its circumstances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When the measurement began, in UTC.
    pub(crate) date: String,
    /// The commit, and whether the tree differed from it.
    pub(crate) commit: String,
    /// Whether it was a quick run, whose figures mean little.
    pub(crate) quick: bool,
    /// How long it took.
    pub(crate) seconds: u64,
    /// Signs of noise: load and stolen time.
    pub(crate) noise: Vec<Fact>,
    /// The machine.
    pub(crate) machine: Vec<Fact>,
    /// Versions of compilers and programs.
    pub(crate) versions: Vec<Fact>,
    /// The results.
    pub(crate) report: Report,
}

impl Record {
    /// Runs a measurement.
    pub(crate) fn measure(quick: bool, measure: impl FnOnce() -> Result<Report>) -> Result<Self> {
        let (start, quiet) = (Instant::now(), Quiet::begin());
        let date = output(Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]))?;
        let commit = commit().unwrap_or_else(|_| "not known".to_owned());
        let report = measure()?;
        Ok(Self {
            date,
            commit,
            quick,
            seconds: start.elapsed().as_secs(),
            noise: quiet.end(),
            machine: machine::machine(),
            versions: machine::versions(),
            report,
        })
    }

    /// Writes the record to the file that [`Record::read`] reads. Returns its path.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let path = path(&self.report.part);
        fs::create_dir_all(dir())?;
        fs::write(&path, serde_json::to_vec_pretty(self)?).with_context(|| describe("write", &path))?;
        Ok(path)
    }

    /// The last record of a part, if there is one.
    pub(crate) fn read(part: &str) -> Result<Option<Self>> {
        let path = path(part);
        match fs::read(&path) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json).with_context(|| describe("understand", &path))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| describe("read", &path)),
        }
    }

    /// Removes the record of a part, because a failure must not leave older figures among new ones.
    pub(crate) fn forget(part: &str) -> Result<()> {
        let path = path(part);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| describe("remove", &path))
            }
            _ => Ok(()),
        }
    }
}

/// The directory of the records.
pub(crate) fn dir() -> PathBuf {
    workspace::target_dir().join("bench")
}

fn path(part: &str) -> PathBuf {
    dir().join(part).with_extension("json")
}

fn describe(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

fn commit() -> Result<String> {
    let git = |arguments: &[&str]| output(Command::new("git").current_dir(workspace::root()).args(arguments));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // The pages are what a run changes.
    let pages = [":!docs/performance.md", ":!docs/performance", ":!docs/cutover.md"];
    let changed = git(&[&["status", "--porcelain", "--", "."], pages.as_slice()].concat())?;
    Ok(if changed.is_empty() { commit } else { format!("{commit}, with changes") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        report::{Axis, Cell, Plot, Series, Table},
        stats::Summary,
    };

    #[test]
    fn a_record_reads_back_what_was_written() {
        let figure = Summary { median: 86.1, low: 85.0, high: 87.5 };
        let table = Table {
            title: "Title".into(),
            about: "About".into(),
            columns: vec!["what".into(), "ns".into()],
            rows: vec![vec!["words".into(), 1.0.into()], vec![figure.into(), Cell::Empty]],
        };
        let axis = Axis { label: "ns".into(), logarithmic: true };
        let series = vec![Series { name: "one".into(), points: vec![(1.0, figure)] }];
        let plot = Plot { name: "plot".into(), title: "Plot".into(), x: axis.clone(), y: axis, series };
        let report = Report { part: "part".into(), about: "How".into(), tables: vec![table], plots: vec![plot] };
        let record = Record::measure(true, || Ok(report)).unwrap();
        let json = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&json).unwrap(), record);
    }
}
