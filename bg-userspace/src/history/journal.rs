//! The journal, a file with one JSON object per line. It is only ever appended to.
//!
//! A record is one write, and is on the disk when [`History::append`] returns. A crash can leave only the
//! last line incomplete. The reader skips it, and the next append ends it before its own record. Concurrent switches
//! may append in any order. The reader sorts them in the order in which they took effect.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    ask::ask,
    directory::{self, prepare_state_dir, sync_directory},
    error::HistoryError,
    moment::Moment,
    private,
    who::Who,
};
use crate::Error;

/// A kind of change to a deployment or to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Its configuration was applied.
    #[default]
    Apply,
    /// Another colour was made live.
    Switch,
    /// The colour that was live before was made live again.
    Rollback,
    /// Its last live colour was restored, for example after a reboot.
    Recovered,
    /// The programs were attached to interfaces.
    Attach,
    /// The programs were detached from interfaces.
    Detach,
}

impl Action {
    /// Its name in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Switch => "switch",
            Self::Rollback => "rollback",
            Self::Recovered => "recovered",
            Self::Attach => "attach",
            Self::Detach => "detach",
        }
    }
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The time, in RFC 3339 format in the file.
    pub time: jiff::Timestamp,
    /// Name of the deployment; empty if the change concerns the whole instance.
    #[serde(default)]
    pub deployment: String,
    /// Names of the interfaces that were attached or detached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// The kind of change.
    pub action: Action,
    /// Its state before; `None` if it did not exist.
    pub from: Option<Moment>,
    /// Its state after; `None` if it was removed.
    pub to: Option<Moment>,
    /// Who made the change.
    pub who: Who,
    /// The reason, if one was given.
    pub reason: Option<String>,
    /// The command line of the process.
    pub command: String,
}

impl Record {
    /// A record of a change that this process makes now.
    pub fn now(
        deployment: &str,
        action: Action,
        from: Option<Moment>,
        to: Option<Moment>,
        reason: Option<&str>,
    ) -> Self {
        let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        Self {
            time: jiff::Timestamp::now(),
            deployment: deployment.to_owned(),
            interfaces: Vec::new(),
            action,
            from,
            to,
            who: Who::of_this_process(),
            reason: reason.map(str::to_owned),
            command: words.join(" "),
        }
    }
}

/// The content of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// The records, oldest first.
    pub records: Vec<Record>,
    /// The number of lines that are not records: left incomplete by a crash, or written by other software.
    pub damaged_lines: usize,
}

/// The journal of one state directory.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
    path: PathBuf,
}

impl History {
    /// The name of the journal's file in the state directory.
    pub const FILE: &'static str = directory::JOURNAL;

    /// The journal in `state_dir`, which may not exist yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.to_owned(), path: state_dir.join(Self::FILE) }
    }

    /// Appends a record. When this returns, the record is on the disk.
    pub fn append(&self, record: &Record) -> Result<(), HistoryError> {
        prepare_state_dir(&self.directory)?;
        let is_new = !self.path.exists();
        let mut file =
            private::open(&self.path, OpenOptions::new().append(true)).map_err(HistoryError::io("open", &self.path))?;
        let write_error = || HistoryError::io("write", &self.path);

        let mut bytes = Vec::with_capacity(512);
        if is_torn(&mut file).map_err(HistoryError::io("read", &self.path))? {
            bytes.push(b'\n');
        }
        serde_json::to_writer(&mut bytes, record).map_err(|error| write_error()(error.into()))?;
        bytes.push(b'\n');
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(write_error())?;
        if is_new {
            sync_directory(&self.directory)?;
        }
        Ok(())
    }

    /// Reads the records, of one deployment or of all. A journal that does not exist is empty.
    pub fn read(&self, deployment: Option<&str>) -> Result<Journal, HistoryError> {
        Ok(Journal::parse(&self.content()?, deployment))
    }

    /// Like [`read`](Self::read), but waits at most `patience` for a file system that may not respond.
    pub fn read_within(&self, deployment: Option<&str>, patience: Duration) -> Result<Journal, Error> {
        let content = || Ok(String::from_utf8_lossy(&self.content()?).into_owned());
        Ok(Journal::parse(ask(&self.directory, patience, None, content)?.as_bytes(), deployment))
    }

    fn content(&self) -> Result<Vec<u8>, HistoryError> {
        match std::fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            content => content.map_err(HistoryError::io("read", &self.path)),
        }
    }
}

impl Journal {
    fn parse(content: &[u8], deployment: Option<&str>) -> Self {
        let mut journal = Self::default();
        for line in content.split(|octet| *octet == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Record>(line) {
                Ok(record) if deployment.is_none_or(|name| name == record.deployment) => journal.records.push(record),
                Ok(_) => {}
                Err(_) => journal.damaged_lines += 1,
            }
        }
        put_in_order(&mut journal.records);
        journal
    }
}

