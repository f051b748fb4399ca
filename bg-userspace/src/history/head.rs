//! Where the head of the chain is noted, beside the journal.
//!
//! A chain alone does not show that records are missing at its end. So the last record is noted in the file `history.head` beside the journal, and
//! in a pin of the instance, which is in the kernel's memory and not in the state directory. The first shows that the journal was
//! cut off or replaced. The second shows the same if the whole directory was replaced, for example by a backup, as long as the instance lives.
//!
//! A note is written after the record is on the disk, so it may be behind, but never ahead.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use super::{
    chain::{Hash, Head},
    directory::{HEAD, is_same},
};

/// The places of the notes about one journal.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    state_dir: PathBuf,
    /// A symbolic link in the pin root.
    pin: Option<PathBuf>,
}

impl Notes {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), pin: None }
    }

    pub(super) fn with_pin(self, pin: PathBuf) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// The notes that exist, each with its place.
    pub(super) fn read(&self) -> Vec<(PathBuf, Head)> {
        let file = self.state_dir.join(HEAD);
        let there = std::fs::read_to_string(&file).ok().and_then(|text| parse(text.trim_end()));
        let pinned = self.pin.as_ref().and_then(|pin| Some((pin.clone(), self.pinned(pin)?)));
        there.map(|head| (file, head)).into_iter().chain(pinned).collect()
    }

    /// The pin names the directory, because the instance may have kept its state elsewhere before.
    fn pinned(&self, pin: &Path) -> Option<Head> {
        let target = std::fs::read_link(pin).ok()?;
        let (note, state_dir) = target.to_str()?.split_once(" /")?;
        is_same(&Path::new("/").join(state_dir), &self.state_dir).then(|| parse(note)).flatten()
    }

    /// Notes the head.
    pub(super) fn write(&self, head: &Head) -> io::Result<()> {
        let note = format!("{:020} {}", head.number, head.hash);
        if let Some(pin) = &self.pin {
            // There may be no instance any more.
            let _ = replace_link(pin, &format!("{note} {}", absolute(&self.state_dir).display()));
        }
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(self.state_dir.join(HEAD))?;
        // Each note has the same length, so it replaces the one before.
        file.write_all_at(format!("{note}\n").as_bytes(), 0)?;
        file.sync_data()
    }
}

fn parse(note: &str) -> Option<Head> {
    let (number, digits) = note.split_once(' ')?;
    Some(Head { number: number.parse().ok()?, hash: Hash::from_digits(digits)? })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Replaces a link by a rename, so that there is always one. A BPF file system accepts no dot in a name.
fn replace_link(link: &Path, target: &str) -> io::Result<()> {
    let mut temporary = link.as_os_str().to_owned();
    temporary.push(":new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(target, &temporary)?,
    }
    std::fs::rename(&temporary, link)
}
