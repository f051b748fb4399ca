//! An instance belongs to one network namespace, and its pins to a file system that outlives the command.

use std::process::{Command, Output};

use bg_userspace::{
    AttachMode, Error, ErrorClass, Target, detach,
    doctor::{self, Level},
};

use crate::{
    lab::{Lab, config},
    lifecycle::{link, pins},
};

/// Another namespace for the test's thread.
fn leave() {
    // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

#[test]
fn an_instance_is_neither_attached_nor_applied_to_from_another_network_namespace() {
    for mode in [AttachMode::Tc, AttachMode::Native] {
        let lab = Lab::new();
        lab.attach("v0", mode).unwrap();
        lab.instance().apply(&config("shop", &[(1, 1)], &[(1, 1)])).unwrap();
        let links = || pins(&lab).iter().map(|name| link(&lab, name)).collect::<Vec<_>>();
        let before = links();
        let first = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        leave();
        // As the first ones were made, so that their indexes are the same.
        lab.ip("link add v0 type veth peer name v1");
        let detached = detach(&lab.paths, &Target::Interfaces(vec!["v0".to_owned()]));
        let next = config("shop", &[(1, 1), (2, 1)], &[(1, 1)]);
        let applied = lab.instance().apply(&next);
        for error in [lab.attach("v0", mode).unwrap_err(), detached.unwrap_err(), applied.unwrap_err()] {
            assert!(matches!(error, Error::OtherNamespace { .. }) && error.class() == ErrorClass::Refused, "{error}");
            assert!(error.to_string().contains("--pin-root"), "{error}");
        }
        assert_eq!(links(), before, "nothing has been changed");
        assert!(!lab.instance().plan(&next).unwrap().is_empty(), "nothing has been changed");
        // Nothing can be seen from here of what has happened to its interfaces.
        assert!(lab.instance().lost_interfaces().unwrap().is_empty());
        let report = doctor::examine(&lab.paths, &[], None).unwrap();
        assert!(report.findings.iter().any(|it| it.check == "namespace" && it.level == Level::Fail), "{report:?}");
        // A switch is one word, wherever it is stored from.
        lab.instance().switch("shop", &bg_userspace::SwitchRequest::default()).unwrap();

        let own = lab.beside();
        own.attach("v0", mode).unwrap();
        drop(first);
        detach(&lab.paths, &Target::All).unwrap();
        assert!(!lab.paths.pin_root.exists());
    }
}

/// Runs bgctl after a command line, with mounts of its own.
fn with_own_mounts(lab: &Lab, first: &str, words: &[&str]) -> Output {
    let script = format!("{first} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_bgctl")]);
    command.arg("--pin-root").arg(&lab.paths.pin_root).arg("--state-dir").arg(&lab.paths.state_dir);
    command.args(words).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `ip netns exec` mounts a fresh /sys, in which no BPF file system is mounted.
#[test]
fn pins_that_would_go_with_the_command_are_not_made() {
    let lab = Lab::new();
    let hide = "mount -t sysfs sysfs /sys";
    for (first, words) in [
        (hide, &["attach", "v0"][..]),
        ("mount -t sysfs sysfs /sys && mount -t bpf bpf /sys/fs/bpf", &["attach", "v0"]),
    ] {
        let output = with_own_mounts(&lab, first, words);
        assert_eq!(output.status.code(), Some(1), "{first}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("ip netns exec") && text.contains("nsenter --net="), "{text}");
    }
    lab.attach("v0", AttachMode::Tc).unwrap();
    let output = with_own_mounts(&lab, hide, &["status"]);
    assert!(stderr(&output).contains("no instance at") && stderr(&output).contains("nsenter --net="), "{output:?}");
    // Mounts of one's own that show the host's BPF file system hide nothing.
    let output = with_own_mounts(&lab, "true", &["attach", "v1", "--mode", "tc"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(lab.instance().status(None).unwrap().interfaces.len(), 2);
}

#[test]
fn who_insists_may_pin_to_a_mount_of_his_own() {
    let lab = Lab::new();
    let output = with_own_mounts(&lab, "mount -t bpf bpf /sys/fs/bpf", &["attach", "v0", "--force"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!lab.paths.pin_root.exists(), "it has gone with its mounts");
}
