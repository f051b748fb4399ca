//! The last live colour and generation of each deployment, so that after a reboot, when the pins are
//! gone, apply goes on from there and not from `initial`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{HistoryError, Moment, prepare_state_dir, sync_directory};

/// The content of `live.json`. Replaced as a whole, by a rename: there is no moment in which it is
/// half written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastLive {
    version: Version,
    /// By the deployment's name.
    pub deployments: BTreeMap<String, Moment>,
}

impl LastLive {
    /// The file in the state directory.
    pub const FILE: &'static str = "live.json";

    /// Reads it; one that does not exist is empty.
    pub fn load(state_dir: &Path) -> Result<Self, HistoryError> {
        let path = state_dir.join(Self::FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(HistoryError::io("read", &path)(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| HistoryError::ForeignLastLive { path, got: error.to_string() })
    }

    /// Reads it, changes it and writes it, unless nothing changed. The caller holds the lock that
    /// keeps others from doing so. A file that cannot be understood is not overwritten.
    pub fn update(state_dir: &Path, change: impl FnOnce(&mut BTreeMap<String, Moment>)) -> Result<(), HistoryError> {
        let before = Self::load(state_dir)?;
        let mut after = before.clone();
        change(&mut after.deployments);
        if after == before { Ok(()) } else { after.save(state_dir) }
    }

    fn save(&self, state_dir: &Path) -> Result<(), HistoryError> {
        prepare_state_dir(state_dir)?;
        let path = state_dir.join(Self::FILE);
        // Named after the process, so that two of them cannot write into one.
        let temporary: PathBuf = state_dir.join(format!(".{}.{}", Self::FILE, std::process::id()));
        let error = HistoryError::io("write", &path);
        let written = File::create(&temporary).and_then(|mut file| {
            let mut bytes = serde_json::to_vec_pretty(self)?;
            bytes.push(b'\n');
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        });
        if let Err(source) = written {
            // What matters is the error above; a left-over is overwritten or ignored.
            let _ = std::fs::remove_file(&temporary);
            return Err(error(source));
        }
        sync_directory(state_dir)
    }
}

/// The format's version; any other one is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl From<Version> for u32 {
    fn from(_: Version) -> Self {
        1
    }
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        if number == 1 { Ok(Self) } else { Err(format!("expected version 1, got {number}")) }
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    const GREEN: Moment = Moment { generation: 4, live: Colour::Green };

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LastLive::load(dir.path()).unwrap(), LastLive::default());
        LastLive::update(dir.path(), |deployments| _ = deployments.insert("shop".into(), GREEN)).unwrap();
        LastLive::update(dir.path(), |deployments| _ = deployments.insert("mail".into(), GREEN)).unwrap();
        LastLive::update(dir.path(), |deployments| _ = deployments.remove("mail")).unwrap();
        assert_eq!(LastLive::load(dir.path()).unwrap().deployments, BTreeMap::from([("shop".into(), GREEN)]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_half_written_or_foreign_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LastLive::FILE);
        LastLive::update(dir.path(), |deployments| _ = deployments.insert("shop".into(), GREEN)).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let newer = whole.replace("\"version\": 1", "\"version\": 2");
        let other_colour = whole.replace("green", "red");
        for (content, got) in [
            (&whole[..whole.len() / 2], "EOF"),
            ("", "EOF"),
            ("{}", "missing field"),
            ("[1, 2]", "invalid type"),
            (&newer, "expected version 1, got 2"),
            (&other_colour, "expected \"blue\" or \"green\", got \"red\""),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = LastLive::update(dir.path(), BTreeMap::clear).unwrap_err().to_string();
            assert!(error.contains("live.json") && error.contains(got) && error.contains("move it away"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
