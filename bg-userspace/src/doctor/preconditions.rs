//! The preconditions of loading the programs: the kernel's version, the caller's privileges, and
//! a BPF file system for the pins. The checks are independent, so that `doctor` can report all of them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::MountFlags;

pub use super::kernel::KernelVersion;
use super::{
    mounts::Mounts,
    real_time::{Softirqs, softirqs},
};
use crate::net::{Namespace, namespace_cookie};

/// The mount point of the BPF file system on most systems.
const USUAL_PLACE: &str = "/sys/fs/bpf";

/// The oldest kernel that is supported.
pub const MINIMUM_KERNEL: KernelVersion = KernelVersion { major: 5, minor: 15 };

/// What to do about an older one.
pub(super) const NEWER_KERNEL: &str =
    "install a newer kernel, for example one of the distribution's backports or hardware enablement, and boot it";

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// A privilege that loading and attaching require. The value is its bit in a capability set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Attach to interfaces.
    NetAdmin = 12,
    /// All of bpf(2).
    SysAdmin = 21,
    /// Have the verifier accept the pointer arithmetic of privileged programs.
    Perfmon = 38,
    /// Load programs, create maps.
    Bpf = 39,
}

impl Capability {
    /// Its name in capabilities(7).
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A precondition that does not hold, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PreconditionError {
    /// The kernel is older than [`MINIMUM_KERNEL`].
    #[error("kernel {running} is too old: bgctl needs Linux {MINIMUM_KERNEL} or later; {NEWER_KERNEL}")]
    KernelTooOld {
        /// Its release string.
        running: String,
    },
    /// The process does not have the privileges.
    #[error(
        "missing {}: run bgctl as root, or grant them (capsh, or AmbientCapabilities= in a systemd unit)",
        names(missing)
    )]
    MissingCapabilities {
        /// The privileges that are not in the effective set.
        missing: Vec<Capability>,
    },
    /// The pin root is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system, so nothing can be pinned: mount one (mount -t bpf bpf /sys/fs/bpf) or name \
         another place with --pin-root{}", pin_root.display(), private_mounts_hint(*is_private)
    )]
    NoBpfFileSystem {
        /// Where the pins should go.
        pin_root: PathBuf,
        /// Whether this process has its own mounts, which vanish when it ends.
        is_private: bool,
    },
    /// The BPF file system vanishes with the mount namespace of this process.
    #[error(
        "the BPF file system at {} is mounted only in this mount namespace, so all pins would vanish with it{}. \
         --force attaches anyway",
        pin_root.display(), private_mounts_hint(true)
    )]
    PrivateBpfFileSystem {
        /// Where the pins should go.
        pin_root: PathBuf,
    },
    /// Two programs could run on one CPU at once.
    #[error(
        "this kernel has PREEMPT_RT and, as far as its configuration can be read, no CONFIG_PREEMPT_RT_NEEDS_BH_LOCK: a \
         program could preempt another one on the same CPU and overwrite its scratch buffer, so packets could be rewritten \
         incorrectly"
    )]
    PreemptibleSoftirqs,
    /// The BPF file system does not allow a name of the pin root.
    #[error("--pin-root {}: the BPF file system allows no dots in names, and \"{name}\" has one", pin_root.display())]
    DotInPinRoot {
        /// Where the pins should go.
        pin_root: PathBuf,
        /// The part of it that cannot be created.
        name: String,
    },
    /// A file with information about the kernel could not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file in /proc, or the place of the pins.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks all that `attach` needs, most fundamental first, and mounts the BPF file system at its usual place if there
/// is none. `force` accepts one that ends with the mount namespace of this process, and a kernel whose softirqs preempt each
/// other.
pub(crate) fn prepare(pin_root: &Path, force: bool) -> Result<(), PreconditionError> {
    kernel()?;
    capabilities()?;
    if softirqs() == Softirqs::Preemptible && !force {
        return Err(PreconditionError::PreemptibleSoftirqs);
    }
    match bpf_file_system(pin_root) {
        // Only where it stays mounted: `ip netns exec` and systemd's sandboxes have their own mounts, which vanish when they end.
        Err(error @ PreconditionError::NoBpfFileSystem { is_private: false, .. })
            if pin_root.starts_with(USUAL_PLACE) =>
        {
            // As bpftool and iproute2 do. If it does not help, the first message says what to do.
            rustix::mount::mount("bpf", USUAL_PLACE, "bpf", MountFlags::empty(), c"mode=0700").map_err(|_| error)?;
            bpf_file_system(pin_root)?;
        }
        Err(PreconditionError::PrivateBpfFileSystem { .. }) if force => {}
        result => result?,
    }
    no_dots(pin_root)
}

/// Checks that the kernel is new enough. Returns its version and release string.
pub fn kernel() -> Result<(KernelVersion, String), PreconditionError> {
    let (version, release) = KernelVersion::running()
        .map_err(|source| PreconditionError::Unreadable { path: "/proc/sys/kernel/osrelease".into(), source })?;
    if version < MINIMUM_KERNEL {
        return Err(PreconditionError::KernelTooOld { running: release });
    }
    Ok((version, release))
}

/// Checks that the process may load and attach programs.
pub fn capabilities() -> Result<(), PreconditionError> {
    const STATUS: &str = "/proc/self/status";
    let unreadable = |source| PreconditionError::Unreadable { path: STATUS.into(), source };
    let status = fs::read_to_string(STATUS).map_err(unreadable)?;
    let effective = effective_set(&status).ok_or_else(|| unreadable(io::ErrorKind::InvalidData.into()))?;
    match missing_of(effective) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(PreconditionError::MissingCapabilities { missing }),
    }
}

