//! The last live colour and generation of each deployment. After a reboot, when the pins are
//! gone, apply starts with these and not with `initial`.
//!
//! Reading the file tolerates errors. An entry that cannot be parsed is left out, a key that this version does not
//! know is kept, and a file that cannot be parsed at all counts as empty. [`LastLive::problems`] lists the errors,
//! and before such a file is replaced, it is copied.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    directory::{self, prepare_state_dir, sync_directory},
    error::HistoryError,
    moment::Moment,
};

/// The content of `live.json`. The file is replaced as a whole, by a rename, so it is never
/// half written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastLive {
    /// The instance that has written it. Its generations cannot be compared with those of another instance.
    pub instance: Option<Writer>,
    /// The entries, by the deployment's name.
    pub deployments: BTreeMap<String, Entry>,
    /// What may have no record, by the deployment's name.
    pub unrecorded: BTreeMap<String, Unrecorded>,
    /// The parts that could not be parsed, in words. They are not in `deployments`.
    pub problems: Vec<String>,
    /// Names of the deployments whose entries could not be parsed; `None` if the whole file could not be parsed.
    pub damaged: Option<Vec<String>>,
    /// Keys that this version does not know.
    other: Map<String, Value>,
}

/// The instance that has written a state directory's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The identity from its `meta` map, in hexadecimal digits.
    pub identity: String,
    /// The directory where it is pinned.
    pub pin_root: PathBuf,
}

/// A colour that becomes live by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// The state from then on.
    #[serde(flatten)]
    pub moment: Moment,
    /// When.
    pub at: jiff::Timestamp,
}

/// The entry of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its live state.
    #[serde(flatten)]
    pub moment: Moment,
    /// Whether the last change was a rollback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rolled_back: bool,
    /// Whether it is recorded that the generation took effect later than it was made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub activated: bool,
    /// What takes effect though no process may run, so that nobody may record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Scheduled>,
    /// Keys that this version does not know.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

/// What was not recorded yet when a later generation of the deployment was. Whoever had made it was about to record it, or had been killed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrecorded {
    /// Until this state, everything is recorded.
    pub after: Option<Moment>,
    /// Later states that were found, in the order of their generations.
    pub found: Vec<Found>,
}

/// A state of a deployment that was found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The state.
    #[serde(flatten)]
    pub moment: Moment,
    /// When it was made, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<jiff::Timestamp>,
}

impl Unrecorded {
    /// Adds a state, unless it is recorded or known already.
    pub(crate) fn add(&mut self, found: Found) {
        let generation = |found: &Found| found.moment.generation;
        let place = self.found.partition_point(|there| generation(there) < generation(&found));
        let is_there = self.found.get(place).is_some_and(|there| generation(there) == generation(&found));
        if !is_there && self.after.is_none_or(|after| after.generation < generation(&found)) {
            self.found.insert(place, found);
        }
    }
}

impl From<Moment> for Entry {
    fn from(moment: Moment) -> Self {
        Self { moment, rolled_back: false, activated: false, scheduled: None, other: Map::new() }
    }
}

impl Entry {
    /// The state at this time, if nothing else has happened.
    pub(crate) fn at(&self, time: jiff::Timestamp) -> Moment {
        self.scheduled.as_ref().filter(|scheduled| scheduled.at <= time).map_or(self.moment, |then| then.moment)
    }
}

impl LastLive {
    /// The name of the file in the state directory.
    pub const FILE: &'static str = directory::LAST_LIVE;
    /// The name of the copy of the last file that could not be parsed completely.
    pub const DAMAGED: &'static str = "live.json.damaged";
    /// The version of the format.
    const VERSION: u32 = 1;

