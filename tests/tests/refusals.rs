//! What a live instance refuses: each refusal names the place and the remedy, and changes nothing. What is wrong
//! with a configuration alone is refused without privileges; `bg-userspace/tests/cli.rs` has that.

use anyhow::{Context, Result};
use bg_tests::{
    Bgctl, Fabric, Lab, Process, Ready, address,
    config::{DEPLOYMENT, shop, udp_vip},
    load::{Echo, PATIENCE},
    run,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

/// All that a command which is refused must leave as it was: pins, state directory, what the edge's
/// interfaces carry, and what the instance says of itself.
#[derive(Debug, PartialEq, Eq)]
struct State {
    pins: Vec<PathBuf>,
    files: Vec<(PathBuf, Option<Vec<u8>>)>,
    programs: String,
    status: String,
}

impl State {
    fn of(lab: &Lab, bgctl: &Bgctl) -> Result<Self> {
        let mut pins = Vec::new();
        walk(lab.sandbox.pin_root(), &mut pins)?;
        let mut files = Vec::new();
        walk(&lab.sandbox.state_dir(), &mut files)?;
        // A lock is no state, and neither is who has held it last.
        files.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
        let status = bgctl.try_run(&["--json", "status"])?;
        Ok(Self {
            pins,
            files: files.into_iter().map(|path| (path.clone(), fs::read(path).ok())).collect(),
            programs: lab.edge.run("bpftool net show")?,
            status: String::from_utf8([status.stdout, status.stderr].concat())?,
        })
    }
}

fn walk(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        found.push(entry.clone());
        walk(&entry, found)?;
    }
    Ok(())
}

/// Asserts that the command fails with this exit code, and says all these things on standard error.
#[track_caller]
fn assert_says(output: &Output, code: i32, parts: &[&str]) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout {stdout:?}, stderr {stderr:?}");
    assert_eq!(stdout, "", "a refusal has no result");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in {stderr:?}");
    }
}

/// Runs bgctl by way of a wrapper: `wrapper... bgctl arguments...`, on the edge.
fn by_way_of(bgctl: &Bgctl, wrapper: &[&str], arguments: &[&str]) -> Result<Output> {
    bgctl.command_by(wrapper, arguments).output().context("cannot run the wrapper")
}

fn ready() -> Result<Ready> {
    Ready::native("")
}

/// A lab whose edge carries nothing yet.
fn bare() -> Result<(Bgctl, Lab)> {
    let lab = Lab::wire(Fabric::Switch)?;
    Ok((lab.bgctl()?, lab))
}

#[test]
fn an_interface_that_is_not_there_leaves_the_others_alone_too() -> Result<()> {
    let (bgctl, lab) = bare()?;
    let before = State::of(&lab, &bgctl)?;
    let output = bgctl.try_run(&["attach", "front", "nowhere0", "--mode", "native"])?;
    assert_says(&output, 2, &["\"nowhere0\"", "there are:", "back", "front"]);
    assert_eq!(State::of(&lab, &bgctl)?, before);
    assert!(!lab.sandbox.pin_root().exists());
    Ok(())
}

#[test]
fn without_cap_bpf_nothing_is_loaded() -> Result<()> {
    let (bgctl, lab) = bare()?;
    let before = State::of(&lab, &bgctl)?;
    let wrapper = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--"];
    let output = by_way_of(&bgctl, &wrapper, &["attach", "front", "back"])?;
    assert_says(&output, 1, &["CAP_BPF", "run bgctl as root, or grant them"]);
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let program = lab.sandbox.dir().join("bgctl");
    fs::copy(bgctl.program(), &program)?;
    let output = by_way_of(&lab.bgctl_at(program), &nobody, &["attach", "front", "back"])?;
    assert_says(&output, 1, &["CAP_NET_ADMIN", "CAP_BPF", "run bgctl as root, or grant them"]);
    assert_eq!(State::of(&lab, &bgctl)?, before);
    Ok(())
}

