//! The directories of an instance.

use std::path::{Path, PathBuf};

/// The two directories of an instance. Instances with different directories are independent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The directory of the pins, on a BPF file system.
    pub pin_root: PathBuf,
    /// The directory of the history and the last live colours.
    pub state_dir: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { pin_root: Self::PIN_ROOT.into(), state_dir: Self::STATE_DIR.into() }
    }
}

impl Paths {
    /// The default pin root.
    pub const PIN_ROOT: &'static str = "/sys/fs/bpf/bgctl";
    /// The default state directory.
    pub const STATE_DIR: &'static str = "/var/lib/bgctl";

    /// The directory of pinned maps, by their names.
    pub fn maps(&self) -> PathBuf {
        self.pin_root.join("maps")
    }

    /// The pin of one map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The directory of pinned programs, by their names.
    pub fn programs(&self) -> PathBuf {
        self.pin_root.join("programs")
    }

    /// The pin of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// The directory of pinned links, one for each interface and hook.
    pub fn links(&self) -> PathBuf {
        self.pin_root.join("links")
    }

    /// A symbolic link to the instance's state directory.
    pub fn state_link(&self) -> PathBuf {
        self.pin_root.join("state")
    }

    /// A symbolic link to the copy of the gates of the last apply. It is there if there are gates.
    pub(crate) fn gates_link(&self) -> PathBuf {
        self.pin_root.join("gates")
    }

    /// The same while it is being made.
    pub(crate) fn new_gates_link(&self) -> PathBuf {
        self.pin_root.join("gates:new")
    }

    /// A symbolic link whose target is the last record of the history.
    pub(crate) fn head_link(&self) -> PathBuf {
        self.pin_root.join("history")
    }

    /// The directory of changes that are not recorded yet.
    pub(crate) fn changes(&self) -> PathBuf {
        self.pin_root.join("changes")
    }

    /// The directory that the controller locks.
    pub(crate) fn controller(&self) -> PathBuf {
        self.pin_root.join("controller")
    }

    /// A symbolic link that exists while a process has set the kernel to expedite grace periods.
    pub(crate) fn expedited(&self) -> PathBuf {
        self.pin_root.join("expedited")
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}
