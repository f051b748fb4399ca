//! A Debian machine with systemd as its first process, in a separate container. It shares the kernel and the
//! network namespace of a lab's edge. It has its own pins, which vanish when it is switched off, as after a reboot.

mod image;

use crate::{
    command::{Process, output},
    netns::Namespace,
    sandbox::Sandbox,
    sweep,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub use image::{image_in, suite};

const BOOT: &str = include_str!("boot.sh");
/// The time that booting, switching off and each command may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// The signal on which systemd ends all units and halts.
const HALT: libc::c_int = 3;

/// The machine. Dropping it ends all its processes and removes it.
#[derive(Debug)]
pub struct Machine {
    network: Arc<Namespace>,
    root: PathBuf,
    cgroup: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// The program that has created the namespaces and waits for the first process.
    outside: Process,
    /// Process id of the first process.
    init: u32,
}

impl Machine {
    /// Unpacks the machine's root. It is switched off.
    pub fn install(sandbox: &Sandbox, network: &Arc<Namespace>) -> Result<Self> {
        let root = sandbox.dir().join("machine");
        image::unpack(&root)?;
        let cgroup = sweep::cgroups().context("expected a file system of type cgroup2")?.join(sandbox.id().to_string());
        Ok(Self { network: network.clone(), root, cgroup, running: None })
    }

    /// A path of the machine, as seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Writes a file of the machine.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.path(path);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Copies the Debian package under test into the machine, with another `version` if one is given, and returns its path there.
    pub fn copy_package(&self, version: Option<&str>) -> Result<&'static str> {
        const PLACE: &str = "/root/bgctl.deb";
        let package = image::package()?;
        let Some(version) = version else {
            fs::copy(&package, self.path(PLACE)).with_context(|| format!("cannot copy {}", package.display()))?;
            return Ok(PLACE);
        };
        let unpacked = self.path("/root/repack");
        output(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&unpacked))?;
        let control = unpacked.join("DEBIAN/control");
        let text = fs::read_to_string(&control).with_context(|| format!("cannot read {}", control.display()))?;
        let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
            Some(_) => format!("Version: {version}\n"),
            None => format!("{line}\n"),
        });
        fs::write(&control, lines.collect::<String>())?;
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).arg(&unpacked).arg(self.path(PLACE));
        output(&mut build)?;
        fs::remove_dir_all(&unpacked)?;
        Ok(PLACE)
    }

    /// Switches it on. Returns as soon as systemd runs, not when it has started everything.
    pub fn switch_on(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("the machine is on already");
        }
        fs::create_dir_all(&self.cgroup).with_context(|| format!("cannot make {}", self.cgroup.display()))?;
        let mut command = self.network.command("sh");
        // The group of the first process becomes the root of the groups that the machine sees.
        command.args(["-euc", "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"", "sh"]).arg(&self.cgroup);
        command.args(["unshare", "--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child"]);
        command.args(["--propagation", "private", "sh", "-c", BOOT, "sh"]).arg(&self.root);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl takes no pointers here and may be called between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut outside = Process::spawn(&mut command)?;
        let start = Instant::now();
        loop {
            let id = outside.id();
            let child = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            let init = child.trim().parse().ok();
            if let Some(init) = init.filter(|init| is_systemd(*init)) {
                self.running = Some(Running { outside, init });
                return Ok(());
            }
            if let Some(status) = outside.wait(Duration::from_millis(10))? {
                bail!("the machine does not boot: {status}");
            }
            if start.elapsed() > PATIENCE {
                bail!("no systemd after {PATIENCE:?}");
            }
        }
    }

    /// Waits until the boot is complete, and returns the state that systemd reports: `running`, or
    /// `degraded` if a unit has failed.
    pub fn booted(&self) -> Result<String> {
        let start = Instant::now();
        loop {
            // It fails for `degraded`, and as long as systemd does not answer yet.
            let answer = self.command("systemctl").args(["is-system-running", "--wait"]).output()?;
            let state = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
            if matches!(state.as_str(), "running" | "degraded") {
                return Ok(state);
            }
            if start.elapsed() > PATIENCE {
                bail!("still \"{state}\" after {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends all units in order, then switches it off.
    pub fn switch_off(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        // SAFETY: `kill` takes no pointers. The first process is a child of a child that has not been waited for.
        unsafe { libc::kill(running.init.cast_signed(), libc::SIGRTMIN() + HALT) };
        let ended = running.outside.wait(PATIENCE)?;
        self.running = None;
        ended.map(drop).with_context(|| format!("the machine has not halted after {PATIENCE:?}"))
    }

    /// A command that runs in the machine, with a time limit.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg("nsenter");
        let init = self.running.as_ref().map_or(0, |running| running.init);
        command.arg(format!("--target={init}"));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"]);
        command.args(["env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    /// Runs a command line in the machine and returns its results. A failure is an error with its message.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        output(self.command(program).args(words))
    }

    /// All files of the machine's disk, except those of the package manager and logs.
    pub fn files(&self) -> Result<Vec<String>> {
        const NOT_OURS: [&str; 5] = ["./var/lib/dpkg/", "./var/lib/apt/", "./var/cache/", "./var/log/", "./root/"];
        let mut find = Command::new("find");
        find.current_dir(&self.root).args([".", "-xdev", "-not", "-type", "s"]);
        let found = output(&mut find)?;
        let mut files: Vec<_> =
            found.lines().filter(|file| !NOT_OURS.iter().any(|dir| file.starts_with(dir))).map(str::to_owned).collect();
        files.sort();
        Ok(files)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // With it go its child, the first process, and with that all others.
            let _ = running.outside.child().kill();
            let _ = running.outside.child().wait();
        }
        sweep::remove_cgroup(&self.cgroup);
    }
}

/// Whether boot.sh has finished.
fn is_systemd(process: u32) -> bool {
    fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|program| program.ends_with(Path::new("systemd/systemd")))
}