#[test]
fn the_doctor_says_if_silent_connections_cannot_be_reset() -> Result<()> {
    let (bgctl, _lab) = bare()?;
    let said = |wrapper: &[&str]| -> Result<String> {
        Ok(String::from_utf8(by_way_of(&bgctl, wrapper, &["doctor", "front"])?.stdout)?)
    };
    let findings = said(&["env"])?;
    assert!(findings.contains("  ok    resets: connections that say nothing can be reset"), "{findings}");
    let findings = said(&["setpriv", "--bounding-set=-net_raw", "--"])?;
    let expected =
        "  warn  resets: no raw socket for IPv4 (Operation not permitted (os error 1)), no raw socket for IPv6 (";
    assert!(findings.contains(expected) && findings.contains("grant CAP_NET_RAW"), "{findings}");
    Ok(())
}

#[test]
fn a_check_says_nothing_of_a_state_directory_that_it_may_not_read() -> Result<()> {
    let (bgctl, lab) = bare()?;
    let program = lab.sandbox.dir().join("bgctl");
    fs::copy(bgctl.program(), &program)?;
    let config = lab.sandbox.dir().join("teed.toml");
    let service = "vip = \"203.0.113.77:80\"\nprotocol = \"tcp\"\nmode = \"tee\"\nblue = [\"10.0.1.11:1\"]\ngreen = [\"10.0.2.11:1\"]\n";
    fs::write(&config, format!("[[deployments.shop.services]]\nname = \"web\"\n{service}"))?;
    let said = |wrapper: &[&str]| -> Result<String> {
        let output =
            by_way_of(&lab.bgctl_at(program.clone()), wrapper, &["check", "-c", &config.display().to_string()])?;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    fs::create_dir_all(lab.sandbox.state_dir())?;
    fs::set_permissions(lab.sandbox.state_dir(), fs::Permissions::from_mode(0o700))?;
    assert!(said(&["env"])?.contains("no apply has chosen listeners yet"), "nothing is kept");
    assert_eq!(said(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"])?, "");
    Ok(())
}

#[test]
fn without_privileges_a_live_instance_cannot_be_switched() -> Result<()> {
    let ready = ready()?;
    let before = State::of(&ready.lab, &ready.bgctl)?;
    let wrapper = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--"];
    let config = ready.bgctl.write_config(&shop(&ready.lab, "nat", "drain_timeout = \"1m\""))?;
    for arguments in [&["switch", DEPLOYMENT][..], &["rollback", DEPLOYMENT], &["apply", "-c", &config]] {
        let output = by_way_of(&ready.bgctl, &wrapper, arguments)?;
        assert_says(&output, 1, &["CAP_BPF", "run bgctl as root"]);
    }
    assert_eq!(State::of(&ready.lab, &ready.bgctl)?, before);
    Ok(())
}

#[test]
fn an_interface_with_somebody_elses_xdp_program_is_left_to_it() -> Result<()> {
    let ready = ready()?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    bgctl.run(&["detach", "front"])?;
    // Any XDP program will do for a stranger's.
    let stranger = lab.sandbox.pin_root().join("programs/read_clock");
    // Not by `ip -n`, which hides what is pinned.
    lab.edge.run(&format!("ip link set front xdp pinned {}", stranger.display()))?;
    let before = State::of(lab, bgctl)?;
    for mode in ["native", "generic"] {
        let output = bgctl.try_run(&["attach", "front", "--mode", mode])?;
        assert_says(
            &output,
            1,
            &["front already carries the XDP program \"read_clock\"", "ip link set dev front xdp off", "--mode tc"],
        );
        assert_eq!(State::of(lab, bgctl)?, before);
    }
    // And the remedies are some.
    bgctl.run(&["attach", "front", "--mode", "tc"])?;
    bgctl.run(&["detach", "front"])?;
    lab.edge.ip("link set dev front xdp off")?;
    bgctl.run(&["attach", "front", "--mode", "native"])?;
    Ok(())
}

#[test]
fn pins_of_another_version_are_neither_used_nor_harmed() -> Result<()> {
    let ready = ready()?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let meta = lab.sandbox.pin_root().join("maps/meta");
    run(&format!(
        "bpftool map update pinned {} key hex 00 00 00 00 value hex 63 00 00 00 e8 03 00 00 {}",
        meta.display(),
        "00 ".repeat(size_of::<bg_common::Meta>() - 8).trim_end()
    ))?;
    let before = State::of(lab, bgctl)?;
    let config = bgctl.write_config(&shop(lab, "nat", ""))?;
    let pin_root = lab.sandbox.pin_root().display().to_string();
    for arguments in [
        &["status"][..],
        &["switch", DEPLOYMENT],
        &["rollback", DEPLOYMENT],
        &["flows"],
        &["plan", "-c", &config],
        &["apply", "-c", &config],
        &["attach", "front", "back"],
    ] {
        let output = bgctl.try_run(arguments)?;
        assert_says(&output, 1, &[&pin_root, "ABI version 99", "uses version", "bgctl detach --all"]);
        assert_eq!(State::of(lab, bgctl)?, before, "after {arguments:?}");
    }
    // What it did, it does.
    Echo::open(&lab.client, udp_vip(address::VIP_V4))?.ask("still here?")?;
    bgctl.run(&["detach", "--all"])?;
    bgctl.run(&["attach", "front", "back", "--mode", "native"])?;
    bgctl.run(&["apply", "-c", &config])?;
    Echo::open(&lab.client, udp_vip(address::VIP_V4))?.ask("back again?")?;
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_written_stops_no_change() -> Result<()> {
    let ready = ready()?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let state_dir = lab.sandbox.state_dir().display().to_string();
    let read_only =
        format!("mount --bind {state_dir} {state_dir} && mount -o remount,bind,ro {state_dir} && exec \"$@\"");
    let wrapper = ["unshare", "--mount", "sh", "-c", &read_only, "sh"];
    let config = bgctl.write_config(&shop(lab, "nat", "drain_timeout = \"1m\""))?;
    for (arguments, done) in [
        (&["switch", DEPLOYMENT][..], "the switch is done, green is live at generation 2"),
        (&["apply", "-c", &config], "the apply is done"),
        (&["attach", "front"], "the attach is done"),
    ] {
        let output = by_way_of(bgctl, &wrapper, arguments)?;
        assert_says(&output, 1, &[done, "could not be recorded", &state_dir, "Read-only file system"]);
    }
    assert_eq!(bgctl.live(DEPLOYMENT)?, "green");
    assert_eq!(bgctl.try_run(&["plan", "-c", &config])?.status.code(), Some(0));
    // To look is no change.
    assert!(by_way_of(bgctl, &wrapper, &["status"])?.status.success());
    let output = by_way_of(bgctl, &wrapper, &["detach", "--all"])?;
    assert_says(&output, 1, &["all pins are removed", "could not be recorded", "Read-only file system"]);
    assert!(!lab.sandbox.pin_root().exists());
    Ok(())
}

#[test]
fn a_second_bgctl_is_told_who_the_first_is_and_can_switch_all_the_same() -> Result<()> {
    let ready = ready()?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let lock = lab.sandbox.pin_root().to_owned();
    let config = bgctl.write_config(&shop(lab, "nat", "drain_timeout = \"1m\""))?;
    let holder = Process::spawn(Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "60"]))?;
    let held = |lock: &Path| -> Result<bool> {
        Ok(!Command::new("flock").arg("--nonblock").arg(lock).arg("true").status()?.success())
    };
    while !held(&lock)? {
        thread::sleep(Duration::from_millis(5));
    }
    let before = State::of(lab, bgctl)?;
    for arguments in [
        &["apply", "-c", &config][..],
        &["attach", "front", "--wait", "200ms"],
        &["detach", "front", "--wait", "200ms"],
        &["detach", "--all", "--wait", "200ms"],
    ] {
        let output = bgctl.try_run(arguments)?;
        assert_says(&output, 4, &["another bgctl", &lock.display().to_string(), "wait for it, or end it"]);
        assert_eq!(State::of(lab, bgctl)?, before, "after {arguments:?}");
    }
    bgctl.run(&["switch", DEPLOYMENT, "green"])?;
    assert_eq!(bgctl.live(DEPLOYMENT)?, "green");
    drop(holder);
    bgctl.run(&["apply", "-c", &config])?;

    // The lock of the switch itself is held for so short that it is worth waiting for.
    let lock = lab.sandbox.pin_root().join("maps");
    let holder = Process::spawn(Command::new("flock").arg("--no-fork").arg(&lock).args(["sleep", "60"]))?;
    while !held(&lock)? {
        thread::sleep(Duration::from_millis(5));
    }
    let mut switch = Process::spawn(&mut bgctl.command(&["switch", DEPLOYMENT, "blue"]))?;
    assert!(switch.wait(Duration::from_secs(1))?.is_none(), "the lock is not waited for");
    drop(holder);
    let status = switch.wait(PATIENCE)?.context("the switch does not end")?;
    assert!(status.success() && bgctl.live(DEPLOYMENT)? == "blue", "{status}");
    Ok(())
}

#[test]
fn a_flow_table_does_not_change_its_size_in_place() -> Result<()> {
    let (bgctl, lab) = bare()?;
    bgctl.run(&["attach", "front", "back", "--mode", "native", "--flows", "5000"])?;
    bgctl.apply(&shop(&lab, "nat", ""))?;
    let before = State::of(&lab, &bgctl)?;
    let output = bgctl.try_run(&["attach", "front", "back", "--flows", "9000"])?;
    assert_says(&output, 1, &["room for 8192 flows", "--flows asks for 9000", "bgctl detach --all"]);
    assert_eq!(State::of(&lab, &bgctl)?, before);
    // Sizes are powers of two.
    bgctl.run(&["attach", "front", "back", "--flows", "6000"])?;
    bgctl.run(&["attach", "front", "back"])?;
    Ok(())
}

#[test]
fn a_switch_from_another_generation_is_refused() -> Result<()> {
    let ready = ready()?;
    let before = State::of(&ready.lab, &ready.bgctl)?;
    let output = ready.bgctl.try_run(&["switch", DEPLOYMENT, "--if-generation", "7"])?;
    assert_says(
        &output,
        3,
        &["\"shop\" is at generation 1", "not at 7 as --if-generation expects", "bgctl history shop"],
    );
    let output = ready.bgctl.try_run(&["rollback", DEPLOYMENT])?;
    assert_says(&output, 3, &["\"shop\" has always been blue", "bgctl switch shop"]);
    let output = ready.bgctl.try_run(&["switch", "shpo"])?;
    assert_says(&output, 2, &["\"shpo\"", "did you mean \"shop\""]);
    assert_eq!(State::of(&ready.lab, &ready.bgctl)?, before);
    ready.bgctl.run(&["switch", DEPLOYMENT, "--if-generation", "1"])?;
    Ok(())
}

#[test]
fn a_switch_that_nobody_would_see_needs_force() -> Result<()> {
    let ready = ready()?;
    ready.bgctl.run(&["detach", "front", "back"])?;
    let before = State::of(&ready.lab, &ready.bgctl)?;
    let output = ready.bgctl.try_run(&["switch", DEPLOYMENT])?;
    assert_says(&output, 3, &["no interface is attached", "bgctl attach IFACE", "--force"]);
    assert_eq!(State::of(&ready.lab, &ready.bgctl)?, before);
    ready.bgctl.run(&["switch", DEPLOYMENT, "--force"])?;
    Ok(())
}

#[test]
fn a_kernel_that_is_too_old_is_named() -> Result<()> {
    let (bgctl, lab) = bare()?;
    let before = State::of(&lab, &bgctl)?;
    let release = lab.sandbox.dir().join("osrelease");
    fs::write(&release, "5.10.0-28-amd64\n")?;
    let script = format!("mount --bind {} /proc/sys/kernel/osrelease && exec \"$@\"", release.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let output = by_way_of(&bgctl, &wrapper, &["attach", "front", "back"])?;
    assert_says(&output, 1, &["kernel 5.10.0-28-amd64 is too old", "Linux 5.15 or later", "install a newer kernel"]);
    assert_eq!(State::of(&lab, &bgctl)?, before);
    let findings = String::from_utf8(by_way_of(&bgctl, &wrapper, &["doctor"])?.stdout)?;
    let expected =
        "  fail  kernel: 5.10.0-28-amd64 is too old, 5.15 or later is needed\n        -> install a newer kernel";
    assert!(findings.contains(expected), "{findings}");
    Ok(())
}

#[test]
fn pins_have_to_be_on_a_bpf_file_system() -> Result<()> {
    let (bgctl, lab) = bare()?;
    let pin_root = lab.sandbox.dir().join("pins").display().to_string();
    let mut command = lab.edge.command(bgctl.program());
    command.args(["--pin-root", &pin_root, "--state-dir", &lab.sandbox.state_dir().display().to_string()]);
    let output = command.args(["attach", "front"]).output()?;
    assert_says(&output, 1, &[&pin_root, "not on a BPF file system", "mount -t bpf"]);
    assert!(!Path::new(&pin_root).exists());
    Ok(())
}
