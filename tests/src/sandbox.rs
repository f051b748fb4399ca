//! The resources of a lab outside its namespaces: a number, a directory for pins, and a directory for files.

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

/// If a lab's directory has a file of this name, the lab is kept when its process ends.
pub(crate) const KEEP: &str = "keep";

/// The mount point of the kernel's BPF file system.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// The name of a lab, with its process and number: `bg-<pid>-<number>`.
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

/// Allows only one lab at a time, because labs load both processors, and would disturb a test that measures.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The directories of a lab, which are removed with it.
#[derive(Debug)]
pub struct Sandbox {
    id: LabId,
    dir: PathBuf,
    pin_root: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Sandbox {
    /// Waits for other labs of this process to end, removes what killed processes have left, and creates
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

    /// The name of the lab.
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

    /// Keeps the lab until [`sweep::kept`] is called. The caller forgets its guards.
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