/// Sorts the switches of each deployment by generation. Generations may start anew when a deployment is added or removed, or with a
/// record about a change that was found in the kernel, so no switch is moved past one of these.
fn put_in_order(records: &mut [Record]) {
    let mut runs: HashMap<String, Vec<usize>> = HashMap::new();
    for index in 0..records.len() {
        let record = &records[index];
        if !matches!(record.action, Action::Switch | Action::Rollback) {
            if record.action == Action::Recovered || record.from.is_none() || record.to.is_none() {
                runs.remove(&record.deployment);
            }
            continue;
        }
        let run = runs.entry(record.deployment.clone()).or_default();
        run.push(index);
        let generation = |record: &Record| record.to.map(|to| to.generation);
        for pair in run.windows(2).rev() {
            if generation(&records[pair[0]]) <= generation(&records[pair[1]]) {
                break;
            }
            records.swap(pair[0], pair[1]);
        }
    }
}

/// Whether the last line is incomplete.
fn is_torn(file: &mut File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    fn moment(generation: u32, live: Colour) -> Option<Moment> {
        Some(Moment { generation, live })
    }

    fn record(deployment: &str, generation: u32) -> Record {
        let from = moment(generation - 1, Colour::Blue);
        Record::now(
            deployment,
            Action::Switch,
            from,
            moment(generation, Colour::Green),
            Some("release \"7\"\nof today"),
        )
    }

    #[test]
    fn what_was_appended_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(&dir.path().join("made/when/needed"));
        assert_eq!(history.read(None).unwrap(), Journal::default());
        let records = [record("shop", 2), record("mail", 5), record("shop", 3)];
        records.iter().for_each(|record| history.append(record).unwrap());
        assert_eq!(history.read(None).unwrap().records, records);
        assert_eq!(history.read(Some("shop")).unwrap().records, [records[0].clone(), records[2].clone()]);
    }

    #[test]
    fn switches_at_the_same_time_are_read_in_the_order_in_which_they_took_effect() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        // An apply after a reboot without the state directory counts from 1.
        let anew = Record { action: Action::Apply, from: None, ..record("shop", 2) };
        let written = [
            record("shop", 9),
            Record { action: Action::Apply, ..record("shop", 6) },
            record("mail", 5),
            record("shop", 7),
            record("shop", 8),
            record("mail", 4),
            anew.clone(),
            record("shop", 3),
        ];
        written.iter().for_each(|record| history.append(record).unwrap());
        let read = history.read(None).unwrap().records;
        let read: Vec<_> = read.iter().map(|it| (it.deployment.as_str(), it.to.unwrap().generation)).collect();
        assert_eq!(
            read,
            [("shop", 7), ("shop", 6), ("mail", 4), ("shop", 8), ("shop", 9), ("mail", 5), ("shop", 2), ("shop", 3)]
        );
    }

    #[test]
    fn a_record_has_the_documented_keys() {
        let line = serde_json::to_value(record("shop", 2)).unwrap();
        assert_eq!(line["action"], "switch");
        assert_eq!(line["from"], serde_json::json!({"generation": 1, "live": "blue"}));
        assert_eq!(line["to"]["live"], "green");
        assert_eq!(line["reason"], "release \"7\"\nof today");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "RFC 3339 in UTC: {}", line["time"]);
        assert!(line["who"]["uid"].is_u64());
    }

    /// Wherever a crash cuts the last line, earlier records stay, and so does the next one.
    #[test]
    fn a_crash_at_any_octet_of_a_line_costs_that_line_only() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let (first, torn, next) = (record("shop", 2), record("shop", 3), record("shop", 4));
        history.append(&first).unwrap();
        let kept = std::fs::metadata(&history.path).unwrap().len();
        history.append(&torn).unwrap();
        let whole = std::fs::read(&history.path).unwrap();
        for cut in kept as usize..whole.len() {
            std::fs::write(&history.path, &whole[..cut]).unwrap();
            // Only the line's end may be missing: then nothing is lost.
            let complete = cut == whole.len() - 1;
            let mut expected = vec![first.clone()];
            expected.extend(complete.then(|| torn.clone()));
            let damaged_lines = usize::from(cut > kept as usize && !complete);
            assert_eq!(
                history.read(None).unwrap(),
                Journal { records: expected.clone(), damaged_lines },
                "cut at {cut}"
            );

            history.append(&next).unwrap();
            expected.push(next.clone());
            assert_eq!(history.read(None).unwrap(), Journal { records: expected, damaged_lines }, "cut at {cut}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let error = History::new(&blocked.join("state")).append(&record("shop", 2)).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }
}
