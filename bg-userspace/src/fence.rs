//! Waiting for an RCU grace period. Afterwards every program that was running has ended, on every CPU, so no packet is
//! decided by anything that was read before.
//!
//! An update of a map of maps returns only after an RCU grace period (since Linux 4.20, so that programs
//! no longer use the old inner map), and every XDP and tc program runs inside one RCU read-side
//! section. User space cannot achieve the same by itself. A thread that has
//! run on each CPU in turn knows that each CPU has scheduled, but if softirqs can be preempted (PREEMPT_RT),
//! that may happen in the middle of a program.
//!
//! A normal grace period takes a few ticks, 5 to 20 ms, and more on a busy machine. An expedited grace period
//! interrupts the CPUs instead of waiting for them, and takes 50 µs. So the fence sets `/sys/kernel/rcu_expedited` during
//! the call. If it cannot be written, or the kernel prefers normal grace periods (`rcu_normal`), the wait takes longer, but is just as
//! reliable.
//!
//! A process that is killed in these microseconds leaves the setting at 1. So it first creates the pin `expedited`, a
//! symbolic link that names the process. Whoever opens the instance next, or is about to remove it, sees that
//! the process is gone, and writes 0. Without this pin, a 1 was set by the administrator or another instance.

use std::{io, os::unix::fs::symlink, path::PathBuf};

use aya::maps::{Array, ArrayOfMaps, MapData};

use crate::{Error, Paths, doctor::preconditions::capabilities, maps::typed};

const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// Everything that the wait needs. It is prepared before the change, so that the wait cannot fail for lack of it afterwards.
pub(crate) struct Fence {
    map: ArrayOfMaps<MapData, Array<MapData, u32>>,
    inner: Array<MapData, u32>,
    expedite: Expedite,
}

impl Fence {
    /// Opens and creates what is needed. Requires `CAP_BPF`.
    pub(crate) fn prepare(paths: &Paths) -> Result<Self, Error> {
        let map = typed(paths, "fence")?;
        // A missing privilege is reported as such, not as a failure to create a map.
        let inner = Array::create(1, 0)
            .map_err(Error::map("make", "fence"))
            .or_else(|error| capabilities().map_err(Error::from).and(Err(error)))?;
        Ok(Self { map, inner, expedite: Expedite::of(paths) })
    }

    /// Waits until every program that was running has ended.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        let _expedited = self.expedite.begin();
        self.map.set(0, &self.inner, 0).map_err(Error::map("write", "fence"))
    }
}

/// Resets the setting that a killed process has left. Does nothing without privileges.
pub(crate) fn repair(paths: &Paths) {
    drop(Expedite::of(paths).take_over());
}

/// The kernel's setting, and the pin that says that this instance has changed it.
struct Expedite {
    setting: PathBuf,
    mark: PathBuf,
}

impl Expedite {
    fn of(paths: &Paths) -> Self {
        Self { setting: RCU_EXPEDITED.into(), mark: paths.expedited() }
    }

    /// `None` if grace periods are already expedited, or cannot be.
    fn begin(&self) -> Option<Expedited<'_>> {
        if let Some(left) = self.take_over() {
            return self.set("1").ok().map(|()| left);
        }
        if self.is_set()? || symlink(this_process(), &self.mark).is_err() {
            return None;
        }
        let expedited = Expedited(self);
        self.set("1").ok().map(|()| expedited)
    }

    /// Takes over the pin of a process that is gone.
    fn take_over(&self) -> Option<Expedited<'_>> {
        let process = std::fs::read_link(&self.mark).ok()?;
        let lives = process.to_str().is_some_and(is_alive);
        // If two processes find it, only one can remove it.
        if lives || std::fs::remove_file(&self.mark).is_err() || symlink(this_process(), &self.mark).is_err() {
            return None;
        }
        Some(Expedited(self))
    }

    fn is_set(&self) -> Option<bool> {
        Some(std::fs::read_to_string(&self.setting).ok()?.trim() != "0")
    }

    fn set(&self, setting: &str) -> io::Result<()> {
        std::fs::write(&self.setting, setting)
    }
}

/// While this exists, the kernel may be set to expedite grace periods.
struct Expedited<'a>(&'a Expedite);

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        // It was writable a moment ago, and an error could not be handled here.
        let _ = self.0.set("0");
        let _ = std::fs::remove_file(&self.0.mark);
    }
}

/// A name for a process that is unique until the next reboot: its number, which may be reused, and its start time.
fn this_process() -> String {
    let process = std::process::id();
    format!("{process} {}", started(process).unwrap_or_default())
}

fn is_alive(process: &str) -> bool {
    let mut words = process.split(' ').map(|word| word.parse::<u64>().ok());
    let number = words.next().flatten().and_then(|number| u32::try_from(number).ok());
    number.is_some_and(|number| started(number) == words.next().flatten())
}

/// Ticks from the start of the machine to that of a process.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the command, which may contain anything. The state is field 3, the start time field 22.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expedite(setting: &str) -> (tempfile::TempDir, Expedite) {
        let dir = tempfile::tempdir().unwrap();
        let expedite = Expedite { setting: dir.path().join("setting"), mark: dir.path().join("mark") };
        expedite.set(setting).unwrap();
        (dir, expedite)
    }

    #[test]
    fn the_setting_is_changed_for_as_long_as_the_wait_lasts() {
        let (_dir, expedite) = expedite("0\n");
        let expedited = expedite.begin().unwrap();
        assert_eq!(expedite.is_set(), Some(true));
        assert!(expedite.begin().is_none(), "another one waits meanwhile");
        drop(expedited);
        assert_eq!((expedite.is_set(), expedite.mark.is_symlink()), (Some(false), false));
    }

    #[test]
    fn what_the_administrator_has_set_stays() {
        let (_dir, expedite) = expedite("1\n");
        assert!(expedite.begin().is_none() && expedite.take_over().is_none());
        assert_eq!(expedite.is_set(), Some(true));
    }

    #[test]
    fn what_a_killed_process_has_left_is_taken_back() {
        for mark in ["1 999999999999", "4194305 7", "nonsense", ""] {
            let (_dir, expedite) = expedite("1\n");
            if !mark.is_empty() {
                symlink(mark, &expedite.mark).unwrap();
            }
            drop(expedite.take_over());
            assert_eq!(expedite.is_set(), Some(mark.is_empty()), "{mark}");
            assert!(!expedite.mark.is_symlink());
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let this = this_process();
        assert!(is_alive(&this) && !is_alive(&format!("{this}0")) && !is_alive("1") && !is_alive(""));
    }
}
