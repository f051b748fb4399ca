//! Network namespaces with guards: the machines of a lab.

use crate::{
    command::{output, run},
    sandbox::LabId,
    sweep,
};
use anyhow::{Context, Result, anyhow};
use std::{ffi::OsStr, fs, fs::File, os::fd::AsRawFd, process::Command, thread};

/// A network namespace, with its loopback interface up. Dropping it ends the processes in it, and removes it
/// with all its interfaces.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Creates the namespace `bg-<pid>-<lab>-<role>`.
    pub fn create(lab: LabId, role: &str) -> Result<Self> {
        let name = format!("{lab}-{role}");
        run(&format!("ip netns add {name}"))?;
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let namespace = Self { name, file };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, below `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with these words in it.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(&format!("ip -n {} {words}", self.name))
    }

    /// A command that runs in it. `ip netns exec` would hide the pins in /sys/fs/bpf. nsenter
    /// does not change the mounts, and its process becomes the program, so that both have the same process id.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Runs a command line in it to its end.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        output(self.command(program).args(words))
    }

    /// Sets a value below `/proc/sys/net`, e.g. `("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        let (to, value) = (path.clone(), value.to_owned());
        self.enter(move || fs::write(to, value))?.with_context(|| format!("{}: cannot write {path}", self.name))
    }

    /// The names of its interfaces, except the loopback.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let links: serde_json::Value = serde_json::from_str(&self.ip("-json link show")?)?;
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        Ok(names.filter(|name| *name != "lo").map(str::to_owned).collect())
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let links: serde_json::Value = serde_json::from_str(&self.ip(&format!("-json link show dev {interface}"))?)?;
        let text = links[0]["address"].as_str().with_context(|| format!("no MAC address in {links}"))?;
        let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<Vec<_>, _>>()?;
        octets.try_into().map_err(|_| anyhow!("expected six octets, got {text}"))
    }

    /// Moves the calling thread into it, for good.
    pub fn adopt_thread(&self) -> Result<()> {
        // SAFETY: the descriptor is open and refers to a network namespace.
        match unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).with_context(|| format!("cannot enter {}", self.name)),
        }
    }

    /// Runs a closure on a separate thread in the namespace and waits for it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.adopt_thread().map(|()| work()));
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        sweep::remove_namespace(&self.name);
    }
}
