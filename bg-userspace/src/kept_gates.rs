//! The gates of the last apply, for the next switch.
//!
//! The data path knows nothing of gates, and the file that was applied may have changed since, or may have come from a pipe. So an apply keeps a
//! copy of the gates in the state directory, and a link to it in the pins. Without gates there is no link: then a switch needs no disk.
//! With gates that cannot be read, a switch is refused rather than made without them.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use crate::{
    Error, Instance, Paths,
    config::{self, Config, Gate},
    history::{GATES, PATIENCE, ask, make_private},
};

impl Instance {
    /// The gates of a deployment, as the last apply has found them in its configuration, in their order.
    ///
    /// # Errors
    /// There are gates, and their copy in the state directory cannot be read.
    pub fn gates(&self, deployment: &str) -> Result<Vec<Gate>, Error> {
        let Some(path) = linked(&self.paths)? else { return Ok(Vec::new()) };
        let home = path.parent().unwrap_or(&path).to_owned();
        let read = || fs::read_to_string(&path).map_err(Error::io("read", &path));
        let unknown = |source: anyhow::Error| Error::GatesUnknown { why: format!("{source:#}") };
        let text = ask(&home, PATIENCE, None, read).map_err(|error| unknown(error.into()))?;
        let kept = config::kept_gates(&path, &text).map_err(|error| unknown(error.into()))?;
        Ok(kept.into_iter().find(|(name, _)| name == deployment).map(|(_, gates)| gates).unwrap_or_default())
    }
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
        let temporary = paths.pin_root.join("gates:new");
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
