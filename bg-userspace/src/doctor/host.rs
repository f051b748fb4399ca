//! Checks of the host: the kernel, the privileges, the two directories, and the settings that forwarding depends on.

use std::{fs, path::Path};

use bg_common::Mode;
use rustix::fs::Access;

use super::{
    Finding,
    preconditions::{self, KernelVersion, PreconditionError},
    real_time::{self, Softirqs},
};
use crate::{
    Paths,
    config::{Config, Service},
    history::{PATIENCE, ask},
    probe,
};

const HOST: &str = "host";

/// The first version in which tc programs are attached by links.
const TCX: KernelVersion = KernelVersion { major: 6, minor: 6 };

pub(super) fn examine(paths: &Paths, config: Option<&Config>) -> Vec<Finding> {
    let mut findings =
        vec![kernel(), privileges(), resets(), pins(&paths.pin_root), state(&paths.state_dir), jit(), btf()];
    findings.extend(tc());
    findings.extend(softirqs());
    findings.extend(forwarding(config));
    findings
}

fn kernel() -> Finding {
    match preconditions::kernel() {
        Ok((_, release)) => {
            Finding::ok(HOST, "kernel", format!("{release}, {} or later is needed", preconditions::MINIMUM_KERNEL))
        }
        Err(PreconditionError::KernelTooOld { running }) => {
            let message = format!("{running} is too old, {} or later is needed", preconditions::MINIMUM_KERNEL);
            Finding::fail(HOST, "kernel", message, preconditions::NEWER_KERNEL)
        }
        Err(error) => Finding::fail(HOST, "kernel", error.to_string(), "mount /proc"),
    }
}

fn privileges() -> Finding {
    match preconditions::capabilities() {
        Ok(()) => Finding::ok(HOST, "privileges", "BPF programs can be loaded and attached"),
        Err(PreconditionError::MissingCapabilities { missing }) => {
            let missing: Vec<_> = missing.iter().map(|capability| capability.name()).collect();
            Finding::fail(HOST, "privileges", format!("missing {}", missing.join(" and ")), "run bgctl as root")
        }
        Err(error) => Finding::warn(HOST, "privileges", error.to_string(), "mount /proc"),
    }
}

/// An end of a connection that says nothing has to be asked, or else its reset waits until it speaks.
fn resets() -> Finding {
    match probe::obstacle() {
        None => Finding::ok(HOST, "resets", "connections that say nothing can be reset"),
        Some(why) => Finding::warn(
            HOST,
            "resets",
            format!("{why}: connections that say nothing are reset only when they speak again"),
            "run bgctl as root, or grant CAP_NET_RAW (in a systemd unit also AF_INET and AF_INET6)",
        ),
    }
}

fn pins(pin_root: &Path) -> Finding {
    let path = pin_root.display();
    let error = match preconditions::bpf_file_system(pin_root).and_then(|()| preconditions::no_dots(pin_root)) {
        Ok(()) => return Finding::ok(HOST, "pins", format!("{path} is on a BPF file system")),
        Err(error) => error,
    };
    match error {
        PreconditionError::NoBpfFileSystem { is_private: false, .. } if pin_root.starts_with("/sys/fs/bpf") => {
            let message = format!("{path} is not on a BPF file system yet");
            Finding::warn(HOST, "pins", message, "`bgctl attach` mounts one; at boot: mount -t bpf bpf /sys/fs/bpf")
        }
        PreconditionError::NoBpfFileSystem { is_private: false, .. } => {
            let message = format!("{path} is not on a BPF file system");
            Finding::fail(HOST, "pins", message, "mount one there (mount -t bpf bpf DIR), or omit --pin-root")
        }
        PreconditionError::DotInPinRoot { .. } => {
            Finding::fail(HOST, "pins", error.to_string(), "use a --pin-root without dots below the mount point")
        }
        _ => Finding::fail(
            HOST,
            "pins",
            error.to_string(),
            "use nsenter --net=/run/netns/NAME instead of `ip netns exec`",
        ),
    }
}

