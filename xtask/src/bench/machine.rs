//! What a figure depends on besides the code: the machine, its kernel, and the versions of programs.

use crate::{
    process::output,
    toolchain::{self, Toolchain},
};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// A name and its value.
pub(crate) type Fact = (String, String);

/// Facts about the machine.
pub(crate) fn machine() -> Vec<Fact> {
    let facts = [
        ("CPU", cpu_model()),
        ("CPUs online", cpus()),
        ("caches of a core", caches()),
        ("memory", memory()),
        ("virtual machine", virtual_machine()),
        ("frequency governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("system", distribution()),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("tick rate (HZ)", kernel_option("CONFIG_HZ")),
        ("BPF JIT", jit()),
        ("mitigations", mitigations()),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?))).collect()
}

/// The versions of compilers and of the programs for comparison, as far as they are installed.
pub(crate) fn versions() -> Vec<Fact> {
    let bpf_compiler = Toolchain::find()
        .and_then(|toolchain| Some(format!("{}, {}", toolchain.version().ok()?, toolchain.describe())));
    let of_compilers = [
        ("rustc", first_line(Command::new("rustc").arg("--version"))),
        ("compiler of the BPF object", bpf_compiler),
        ("BPF linker", toolchain::bpf_linker()),
    ];
    let of_programs = [
        ("nftables", ["nft", "--version"]),
        ("HAProxy", ["haproxy", "-v"]),
        ("nginx", ["nginx", "-v"]),
        ("iperf3", ["iperf3", "--version"]),
        ("wrk", ["wrk", "-v"]),
        ("valgrind", ["valgrind", "--version"]),
    ];
    let of_programs = of_programs.map(|(name, [program, flag])| (name, first_line(Command::new(program).arg(flag))));
    let all = of_compilers.into_iter().chain(of_programs);
    all.filter_map(|(name, version)| Some((name.to_owned(), version?))).collect()
}

/// The first line of a program's version message, on either output and with any exit code:
/// nginx writes to stderr, and wrk exits with 1.
fn first_line(command: &mut Command) -> Option<String> {
    command.env("PATH", toolchain::path_with_cargo_bin());
    let output = command.output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
    // Without the advertising that some add.
    let line = line.split(" - http").next()?.split(" Copyright").next()?;
    Some(line.trim_start_matches("nginx version: ").to_owned())
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A line `name : value` in a file like /proc/cpuinfo.
fn line_of(path: &str, name: &str) -> Option<String> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn cpu_model() -> Option<String> {
    // Not every architecture tells its model there; lscpu knows the numbers' meaning.
    line_of("/proc/cpuinfo", "model name").or_else(|| {
        let shown = output(Command::new("lscpu").env("LC_ALL", "C")).ok()?;
        let model = shown.lines().find_map(|line| line.strip_prefix("Model name:"))?;
        Some(model.trim().to_owned())
    })
}

fn cpus() -> Option<String> {
    let online = std::thread::available_parallelism().ok()?;
    let siblings = "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list";
    let threads = if read(siblings)?.contains([',', '-']) { "threads of shared cores" } else { "one thread a core" };
    Some(format!("{online}, {threads}"))
}

fn caches() -> Option<String> {
    let dirs = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let caches: BTreeSet<_> = dirs
        .filter_map(|dir| {
            let dir = dir.ok()?.path();
            let [level, kind, size] = ["level", "type", "size"].map(|name| read(dir.join(name)));
            let kind = kind?.to_lowercase();
            let kind = if kind == "unified" { String::new() } else { format!(" {kind}") };
            Some(format!("L{}{kind} {}", level?, size?))
        })
        .collect();
    (!caches.is_empty()).then(|| caches.into_iter().collect::<Vec<_>>().join(", "))
}

fn memory() -> Option<String> {
    let kib: f64 = line_of("/proc/meminfo", "MemTotal")?.split(' ').next()?.parse().ok()?;
    Some(format!("{:.1} GiB", kib / 1024.0 / 1024.0))
}

fn virtual_machine() -> Option<String> {
    let flags = line_of("/proc/cpuinfo", "flags")?;
    let is_guest = flags.split(' ').any(|flag| flag == "hypervisor");
    Some(if is_guest { "yes: neighbours on the same hardware are noise" } else { "no" }.to_owned())
}

fn distribution() -> Option<String> {
    let text = read("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// An option of the kernel's build configuration, if it is available.
fn kernel_option(name: &str) -> Option<String> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let config = output(Command::new("zcat").arg("/proc/config.gz")).ok();
    let config = config.or_else(|| read(format!("/boot/config-{release}")))?;
    let value = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.to_owned())
}

fn jit() -> Option<String> {
    let state = match read("/proc/sys/net/core/bpf_jit_enable")?.as_str() {
        "0" => "off: figures are the interpreter's",
        _ => "on",
    };
    let hardened = read("/proc/sys/net/core/bpf_jit_harden").is_some_and(|value| value != "0");
    Some(if hardened { format!("{state}, hardened") } else { state.to_owned() })
}

/// Mitigations that change the cost of an indirect call, a return or a system call.
fn mitigations() -> Option<String> {
    let dir = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let found: Vec<_> = ["spectre_v2", "retbleed", "spec_rstack_overflow", "meltdown", "mds", "vmscape"]
        .into_iter()
        .filter_map(|name| {
            let state = read(dir.join(name))?;
            let state = state.strip_prefix("Mitigation: ")?.split(';').next()?;
            Some(format!("{name}: {state}"))
        })
        .collect();
    Some(if found.is_empty() { "none that cost".to_owned() } else { found.join("; ") })
}

/// How much of the machine others used: read before and after a measurement.
pub(crate) struct Quiet {
    busy: Option<[u64; 2]>,
    load: Option<String>,
}

impl Quiet {
    /// At the beginning.
    pub(crate) fn begin() -> Self {
        let load = read("/proc/loadavg").and_then(|line| Some(line.split(' ').next()?.to_owned()));
        Self { busy: stolen(), load }
    }

    /// At the end: the load average at the beginning, and the share of processor time that a hypervisor took.
    pub(crate) fn end(self) -> Vec<Fact> {
        let load = self.load.map(|load| ("load average when it began".to_owned(), load));
        let share = self.busy.zip(stolen()).map(|([stolen, all], [stolen_now, all_now])| {
            let share = 100.0 * (stolen_now - stolen) as f64 / (all_now - all).max(1) as f64;
            ("taken by the hypervisor".to_owned(), format!("{share:.1} %"))
        });
        load.into_iter().chain(share).collect()
    }
}

/// Stolen and total processor time since the machine started, in ticks (/proc/stat, first line).
fn stolen() -> Option<[u64; 2]> {
    let text = read("/proc/stat")?;
    let ticks: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; what follows is counted in user and nice already.
    Some([*ticks.get(7)?, ticks.iter().take(8).sum()])
}

/// Whether a program can be run.
pub(super) fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("-v").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let facts = machine();
        for name in ["CPUs online", "memory", "system", "kernel"] {
            assert!(facts.iter().any(|(fact, value)| fact == name && !value.is_empty()), "{name}: {facts:?}");
        }
        assert!(versions().iter().any(|(name, version)| name == "rustc" && version.starts_with("rustc 1.")));
    }
}
