//! Where an instance lives: its pins in a BPF file system, its memory in a directory.

use std::path::{Path, PathBuf};

/// The two directories of an instance. Instances with different ones do not know of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Directory of the pins, on a BPF file system.
    pub pin_root: PathBuf,
    /// Directory of the history and the last live colours.
    pub state_dir: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { pin_root: Self::PIN_ROOT.into(), state_dir: Self::STATE_DIR.into() }
    }
}

impl Paths {
    /// Pin root unless told otherwise.
    pub const PIN_ROOT: &'static str = "/sys/fs/bpf/bgctl";
    /// State directory unless told otherwise.
    pub const STATE_DIR: &'static str = "/var/lib/bgctl";

    /// Pinned maps, by their names.
    pub fn maps(&self) -> PathBuf {
        self.pin_root.join("maps")
    }

    /// The pin of one map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Pinned programs, by their names.
    pub fn programs(&self) -> PathBuf {
        self.pin_root.join("programs")
    }

    /// The pin of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Pinned links, one for each interface and hook.
    pub fn links(&self) -> PathBuf {
        self.pin_root.join("links")
    }

    /// A symbolic link to the directory in which the instance keeps its state.
    pub fn state_link(&self) -> PathBuf {
        self.pin_root.join("state")
    }

    /// A symbolic link that is there while a process has told the kernel to expedite grace periods.
    pub(crate) fn expedited(&self) -> PathBuf {
        self.pin_root.join("expedited")
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}
