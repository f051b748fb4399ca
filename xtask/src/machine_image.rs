//! The Debian root in which the package is tested. debootstrap makes it once, and it is kept as a tarball in the
//! target directory. Each test unpacks it, so that tests do not affect each other.

use crate::process::{as_root, output, run, say};
use anyhow::{Context, Result};
use bg_tests::machine;
use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

/// Creates the tarball if it is missing.
pub(crate) fn make() -> Result<()> {
    let image = machine::image_in(&crate::workspace::target_dir())?;
    if image.exists() {
        say(format_args!("Debian root for tests: {}", image.display()));
        return Ok(());
    }
    let (suite, mirror) = (machine::suite()?, mirror()?);
    say(format_args!("debootstrap {suite} from {mirror}, a Debian root for tests: about a minute"));
    let root = std::env::temp_dir().join(format!("bg-image-{}", std::process::id()));
    let made = debootstrap(&root, &suite, &mirror).and_then(|()| {
        let dir = image.parent().context("the target directory has a name")?;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // The finished tarball appears at once or not at all; it belongs to who runs this, not to root.
        let unfinished = image.with_extension("unfinished");
        let file = File::create(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        run(as_root("tar").args(["--create", "--directory"]).arg(&root).arg(".").stdout(Stdio::from(file)))?;
        fs::rename(&unfinished, &image).with_context(|| format!("cannot make {}", image.display()))
    });
    run(as_root("rm").args(["--recursive", "--force", "--one-file-system"]).arg(&root))?;
    made
}

fn debootstrap(root: &std::path::Path, suite: &str, mirror: &str) -> Result<()> {
    let mut command = as_root("debootstrap");
    command.args(["--variant=minbase", "--include=systemd,systemd-sysv,iproute2", suite]).arg(root).arg(mirror);
    output(&mut command).map(drop).with_context(|| format!("cannot make a {suite} of {mirror}"))
}

/// The mirror of this machine's own packages.
fn mirror() -> Result<String> {
    let suite = machine::suite()?;
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE)", "Created-By: Packages"]);
    let targets = output(&mut apt)?;
    let prefix = format!("{suite} main ");
    let site = targets.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(site.with_context(|| format!("apt knows no mirror of {suite}; expected one in /etc/apt"))?.to_owned())
}
