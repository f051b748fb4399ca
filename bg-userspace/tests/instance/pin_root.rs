//! A pin root as others leave it: with pins of their own, without one of bgctl's, not to be read, with a dot, a mount
//! point.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use bg_userspace::{AttachMode, Error, Instance, Paths, Target, detach};

use crate::{
    lab::Lab,
    lifecycle::{link, pins},
};

/// A BPF file system of the test's own.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(directory.path()).status().unwrap();
        assert!(status.success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn without_meta_links_that_work_are_not_touched() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Native).unwrap();
    let before: Vec<_> = pins(&lab).iter().map(|name| link(&lab, name)).collect();
    fs::remove_file(lab.paths.map("meta")).unwrap();
    for error in [lab.attach("v1", AttachMode::Tc).unwrap_err(), Instance::open(&lab.paths).unwrap_err()] {
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("maps/meta"), "{error}");
    }
    assert_eq!(pins(&lab).iter().map(|name| link(&lab, name)).collect::<Vec<_>>(), before);
    detach(&lab.paths, &Target::All).unwrap();
    assert!(!lab.paths.pin_root.exists());
}

#[test]
fn a_pin_that_is_missing_is_named() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    fs::remove_file(lab.paths.map("backends")).unwrap();
    let error = Instance::open(&lab.paths).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("maps/backends does not exist"), "{error}");
}

#[test]
fn who_may_not_read_the_pins_is_told_so_and_nothing_destructive() {
    let mounted = Mounted::new();
    let mut lab = Lab::new();
    lab.paths.pin_root = mounted.path().join("instance");
    lab.attach("v0", AttachMode::Tc).unwrap();
    let directories = [lab.paths.pin_root.clone(), lab.paths.maps(), lab.paths.links(), lab.paths.programs()];
    for directory in
        [mounted.path(), lab.paths.state_dir.parent().unwrap()].into_iter().chain(directories.iter().map(AsRef::as_ref))
    {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = lab.paths.state_dir.with_file_name("bgctl");
    fs::copy(env!("CARGO_BIN_EXE_bgctl"), &program).unwrap();
    let capabilities = "-all,+bpf,+net_admin,+perfmon";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]).arg(&program);
    command.arg("--pin-root").arg(&lab.paths.pin_root).arg("--state-dir").arg(&lab.paths.state_dir).arg("status");
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("Permission denied") && !stderr.contains("detach --all"), "{stderr}");
    detach(&lab.paths, &Target::All).unwrap();
}

#[test]
fn somebody_elses_pin_is_left_where_it_is_and_told() {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    let stranger = lab.paths.pin_root.join("mine");
    let pin = Command::new("bpftool")
        .args(["map", "pin", "pinned"])
        .args([lab.paths.map("clock"), stranger.clone()])
        .status();
    assert!(pin.unwrap().success());
    let (code, stdout, stderr) = lab.run(&["detach", "--all"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("detached") && stdout.contains("mine"), "{stdout}");
    assert!(stranger.exists());
    fs::remove_file(stranger).unwrap();
    assert_eq!(detach(&lab.paths, &Target::All).unwrap().left.len(), 0);
    assert!(!lab.paths.pin_root.exists());
}

#[test]
fn a_mount_point_can_be_a_pin_root() {
    let mounted = Mounted::new();
    let lab = Lab::new();
    let paths = Paths { pin_root: mounted.path().to_owned(), ..lab.paths.clone() };
    for _ in 0..2 {
        bg_userspace::attach(&paths, &["v0".to_owned()], &Default::default()).unwrap();
        assert_eq!(detach(&paths, &Target::All).unwrap().left.len(), 0);
        assert!(!paths.maps().exists());
    }
}

#[test]
fn a_dot_in_the_pin_root_is_explained() {
    let lab = Lab::new();
    let paths = Paths { pin_root: lab.paths.pin_root.join("shop.example.com"), ..lab.paths.clone() };
    let error = bg_userspace::attach(&paths, &["v0".to_owned()], &Default::default()).unwrap_err();
    assert!(error.to_string().contains("no dots") && error.to_string().contains("shop.example.com"), "{error}");
    assert!(!lab.paths.pin_root.exists());
}
