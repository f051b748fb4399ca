//! What a lab has for itself outside of its namespaces: a number, a directory for pins, one for files.

use crate::{command::run, sweep};
use anyhow::{Context, Result};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// A file of this name in a lab's directory keeps the lab when its process ends.
pub(crate) const KEEP: &str = "keep";

/// Where the kernel's BPF file system is.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Which lab of which process: `bg-<pid>-<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabId {
    process: u32,
    number: u32,
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bg-{}-{}", self.process, self.number)
    }
}

/// One lab at a time: labs load both processors, and a test that measures must not meet another one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The directories of a lab, removed with it.
#[derive(Debug)]
pub struct Sandbox {
    id: LabId,
    dir: PathBuf,
    pin_root: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Sandbox {
    /// Waits for other labs of this process to end, removes what killed processes have left, and makes
    /// the directories.
    pub fn create() -> Result<Self> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        sweep::on_signals();
        sweep::leftovers();
        mount_bpffs()?;
        let id = LabId { process: std::process::id(), number: COUNT.fetch_add(1, Ordering::Relaxed) };
        let dir = sweep::files_root().join(id.to_string());
        fs::create_dir_all(dir.join("state")).with_context(|| format!("cannot make {}", dir.display()))?;
        let pin_root = Path::new(BPFFS).join(id.to_string());
        Ok(Self { id, dir, pin_root, _alone: alone })
    }

    /// Which lab this is.
    pub fn id(&self) -> LabId {
        self.id
    }

    /// A directory for files of the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// bgctl's `--pin-root`.
    pub fn pin_root(&self) -> &Path {
        &self.pin_root
    }

    /// bgctl's `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Leaves the lab to whoever calls [`sweep::kept`]. The caller forgets its guards.
    pub(crate) fn keep(&self) -> Result<()> {
        let path = self.dir.join(KEEP);
        fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        sweep::remove_tree(&self.pin_root);
        sweep::remove_tree(&self.dir);
    }
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let is_mounted = |line: &str| line.split(' ').nth(1) == Some(BPFFS) && line.split(' ').nth(2) == Some("bpf");
    if !mounts.lines().any(is_mounted) {
        run(&format!("mount -t bpf bpf {BPFFS}"))?;
    }
    Ok(())
}
