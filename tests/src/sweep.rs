//! Removing labs by name: those of this process when a signal ends it, and those that dead processes have left.
//!
//! Everything that a lab creates is called `bg-<pid>-...`. If the process of this number is dead, or does not use labs,
//! it is a leftover. If something cannot be removed, the rest still is.

use crate::{
    command::run,
    sandbox::{BPFFS, KEEP},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Once,
    thread,
    time::Duration,
};

const NETNS: &str = "/run/netns";

/// The directory in which labs keep their files.
pub fn files_root() -> PathBuf {
    std::env::temp_dir()
}

/// Has SIGINT, SIGTERM and SIGHUP remove this process's labs before they end it.
pub fn on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = || {
            let own = std::process::id();
            sweep(|pid, _| pid == own);
            std::process::exit(130);
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            eprintln!("warning: a signal will not remove the lab: {error}");
        }
    });
}

/// Removes what labs of dead processes have left, except labs that were kept.
pub fn leftovers() {
    sweep(|pid, is_kept| !is_kept && !lives(pid));
}

/// Removes the labs that were kept.
pub fn kept() {
    sweep(|pid, is_kept| is_kept && !lives(pid));
}

fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Removes the labs of the processes for which `goes` is true. Its argument says whether the lab was kept.
fn sweep(goes: impl Fn(u32, bool) -> bool) {
    let is_kept = |lab: &str| files_root().join(lab).join(KEEP).exists();
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| lab(name).is_some_and(|(lab, pid)| goes(pid, is_kept(lab)))).collect::<Vec<_>>()
    };
    names(Path::new(NETNS)).iter().for_each(|name| remove_namespace(name));
    names(Path::new(BPFFS)).iter().for_each(|name| remove_tree(&Path::new(BPFFS).join(name)));
    if let Some(cgroups) = cgroups() {
        names(&cgroups).iter().for_each(|name| remove_cgroup(&cgroups.join(name)));
    }
    // Last: these directories say which labs are kept.
    names(&files_root()).iter().for_each(|name| remove_tree(&files_root().join(name)));
}

/// The lab of a name `bg-<pid>-<number>` or `bg-<pid>-<number>-<role>`, and its process.
fn lab(name: &str) -> Option<(&str, u32)> {
    let end = name.match_indices('-').nth(2).map_or(name.len(), |(at, _)| at);
    let lab = &name[..end];
    let (pid, number) = lab.strip_prefix("bg-")?.split_once('-')?;
    number.parse::<u32>().ok()?;
    Some((lab, pid.parse().ok()?))
}

/// Ends the processes in a namespace of a lab and removes it.
pub(crate) fn remove_namespace(name: &str) {
    let own = std::process::id();
    let inside = || {
        let pids = run(&format!("ip netns pids {name}")).unwrap_or_default();
        pids.lines().filter_map(|pid| pid.parse::<u32>().ok()).filter(|pid| *pid != own).collect::<Vec<_>>()
    };
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut patience = 20;
        let mut pids = inside();
        if pids.is_empty() {
            break;
        }
        for pid in &pids {
            // SAFETY: `kill` takes no pointers. The process lives in a namespace that a lab made.
            unsafe { libc::kill(pid.cast_signed(), signal) };
        }
        while !pids.is_empty() && patience > 0 {
            thread::sleep(Duration::from_millis(25));
            patience -= 1;
            pids = inside();
        }
    }
    if let Err(error) = run(&format!("ip netns del {name}")) {
        eprintln!("warning: the namespace {name} stays: {error:#}");
    }
}

/// The mount point of control groups of version 2, with or without those of version 1.
pub(crate) fn cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let of_type = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
    mounts.lines().find(of_type)?.split(' ').nth(1).map(PathBuf::from)
}

/// Ends the processes of a control group and removes it with all groups in it.
pub(crate) fn remove_cgroup(group: &Path) {
    if !group.exists() {
        return;
    }
    // Linux 5.14. It ends those of all groups below, too.
    let _ = fs::write(group.join("cgroup.kill"), "1");
    let mut patience = 40;
    while let Err(error) = remove_groups(group) {
        patience -= 1;
        if patience == 0 {
            eprintln!("warning: the control group {} stays: {error}", group.display());
            return;
        }
        thread::sleep(Duration::from_millis(25));
    }
}

/// Removes a control group. Its files vanish with its directory.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes a directory, if it exists.
pub(crate) fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("warning: {} stays: {error}", path.display());
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::lab;

    #[test]
    fn only_names_of_labs_are_swept() {
        assert_eq!(lab("bg-417-0-edge"), Some(("bg-417-0", 417)));
        assert_eq!(lab("bg-417-12"), Some(("bg-417-12", 417)));
        for other in ["bgctl", "bg-record-417", "bg-x-0-edge", "bg-417", "bg-417-edge", "edge"] {
            assert_eq!(lab(other), None, "{other}");
        }
    }
}