    /// Reads the file. A missing file counts as empty. Only a file that cannot be read at all is an error.
    pub fn load(state_dir: &Path) -> Result<Self, HistoryError> {
        let path = state_dir.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Self::parse(&bytes, &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::parse(b"{}", &path)),
            Err(error) => Err(HistoryError::io("read", &path)(error)),
        }
    }

    /// Reads the content of the file, which problems call `path`.
    pub fn parse(bytes: &[u8], path: &Path) -> Self {
        let mut last = Self { damaged: Some(Vec::new()), ..Self::default() };
        let path = path.display();
        let mut other: Map<String, Value> = match serde_json::from_slice(bytes) {
            Ok(content) => content,
            Err(error) => {
                last.problems.push(format!("{path} cannot be understood ({error})"));
                last.damaged = None;
                return last;
            }
        };
        if let Some(version) = other.remove("version").filter(|version| *version != Self::VERSION) {
            last.problems.push(format!(
                "{path} has format version {version}, but this bgctl knows version {}; it uses what it can read",
                Self::VERSION
            ));
        }
        if let Some(writer) = other.remove("instance") {
            match serde_json::from_value(writer) {
                Ok(writer) => last.instance = Some(writer),
                Err(error) => last.problems.push(format!("{path}: \"instance\" cannot be understood ({error})")),
            }
        }
        if let Some(unrecorded) = other.remove("unrecorded") {
            match serde_json::from_value(unrecorded) {
                Ok(unrecorded) => last.unrecorded = unrecorded,
                Err(error) => last.problems.push(format!("{path}: \"unrecorded\" cannot be understood ({error})")),
            }
        }
        let entries = match other.remove("deployments") {
            None => Map::new(),
            Some(Value::Object(entries)) => entries,
            Some(_) => {
                last.problems.push(format!("{path} cannot be understood (\"deployments\" is not an object)"));
                last.damaged = None;
                Map::new()
            }
        };
        for (name, entry) in entries {
            match serde_json::from_value::<Entry>(entry) {
                Ok(entry) if entry.moment.generation > 0 => _ = last.deployments.insert(name, entry),
                result => {
                    let why =
                        result.map_or_else(|error| error.to_string(), |_| "generation 0 does not exist".to_owned());
                    last.problems
                        .push(format!("{path}: the entry of deployment \"{name}\" cannot be understood ({why})"));
                    last.damaged.iter_mut().for_each(|damaged| damaged.push(name.clone()));
                }
            }
        }
        last.other = other;
        last
    }

    /// Writes the file, unless it is equal to `before`. A file that could not be parsed is copied before it is replaced. The caller
    /// holds the lock that keeps others from writing.
    pub fn save(&self, before: &Self, state_dir: &Path) -> Result<(), HistoryError> {
        if self == before && before.problems.is_empty() {
            return Ok(());
        }
        prepare_state_dir(state_dir)?;
        let path = state_dir.join(Self::FILE);
        if !before.problems.is_empty() {
            let copy = state_dir.join(Self::DAMAGED);
            std::fs::copy(&path, &copy).map_err(HistoryError::io("write", &copy))?;
        }
        // The name contains the process number, so that two processes cannot write to the same file.
        let temporary: PathBuf = state_dir.join(format!(".{}.{}", Self::FILE, std::process::id()));
        let written = self.write(&temporary).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(source) = written {
            // The error is what matters. A file that is left over is overwritten or ignored.
            let _ = std::fs::remove_file(&temporary);
            return Err(HistoryError::io("write", &path)(source));
        }
        sync_directory(state_dir)
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut content = Map::new();
        content.insert("version".to_owned(), Self::VERSION.into());
        if let Some(writer) = &self.instance {
            content.insert("instance".to_owned(), serde_json::to_value(writer)?);
        }
        content.insert("deployments".to_owned(), serde_json::to_value(&self.deployments)?);
        if !self.unrecorded.is_empty() {
            content.insert("unrecorded".to_owned(), serde_json::to_value(&self.unrecorded)?);
        }
        content.extend(self.other.clone());
        let mut bytes = serde_json::to_vec_pretty(&content)?;
        bytes.push(b'\n');
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&bytes)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    const GREEN: Moment = Moment { generation: 4, live: Colour::Green };

    fn update(dir: &Path, change: impl FnOnce(&mut LastLive)) {
        let before = LastLive::load(dir).unwrap();
        let mut after = before.clone();
        change(&mut after);
        after.save(&before, dir).unwrap();
    }

    fn names(last: &LastLive) -> Vec<&str> {
        last.deployments.keys().map(String::as_str).collect()
    }

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(names(&LastLive::load(dir.path()).unwrap()), [""; 0]);
        let writer = Writer { identity: "1f".to_owned(), pin_root: "/sys/fs/bpf/bgctl".into() };
        update(dir.path(), |last| _ = last.deployments.insert("shop".into(), GREEN.into()));
        update(dir.path(), |last| {
            _ = last.deployments.insert("mail".into(), Entry { rolled_back: true, ..GREEN.into() })
        });
        update(dir.path(), |last| last.instance = Some(writer.clone()));
        update(dir.path(), |last| _ = last.deployments.remove("shop"));
        let last = LastLive::load(dir.path()).unwrap();
        assert_eq!(names(&last), ["mail"]);
        assert!(last.deployments["mail"].moment == GREEN && last.deployments["mail"].rolled_back);
        assert_eq!((last.instance, last.problems.len()), (Some(writer), 0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_understood_costs_itself_only_and_a_copy_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LastLive::FILE);
        update(dir.path(), |last| {
            last.deployments.insert("mail".into(), GREEN.into());
            last.deployments.insert("shop".into(), GREEN.into());
        });
        let whole = std::fs::read_to_string(&path).unwrap();
        let (mail, shop) = whole.split_at(whole.find("shop").unwrap());
        let bad = |from, to| mail.to_owned() + &shop.replace(from, to);
        for (content, problem, left) in [
            (
                bad("green", "red"),
                "\"shop\" cannot be understood (expected \"blue\" or \"green\", got \"red\"",
                &["mail"][..],
            ),
            (bad("4", "-4"), "\"shop\" cannot be understood", &["mail"]),
            (bad("4", "0"), "\"shop\" cannot be understood (generation 0", &["mail"]),
            (whole.replace("\"version\": 1", "\"version\": 2"), "format version 2", &["mail", "shop"]),
            (whole[..whole.len() / 2].to_owned(), "cannot be understood (EOF", &[]),
            (String::new(), "cannot be understood (EOF", &[]),
            ("[1, 2]".to_owned(), "cannot be understood (invalid type", &[]),
            ("{\"deployments\": 7}".to_owned(), "not an object", &[]),
        ] {
            std::fs::write(&path, &content).unwrap();
            let last = LastLive::load(dir.path()).unwrap();
            assert!(matches!(&last.problems[..], [only] if only.contains(problem)), "{:?}", last.problems);
            assert_eq!(names(&last), left, "{content}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "reading changes nothing");
            update(dir.path(), |last| _ = last.deployments.insert("new".into(), GREEN.into()));
            assert_eq!(std::fs::read_to_string(dir.path().join(LastLive::DAMAGED)).unwrap(), content);
        }
    }

    #[test]
    fn a_schedule_counts_from_its_time_on() {
        let dir = tempfile::tempdir().unwrap();
        let at = "2025-03-01T12:05:00.012Z".parse::<jiff::Timestamp>().unwrap();
        let scheduled = Some(Scheduled { moment: GREEN, at });
        let blue = Moment { live: Colour::Blue, ..GREEN };
        update(dir.path(), |last| {
            last.deployments.insert("mail".into(), GREEN.into());
            last.deployments.insert("shop".into(), Entry { scheduled, ..blue.into() });
        });
        let last = LastLive::load(dir.path()).unwrap();
        let millisecond = std::time::Duration::from_millis(1);
        for (name, time, moment) in [
            ("mail", at, GREEN),
            ("shop", at - millisecond, blue),
            ("shop", at, GREEN),
            ("shop", at + millisecond, GREEN),
        ] {
            assert_eq!(last.deployments[name].at(time), moment, "{name} at {time}");
        }
    }

    #[test]
    fn keys_of_a_later_version_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LastLive::FILE);
        let content = r#"{"version": 1, "colour": "grey", "deployments": {"shop": {"generation": 4, "live": "green", "share": 7}}}"#;
        std::fs::write(&path, content).unwrap();
        assert_eq!(LastLive::load(dir.path()).unwrap().problems, [""; 0]);
        update(dir.path(), |last| _ = last.deployments.insert("mail".into(), GREEN.into()));
        let after: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!((&after["colour"], &after["deployments"]["shop"]["share"]), (&"grey".into(), &7.into()));
    }
}
