//! A machine under QEMU: a kernel, and a file system in memory with bgctl and the programs that test it.

use super::MODES;
use crate::process::{output, run};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A machine that takes longer is ended. Without KVM, most take one to two minutes.
pub(super) const MINUTES: u32 = 10;

/// What the first process does.
const INIT: &str = include_str!("init.sh");

/// The programs that it uses.
const PROGRAMS: [&str; 4] = ["busybox", "ip", "ethtool", "bash"];

/// The modules that it loads, in this order; those that are missing are built in.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];

/// A kernel.
pub(super) struct Kernel {
    /// As `uname -r` prints it.
    pub(super) release: String,
    image: PathBuf,
    /// The directory of its modules.
    modules: PathBuf,
}

/// The kernels of a root directory.
pub(super) fn kernels(root: &Path) -> Result<Vec<Kernel>> {
    let (boot, dirs) = (root.join("boot"), ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir)));
    let images = names(&boot)?.into_iter().filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned));
    let mut releases: BTreeSet<_> = images.collect();
    for dir in &dirs {
        releases.extend(names(dir)?);
    }
    let kernel = |release: String| {
        let modules = dirs.iter().map(|dir| dir.join(&release)).find(|dir| dir.exists());
        let modules = modules.with_context(|| format!("no package has modules of {release}"))?;
        // The image is in one of two places, which depends on the distribution.
        let images = [boot.join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.exists());
        let image = image.with_context(|| format!("no package has an image of {release}, only modules"))?;
        Ok(Kernel { release, image, modules })
    };
    releases.into_iter().map(kernel).collect()
}

/// The names in a directory; none if there is no directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", dir.display()))?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// A machine.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) bgctl: &'a Path,
}

impl Machine<'_> {
    /// Boots it, and returns what it has printed.
    pub(super) fn boot(&self, dir: &Path) -> Result<String> {
        let initramfs = self.initramfs(dir)?;
        let console = dir.join(format!("{}.log", self.kernel.release));
        let file = File::create(&console).with_context(|| format!("cannot make {}", console.display()))?;
        let mut qemu = Command::new("timeout");
        qemu.args([&format!("{MINUTES}m"), "qemu-system-x86_64", "-accel", "kvm", "-accel", "tcg", "-cpu", "max"]);
        qemu.args(["-m", "1024", "-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
        qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&initramfs);
        // If it does not end well, results are missing.
        qemu.stdin(Stdio::null()).stdout(file).status().context("cannot run qemu-system-x86_64")?;
        let printed = fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// Makes the file system, as an archive that the kernel unpacks.
    fn initramfs(&self, dir: &Path) -> Result<PathBuf> {
        let tree = dir.join("initramfs");
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
        }
        for program in PROGRAMS {
            let path = output(Command::new("which").arg(program)).with_context(|| format!("{program} is missing"))?;
            // All names of busybox are one program.
            let at = if program == "busybox" { "bin" } else { "opt" };
            add_program(Path::new(&path), &tree.join(at).join(program), &tree)?;
        }
        add_program(self.bgctl, &tree.join("opt/bgctl"), &tree)?;
        for (position, module) in MODULES.into_iter().enumerate() {
            self.add_module(module, &tree.join(format!("modules/{position}-{module}.ko")))?;
        }
        write(&tree.join("modes"), MODES.join(" ").as_bytes())?;
        let init = tree.join("init");
        write(&init, INIT.as_bytes())?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

        let archive = dir.join("initramfs.cpio");
        let file = File::create(&archive).with_context(|| format!("cannot make {}", archive.display()))?;
        let pack = "find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet";
        run(Command::new("sh").args(["-c", pack]).current_dir(&tree).stdout(file))?;
        Ok(archive)
    }

    fn add_module(&self, name: &str, to: &Path) -> Result<()> {
        let mut find = Command::new("find");
        find.arg(&self.kernel.modules).args(["-name", &format!("{name}.ko*")]);
        let found = output(&mut find)?;
        let Some(from) = found.lines().next().map(Path::new) else { return Ok(()) };
        let unpack = match from.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => "cat",
            Some("xz") => "xzcat",
            Some("zst") => "zstdcat",
            _ => bail!("{} has an unknown compression", from.display()),
        };
        write(to, &[])?;
        run(Command::new(unpack).arg(from).stdout(File::create(to)?))
    }
}

/// Copies a program and the libraries that it loads.
fn add_program(from: &Path, to: &Path, tree: &Path) -> Result<()> {
    copy(from, to)?;
    // ldd fails if the program is static.
    let libraries = output(Command::new("ldd").arg(from)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), &tree.join(library.trim_start_matches('/')))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    write(to, &[])?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Writes a file, and makes its directory.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().context("a file is in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
