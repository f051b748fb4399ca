//! The journal, a file with one JSON object per line. It is only ever appended to.
//!
//! A record is one write, and is on the disk when [`History::append`] returns. A crash can leave only the
//! last line incomplete. The reader skips it, and the next append ends it before its own record. Concurrent switches
//! may append in any order. The reader sorts them in the order in which they took effect. The [chain](super::chain) has the order of the file.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

use super::{
    ask::ask,
    chain::{Hash, Head, Link},
    directory::{self, prepare_state_dir, sync_directory},
    error::HistoryError,
    head::Notes,
    private,
    record::{Action, Record},
    verify::{Verified, verify},
};
use crate::{Error, Paths};

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
    notes: Notes,
}

impl History {
    /// The name of the journal's file in the state directory.
    pub const FILE: &'static str = directory::JOURNAL;

    /// The journal in `state_dir`, which may not exist yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.to_owned(), path: state_dir.join(Self::FILE), notes: Notes::of(state_dir) }
    }

    /// The journal in the state directory of `paths`, whose head is also noted in the pins.
    pub fn of(paths: &Paths) -> Self {
        Self::new(&paths.state_dir).with_pin(paths.head_link())
    }

    /// The same journal, whose head is also noted in a pin of the instance.
    pub(crate) fn with_pin(self, pin: PathBuf) -> Self {
        Self { notes: self.notes.with_pin(pin), ..self }
    }

    /// Appends a record, with its link. When this returns, the record is on the disk. The caller holds the lock of the history.
    pub(crate) fn append(&self, record: &Record) -> Result<(), HistoryError> {
        prepare_state_dir(&self.directory)?;
        let is_new = !self.path.exists();
        let mut file =
            private::open(&self.path, OpenOptions::new().append(true)).map_err(HistoryError::io("open", &self.path))?;
        let write_error = || HistoryError::io("write", &self.path);

        let (is_torn, link) = self.next(&file).map_err(HistoryError::io("read", &self.path))?;
        let number = link.number;
        let record = Record { link: Some(link), ..record.clone() };
        let line = serde_json::to_vec(&record).map_err(|error| write_error()(error.into()))?;
        let bytes = [if is_torn { &b"\n"[..] } else { b"" }, &line, b"\n"].concat();
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(write_error())?;
        let noted = self.notes.write(&Head { number, hash: Hash::of(&line) });
        noted.map_err(HistoryError::io("write", &self.directory))?;
        if is_new {
            sync_directory(&self.directory)?;
        }
        Ok(())
    }

    /// Whether the last line is incomplete, and the link of the next record.
    ///
    /// The record follows the head that is noted, not the last record of the file, if that has another hash or a lower number. So it can be
    /// seen for ever that records have been changed or lost at the end.
    fn next(&self, file: &File) -> io::Result<(bool, Link)> {
        let length = file.metadata()?.len();
        let mut end = Vec::new();
        let mut head = None;
        // From the last octets, doubled until they hold a record with a hash.
        let mut size = 4096.min(length);
        while head.is_none() && (end.len() as u64) < length {
            end.resize(size as usize, 0);
            file.read_exact_at(&mut end, length - size)?;
            // The first line of a part may be cut off. A part of a record is not a record.
            head = Head::in_end(&end);
            size = (2 * size).min(length);
        }
        let is_torn = end.last().is_some_and(|last| *last != b'\n');
        let noted = self.notes.read().into_iter().map(|(_, head)| head);
        // Of equal numbers, the last one.
        let head = head.into_iter().chain(noted).max_by_key(|head| head.number);
        if head.is_none() && is_torn {
            end.push(b'\n');
        }
        Ok((is_torn, Link::after(head, &end)))
    }

    /// Checks the chain. Waits at most `patience` for a file system that may not respond.
    pub fn verify_within(&self, patience: Duration) -> Result<Verified, Error> {
        ask(&self.directory, patience, None, || {
            let lock = self.lock_to_read(patience / 2);
            let (content, notes) = (self.content()?, self.notes.read());
            drop(lock);
            Ok(verify(&content, &notes))
        })
    }

    /// Whoever appends a record holds this lock until it is noted. Without it, nobody has written here, the caller may not, or the wait was too long.
    fn lock_to_read(&self, patience: Duration) -> Option<File> {
        let lock = File::open(self.directory.join(directory::LOCK)).ok()?;
        let start = Instant::now();
        while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            if start.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(lock)
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
    /// Reads the content of the file: the records of one deployment or of all.
    pub fn parse(content: &[u8], deployment: Option<&str>) -> Self {
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

/// Sorts the changes of each deployment's live word by generation. Generations may start anew when a deployment is added or removed, or with a
/// record about a state that was restored, so nothing is moved past one of these.
fn put_in_order(records: &mut [Record]) {
    let mut runs: HashMap<String, Vec<usize>> = HashMap::new();
    for index in 0..records.len() {
        let record = &records[index];
        if !record.is_of_word() {
            if record.action == Action::Recovered || record.from.is_none() || record.to.is_none() {
                runs.remove(&record.deployment);
            }
            continue;
        }
        let run = runs.entry(record.deployment.clone()).or_default();
        run.push(index);
        // A confirmation, or a schedule that takes effect, follows the switch that has made the generation.
        let generation = |record: &Record| record.to.map(|to| (to.generation, record.from.map(|from| from.generation)));
        for pair in run.windows(2).rev() {
            if generation(&records[pair[0]]) <= generation(&records[pair[1]]) {
                break;
            }
            records.swap(pair[0], pair[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;
    use crate::history::Moment;

    fn moment(generation: u32, live: Colour) -> Option<Moment> {
        Some(Moment { generation, live })
    }

    fn record(deployment: &str, generation: u32) -> Record {
        let from = moment(generation - 1, Colour::Blue);
        Record {
            deployment: deployment.to_owned(),
            action: Action::Switch,
            from,
            to: moment(generation, Colour::Green),
            reason: Some("release \"7\"\nof today".to_owned()),
            ..Record::of_this_process()
        }
    }

    /// What has been read, as it was before it got its links.
    fn read(history: &History, deployment: Option<&str>) -> Journal {
        let mut journal = history.read(deployment).unwrap();
        journal.records.iter_mut().for_each(|record| record.link = None);
        journal
    }

    #[test]
    fn what_was_appended_is_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(&dir.path().join("made/when/needed"));
        assert_eq!(history.read(None).unwrap(), Journal::default());
        let records = [record("shop", 2), record("mail", 5), record("shop", 3)];
        records.iter().for_each(|record| history.append(record).unwrap());
        assert_eq!(read(&history, None).records, records);
        assert_eq!(read(&history, Some("shop")).records, [records[0].clone(), records[2].clone()]);
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
    fn what_the_data_path_has_done_is_read_between_the_changes_that_it_came_between() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path());
        let of = |action, generation| Record { action, ..record("shop", generation) };
        let same = |action, generation| Record { from: moment(generation, Colour::Blue), ..of(action, generation) };
        // Two processes at once: the first has switched, and is slow to record it.
        let written = [
            of(Action::Expired, 3),
            of(Action::Split, 4),
            same(Action::Confirm, 2),
            of(Action::Switch, 2),
            same(Action::Activated, 2),
        ];
        written.iter().for_each(|record| history.append(record).unwrap());
        let read: Vec<_> = history.read(None).unwrap().records.iter().map(|record| record.action).collect();
        assert_eq!(read, [Action::Switch, Action::Confirm, Action::Activated, Action::Expired, Action::Split]);
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
            assert_eq!(read(&history, None), Journal { records: expected.clone(), damaged_lines }, "cut at {cut}");

            history.append(&next).unwrap();
            expected.push(next.clone());
            assert_eq!(read(&history, None), Journal { records: expected, damaged_lines }, "cut at {cut}");
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
