//! Whether programs of one CPU can preempt each other. They must not, because they share the CPU's scratch buffer.
//!
//! They cannot if softirqs exclude each other. That is so on every kernel without PREEMPT_RT. With PREEMPT_RT it is so before Linux
//! 6.18, which made the lock for it an option (`CONFIG_PREEMPT_RT_NEEDS_BH_LOCK`).

use std::{fs, path::Path};

use super::kernel::KernelVersion;

/// The first version in which the lock is an option.
const OPTIONAL_LOCK: KernelVersion = KernelVersion { major: 6, minor: 18 };

/// How the running kernel treats softirqs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Softirqs {
    /// One at a time on each CPU.
    Exclusive,
    /// One at a time on each CPU, with PREEMPT_RT.
    ExclusiveInRealTime,
    /// One may preempt another on the same CPU, or this cannot be excluded.
    Preemptible,
}

/// Checks the running kernel.
pub(super) fn softirqs() -> Softirqs {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let is_real_time = read("/sys/kernel/realtime").trim() == "1" || read("/proc/version").contains("PREEMPT_RT");
    let Ok((version, release)) = KernelVersion::running() else { return Softirqs::Exclusive };
    let configs = [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")];
    let config = configs.iter().find_map(|path| fs::read_to_string(Path::new(path)).ok());
    judge(is_real_time, version, &config.unwrap_or_default())
}

fn judge(is_real_time: bool, version: KernelVersion, config: &str) -> Softirqs {
    if !is_real_time {
        return Softirqs::Exclusive;
    }
    if version < OPTIONAL_LOCK || config.lines().any(|line| line == "CONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y") {
        return Softirqs::ExclusiveInRealTime;
    }
    Softirqs::Preemptible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_time_kernel_needs_the_lock_that_6_18_made_an_option() {
        let version = |minor| KernelVersion { major: 6, minor };
        let with = "CONFIG_PREEMPT_RT=y\nCONFIG_PREEMPT_RT_NEEDS_BH_LOCK=y\n";
        let without = "CONFIG_PREEMPT_RT=y\n# CONFIG_PREEMPT_RT_NEEDS_BH_LOCK is not set\n";
        assert_eq!(judge(false, version(18), without), Softirqs::Exclusive);
        assert_eq!(judge(true, version(12), ""), Softirqs::ExclusiveInRealTime);
        assert_eq!(judge(true, version(18), with), Softirqs::ExclusiveInRealTime);
        assert_eq!(judge(true, version(18), without), Softirqs::Preemptible);
        assert_eq!(judge(true, version(19), ""), Softirqs::Preemptible, "who cannot tell does not vouch for it");
    }
}
