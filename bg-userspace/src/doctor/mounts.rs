//! Whether the mounts of this process are those of process 1. `ip netns exec`, `unshare --mount` and systemd's sandboxes
//! give a process mounts of its own, and what it mounts there is gone when it ends.

use std::fs;

/// The mounts of this process and of process 1, in the format of /proc/PID/mountinfo.
pub(super) struct Mounts {
    own: String,
    /// `None` if this process may not read them.
    first: Option<String>,
}

impl Mounts {
    pub(super) fn of_this_process() -> Self {
        // Not /proc/1/ns/mnt, which takes every capability that process 1 has.
        let first = fs::read_to_string("/proc/1/mountinfo").ok();
        Self { own: fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default(), first }
    }

    /// Whether this process is in another mount namespace than process 1. A mount has another number in each.
    pub(super) fn is_private(&self) -> bool {
        let Some(first) = &self.first else { return false };
        let numbers: Vec<_> = column(first, NUMBER).collect();
        !column(&self.own, NUMBER).any(|number| numbers.contains(&number))
    }

    /// Whether process 1 has a mount of the file system on this device.
    pub(super) fn has_elsewhere(&self, device: u64) -> bool {
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        self.first.as_ref().is_none_or(|first| column(first, DEVICE).any(|other| other == device))
    }
}

const NUMBER: usize = 0;
const DEVICE: usize = 2;

fn column(mounts: &str, column: usize) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(move |line| line.split(' ').nth(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "22 27 0:21 / /proc rw - proc proc rw\n42 23 0:39 / /sys/fs/bpf rw - bpf bpf rw\n";

    fn mounts(own: &str, first: Option<&str>) -> Mounts {
        Mounts { own: own.to_owned(), first: first.map(str::to_owned) }
    }

    #[test]
    fn mounts_with_other_numbers_are_private() {
        let copy = HOST.replace("22 27", "122 127").replace("42 23", "142 123");
        assert!(mounts(&copy, Some(HOST)).is_private());
        assert!(!mounts(HOST, Some(HOST)).is_private());
        assert!(!mounts(HOST.lines().last().unwrap(), Some(HOST)).is_private(), "a chroot sees some of them");
        assert!(!mounts(&copy, None).is_private(), "who may not look takes them for the same");
    }

    #[test]
    fn a_file_system_is_known_by_its_device() {
        let mounts = mounts("", Some(HOST));
        assert!(mounts.has_elsewhere(rustix::fs::makedev(0, 39)));
        assert!(!mounts.has_elsewhere(rustix::fs::makedev(0, 40)));
    }
}
