//! What must hold before anything can be loaded: the kernel's version, the caller's privileges, and
//! a BPF file system for the pins. Each check stands alone, so that `doctor` can report them all.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// The oldest kernel that is supported.
pub const MINIMUM_KERNEL: KernelVersion = KernelVersion { major: 5, minor: 15 };

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// A kernel's version, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.12.
    pub major: u32,
    /// 12 of 6.12.
    pub minor: u32,
}

impl KernelVersion {
    /// The running kernel's, from its release string, which is the other value.
    pub fn running() -> io::Result<(Self, String)> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let version = Self::parse(&release).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("no kernel version in the release \"{release}\""))
        })?;
        Ok((version, release))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A privilege that loading and attaching take, by its bit in a capability set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Attach to interfaces.
    NetAdmin = 12,
    /// All of bpf(2).
    SysAdmin = 21,
    /// Let the verifier admit pointer arithmetic as privileged programs use it.
    Perfmon = 38,
    /// Load programs, create maps.
    Bpf = 39,
}

impl Capability {
    /// As capabilities(7) spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// What is missing, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PreconditionError {
    /// Expected a kernel of at least [`MINIMUM_KERNEL`].
    #[error("kernel {running} is too old: bgctl needs {MINIMUM_KERNEL} or later; boot a newer kernel")]
    KernelTooOld {
        /// Its release string.
        running: String,
    },
    /// Expected privileges that the process does not have.
    #[error(
        "missing {}: run bgctl as root, or grant them (capsh, or AmbientCapabilities= in a systemd unit)",
        names(missing)
    )]
    MissingCapabilities {
        /// Those that are not in the effective set.
        missing: Vec<Capability>,
    },
    /// Expected the pin root on a BPF file system.
    #[error(
        "{} is not on a BPF file system, so nothing can be pinned: mount one (mount -t bpf bpf /sys/fs/bpf) or name \
         another place by --pin-root; under `ip netns exec` the mounts of /sys are hidden, use `nsenter --net=/run/netns/NAME`",
        pin_root.display()
    )]
    NoBpfFileSystem {
        /// Where the pins should go.
        pin_root: PathBuf,
    },
    /// What the kernel tells of itself could not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file in /proc, or the place of the pins.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks all that `attach` needs, most fundamental first.
pub fn check(pin_root: &Path) -> Result<(), PreconditionError> {
    kernel()?;
    capabilities()?;
    bpf_file_system(pin_root)
}

/// The kernel is new enough. Returns its version and release.
pub fn kernel() -> Result<(KernelVersion, String), PreconditionError> {
    let (version, release) = KernelVersion::running()
        .map_err(|source| PreconditionError::Unreadable { path: "/proc/sys/kernel/osrelease".into(), source })?;
    if version < MINIMUM_KERNEL {
        return Err(PreconditionError::KernelTooOld { running: release });
    }
    Ok((version, release))
}

/// The process may load and attach.
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

/// The pin root is on a BPF file system, or will be when its missing directories are made.
pub fn bpf_file_system(pin_root: &Path) -> Result<(), PreconditionError> {
    let existing = pin_root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statfs(existing) {
        Ok(statfs) if statfs.f_type as u32 == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(PreconditionError::NoBpfFileSystem { pin_root: pin_root.to_owned() }),
        Err(error) => Err(PreconditionError::Unreadable { path: existing.to_owned(), source: error.into() }),
    }
}

fn effective_set(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// CAP_SYS_ADMIN implies the two that were split from it in Linux 5.8.
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
    fn releases_of_distributions_are_understood() {
        let version = |release| KernelVersion::parse(release).map(|v| (v.major, v.minor));
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("7.2-rc1+deb14"), Some((7, 2)));
        assert_eq!(version("linux"), None);
    }

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
}