/// The data path has one scratch buffer per CPU, so programs of one CPU must not preempt each other.
fn softirqs() -> Option<Finding> {
    match real_time::softirqs() {
        Softirqs::Exclusive => None,
        Softirqs::ExclusiveInRealTime => {
            Some(Finding::ok(HOST, "real time", "PREEMPT_RT, and softirqs of one CPU exclude each other"))
        }
        Softirqs::Preemptible => Some(Finding::fail(
            HOST,
            "real time",
            PreconditionError::PreemptibleSoftirqs.to_string(),
            "boot a kernel with CONFIG_PREEMPT_RT_NEEDS_BH_LOCK, or without PREEMPT_RT",
        )),
    }
}

fn state(state_dir: &Path) -> Finding {
    let is_writable = || {
        let existing = state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let writable = rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        Ok(writable && existing.is_dir())
    };
    let problem = match ask(state_dir, PATIENCE, None, is_writable) {
        Ok(true) => return Finding::ok(HOST, "state", format!("{} can be written", state_dir.display())),
        Ok(false) => format!("{} cannot be written", state_dir.display()),
        Err(error) => error.to_string(),
    };
    Finding::fail(HOST, "state", problem, "make it writable, or name another directory with --state-dir")
}

fn jit() -> Finding {
    const SETTING: &str = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(SETTING).as_deref().map(str::trim) {
        Ok("0") => Finding::warn(
            HOST,
            "jit",
            "BPF programs are interpreted, which is many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Ok(_) => Finding::ok(HOST, "jit", "BPF programs are compiled"),
        // Only the first network namespace shows the setting.
        Err(_) => Finding::ok(HOST, "jit", "this network namespace does not show the setting"),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Finding::ok(HOST, "btf", "the kernel describes its types")
    } else {
        let remedy = "bgctl does not need it; for such tools, boot a kernel with CONFIG_DEBUG_INFO_BTF";
        Finding::warn(HOST, "btf", "the kernel does not describe its types; tools such as bpftool show less", remedy)
    }
}

fn tc() -> Option<Finding> {
    let (version, _) = KernelVersion::running().ok()?;
    let message = if version >= TCX {
        "programs are attached by TCX links"
    } else {
        "programs are attached by clsact, because TCX needs Linux 6.6"
    };
    Some(Finding::ok(HOST, "tc", message))
}

/// The route look-up of the data path depends on these settings, and so does the host's stack.
fn forwarding(config: Option<&Config>) -> Vec<Finding> {
    let services = || config.iter().flat_map(|config| &config.deployments).flat_map(|deployment| &deployment.services);
    let sends_on = |service: &&Service| service.mode == Mode::Nat || service.mode.is_direct();
    let backends = || services().filter(sends_on).flat_map(|service| service.backends.iter().flatten());
    let is_needed = |is_ipv4| backends().any(|backend| backend.address.is_ipv4() == is_ipv4);
    let check = |check, is_ipv4, setting: &str, key| {
        let value = fs::read_to_string(setting).ok()?;
        if value.trim() != "0" {
            return Some(Finding::ok(HOST, check, "on"));
        }
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        let message = format!("off: no packet would be sent on to an {family} backend");
        let remedy = format!("sysctl -w {key}=1");
        Some(if is_needed(is_ipv4) {
            Finding::fail(HOST, check, message, remedy)
        } else {
            Finding::warn(HOST, check, message, remedy + " (services in the modes `local` and `tee` do not need it)")
        })
    };
    [
        check("ipv4 forwarding", true, "/proc/sys/net/ipv4/conf/all/forwarding", "net.ipv4.ip_forward"),
        check("ipv6 forwarding", false, "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ]
    .into_iter()
    .flatten()
    .collect()
}