/// Checks that the pin root is on a BPF file system, or will be when its missing directories are created, and that the file
/// system outlives the mount namespace of this process.
pub fn bpf_file_system(pin_root: &Path) -> Result<(), PreconditionError> {
    let existing = existing(pin_root);
    let unreadable = |error: io::Error| PreconditionError::Unreadable { path: existing.to_owned(), source: error };
    let statfs = rustix::fs::statfs(existing).map_err(|error| unreadable(error.into()))?;
    let mounts = Mounts::of_this_process();
    if statfs.f_type as u32 != BPF_FS_MAGIC {
        return Err(PreconditionError::NoBpfFileSystem {
            pin_root: pin_root.to_owned(),
            is_private: mounts.is_private(),
        });
    }
    let device = rustix::fs::stat(existing).map_err(|error| unreadable(error.into()))?.st_dev;
    if mounts.is_private() && !mounts.has_elsewhere(device) {
        return Err(PreconditionError::PrivateBpfFileSystem { pin_root: pin_root.to_owned() });
    }
    Ok(())
}

/// Why an instance may be invisible to this process although it exists.
pub(crate) fn hidden_mounts(pin_root: &Path) -> Option<String> {
    match bpf_file_system(pin_root) {
        Err(
            PreconditionError::NoBpfFileSystem { is_private: true, .. }
            | PreconditionError::PrivateBpfFileSystem { .. },
        ) => Some(private_mounts_hint(true)),
        _ => None,
    }
}

/// Checks that the BPF file system allows the names of the directories that are still to be created.
pub(super) fn no_dots(pin_root: &Path) -> Result<(), PreconditionError> {
    let missing = pin_root.strip_prefix(existing(pin_root)).unwrap_or(pin_root);
    let mut names = missing.components().map(|part| part.as_os_str().to_string_lossy());
    match names.find(|name| name.contains('.')) {
        Some(name) => Err(PreconditionError::DotInPinRoot { pin_root: pin_root.to_owned(), name: name.into_owned() }),
        None => Ok(()),
    }
}

/// The part of a path that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn private_mounts_hint(is_private: bool) -> String {
    if !is_private {
        return String::new();
    }
    let namespace = namespace_cookie().map(Namespace::of);
    let prefix = namespace.map_or_else(|_| String::new(), |namespace| namespace.prefix());
    let prefix = if prefix.is_empty() { "nsenter --net=/run/netns/NAME ".to_owned() } else { prefix };
    format!(
        ". This process has its own mounts: `ip netns exec` hides what is mounted in /sys, and a mount made here vanishes with \
         the command. Use `{prefix}bgctl ...`, which keeps the mounts. In a container or a unit with its own mounts, mount the \
         host's BPF file system"
    )
}

fn effective_set(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// CAP_SYS_ADMIN implies the two capabilities that were split from it in Linux 5.8.
fn missing_of(effective: u64) -> Vec<Capability> {
    let has = |capability: Capability| effective >> capability as u32 & 1 == 1;
    let mut needed = vec![Capability::NetAdmin];
    if !has(Capability::SysAdmin) {
        needed.extend([Capability::Bpf, Capability::Perfmon]);
    }
    needed.into_iter().filter(|capability| !has(*capability)).collect()
}

fn names(capabilities: &[Capability]) -> String {
    capabilities.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_ten_is_too_old_and_six_is_not() {
        assert!(KernelVersion { major: 5, minor: 10 } < MINIMUM_KERNEL);
        assert!(KernelVersion { major: 5, minor: 15 } >= MINIMUM_KERNEL);
        assert!(KernelVersion { major: 6, minor: 1 } >= MINIMUM_KERNEL);
    }

    #[test]
    fn root_without_cap_bpf_is_told_so() {
        let all = u64::MAX;
        let without = |capabilities: &[Capability]| capabilities.iter().fold(all, |set, c| set & !(1 << *c as u32));
        assert_eq!(missing_of(all), []);
        assert_eq!(missing_of(without(&[Capability::Bpf])), [], "CAP_SYS_ADMIN implies it");
        assert_eq!(missing_of(without(&[Capability::Bpf, Capability::SysAdmin])), [Capability::Bpf]);
        assert_eq!(missing_of(without(&[Capability::NetAdmin])), [Capability::NetAdmin]);
        assert_eq!(missing_of(0), [Capability::NetAdmin, Capability::Bpf, Capability::Perfmon]);
        assert_eq!(effective_set("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }

    #[test]
    fn a_plain_directory_is_no_place_for_pins() {
        let dir = tempfile::tempdir().unwrap();
        let error = bpf_file_system(&dir.path().join("not/made/yet")).unwrap_err();
        assert!(matches!(error, PreconditionError::NoBpfFileSystem { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"));
    }

    #[test]
    fn a_dot_in_what_is_yet_to_be_made_is_told() {
        let dir = tempfile::Builder::new().prefix("with.dot").tempdir().unwrap();
        no_dots(dir.path()).expect("what exists has a name that its file system takes");
        no_dots(&dir.path().join("pins/of/mine")).unwrap();
        let error = no_dots(&dir.path().join("pins/shop.example.com")).unwrap_err().to_string();
        assert!(error.contains("no dots") && error.contains("\"shop.example.com\""), "{error}");
    }
}
