//! The gates of the last apply, for the next switch.
//!
//! The data path knows nothing of gates, and the file that was applied may have changed since, or may have come from a pipe. So an apply keeps a
//! copy of the gates in the state directory, and a link to it in the pins. Without gates there is no link: then a switch needs no disk.
//! With gates that cannot be read, a switch is refused rather than made without them.
//!
//! Gates that an apply adds, changes or removes are changes of its plan.

use std::{
    cmp::Ordering,
    collections::HashMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use crate::{
    Error, Instance, Paths, Refusal,
    config::{self, Config, Deployment, Gate, GateKind},
    history::{GATES, PATIENCE, ask, make_private},
};

impl Instance {
    /// The gates of a deployment, as the last apply has found them in its configuration, in their order.
    ///
    /// # Errors
    /// There are gates, and their copy in the state directory cannot be read.
    pub fn gates(&self, deployment: &str) -> Result<Vec<Gate>, Error> {
        Ok(all(&self.paths)?.remove(deployment).unwrap_or_default())
    }
}

/// Whether any deployment has gates. This needs no disk. If it cannot be known, there are some.
pub(crate) fn are_there(paths: &Paths) -> bool {
    linked(paths).map_or(true, |path| path.is_some())
}

/// The gates of all deployments that have some.
pub(crate) fn all(paths: &Paths) -> Result<HashMap<String, Vec<Gate>>, Error> {
    let Some(path) = linked(paths)? else { return Ok(HashMap::new()) };
    let home = path.parent().unwrap_or(&path).to_owned();
    let read = || fs::read_to_string(&path).map_err(Error::io("read", &path));
    let unknown = |source: anyhow::Error| Error::GatesUnknown { why: format!("{source:#}") };
    let text = ask(&home, PATIENCE, None, read).map_err(|error| unknown(error.into()))?;
    let kept = config::kept_gates(&path, &text).map_err(|error| unknown(error.into()))?;
    Ok(kept.into_iter().collect())
}

/// The gates of a deployment that an apply changes, in words.
#[derive(Debug)]
pub(crate) struct GatesChange {
    pub(crate) deployment: String,
    pub(crate) from: String,
    pub(crate) to: String,
}

/// What an apply of `config` changes about gates. Those of a deployment that is removed go with it.
pub(crate) fn changes(paths: &Paths, config: &Config) -> Vec<GatesChange> {
    let kept = all(paths);
    let change = |wanted: &Deployment| {
        let to = &wanted.gates;
        let from = match &kept {
            Ok(kept) => {
                let from = kept.get(&wanted.name).map_or(&[][..], Vec::as_slice);
                (from != to.as_slice()).then(|| names(from))?
            }
            // An apply writes them anew.
            Err(_) if to.is_empty() => return None,
            Err(_) => "unknown".to_owned(),
        };
        let to = names(to);
        let same = if from == to { " (with other options)" } else { "" };
        Some(GatesChange { deployment: wanted.name.clone(), from, to: to + same })
    };
    config.deployments.iter().filter_map(change).collect()
}

fn names(gates: &[Gate]) -> String {
    let names = gates.iter().map(|gate| format!("{}: {gate}", gate.when.name()));
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none".to_owned() } else { format!("[{names}]") }
}

/// Refuses a configuration that adds, changes or removes gates that are commands. Whoever may do that has the next one who switches, often
/// root, run a command, or not run one.
pub(crate) fn check_commands(paths: &Paths, config: &Config) -> Result<(), Error> {
    let kept = all(paths)?;
    let commands = |gates: Option<&[Gate]>| -> Vec<Gate> {
        let gates = gates.unwrap_or_default().iter();
        gates.filter(|gate| matches!(gate.kind, GateKind::Exec { .. })).cloned().collect()
    };
    let wanted = |name: &str| {
        let deployment = config.deployments.iter().find(|deployment| deployment.name == name);
        deployment.map(|deployment| deployment.gates.as_slice())
    };
    let mut all: Vec<&str> = config.deployments.iter().map(|deployment| deployment.name.as_str()).collect();
    all.extend(kept.keys().map(String::as_str));
    for name in all {
        let (from, to) = (commands(kept.get(name).map(Vec::as_slice)), commands(wanted(name)));
        if from == to {
            continue;
        }
        let change = match from.len().cmp(&to.len()) {
            Ordering::Less => "add",
            Ordering::Equal => "change",
            Ordering::Greater => "remove",
        };
        return Err(Refusal::CommandsChange { deployment: name.to_owned(), change }.into());
    }
    Ok(())
}

/// Keeps the gates of a configuration in the directory `home`.
pub(crate) fn keep(paths: &Paths, home: &Path, config: &Config) -> Result<(), Error> {
    let link = paths.gates_link();
    let Some(text) = config.gates_to_toml() else {
        return match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &link)(error)),
            _ => Ok(()),
        };
    };
    let path = home.join(GATES);
    ask(home, PATIENCE, None, || write(&path, &text).map_err(Error::io("write", &path)))
        .map_err(|error| Error::GatesNotKept { source: Box::new(error) })?;
    if linked(paths)?.is_none_or(|there| there != path) {
        // Replaced by a rename, so that there is always one.
        let temporary = paths.new_gates_link();
        let made = match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(&path, &temporary).and_then(|()| fs::rename(&temporary, &link)),
        };
        made.map_err(Error::io("write", &link))?;
    }
    Ok(())
}

/// The copy that the pins name.
fn linked(paths: &Paths) -> Result<Option<PathBuf>, Error> {
    let link = paths.gates_link();
    match fs::read_link(&link) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &link)(error)),
    }
}

/// Whoever reads meanwhile sees the old content or the new one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_private)?;
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, path)
}
