//! The controller as a citizen of its system: it comes and goes while packets pass, and there is only one.

use anyhow::{Context, Result};
use bg_tests::{Controller, Ready, config::DEPLOYMENT};
use std::{
    os::unix::net::UnixDatagram,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(5);

fn ready() -> Result<Ready> {
    Ready::native("")
}

#[test]
fn the_data_path_stays_as_it_is_however_the_controller_ends() -> Result<()> {
    let ready = ready()?;
    let before = ready.bgctl.json(&["status"])?["deployments"][1]["generation"].clone();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
        let controller = Controller::start(&ready.bgctl)?;
        ready.bgctl.run(&["switch", DEPLOYMENT])?;
        let live = ready.bgctl.live(DEPLOYMENT)?;
        let ended = controller.end(signal)?;
        assert_eq!(ended.code(), (signal != libc::SIGKILL).then_some(0), "{signal}: {ended}");
        assert_eq!(ready.bgctl.live(DEPLOYMENT)?, live);
        ready.neighbour_is_undisturbed()?;
    }
    let after = ready.bgctl.json(&["status"])?["deployments"][1]["generation"].clone();
    assert_eq!(after.as_u64(), before.as_u64().map(|before| before + 3), "the switches, and nothing else");
    Ok(())
}

#[test]
fn a_second_controller_of_an_instance_is_refused_until_the_first_one_is_gone() -> Result<()> {
    let ready = ready()?;
    let config = ready.bgctl.config().display().to_string();
    // From another network namespace, its checks would find other backends.
    let mut elsewhere = Command::new("timeout");
    elsewhere.args(["5", "unshare", "--net"]).arg(ready.bgctl.program());
    elsewhere.arg("--pin-root").arg(ready.lab.sandbox.pin_root());
    elsewhere.arg("--state-dir").arg(ready.lab.sandbox.state_dir()).args(["serve", "-c", &config]);
    let refused = elsewhere.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && refused.status.code() != Some(124), "{:?}: {said}", refused.status);
    assert!(said.contains("namespace"), "{said}");

    let first = Controller::start(&ready.bgctl)?;
    let refused = ready.bgctl.try_run(&["serve", "-c", &config])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("process {}: ", first.id())), "{said}");
    // The lock does not outlive its holder, whatever ends that.
    first.end(libc::SIGKILL)?;
    Controller::start(&ready.bgctl)?.end(libc::SIGTERM)?;
    // Neither does it keep the instance from being removed, nor its successor from being served.
    let controller = Controller::start(&ready.bgctl)?;
    ready.bgctl.run(&["detach", "--all"])?;
    assert!(!ready.lab.sandbox.pin_root().exists(), "everything is removed, the controller's lock too");
    ready.bgctl.run(&[&["attach", "--mode", "native"], ready.lab.interfaces.as_slice()].concat())?;
    let taken = || ready.lab.sandbox.pin_root().join("controller").exists();
    let end = Instant::now() + SOON;
    while !taken() {
        assert!(Instant::now() < end, "the controller has not found the new instance: {}", controller.log()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = ready.bgctl.try_run(&["serve", "-c", &config])?;
    assert_eq!(refused.status.code(), Some(3), "it is the controller of the new instance");
    Ok(())
}

#[test]
fn a_controller_waits_for_an_instance_and_sees_each_change() -> Result<()> {
    let ready = ready()?;
    ready.bgctl.run(&["detach", "--all"])?;
    let mut controller = Controller::start(&ready.bgctl)?;
    controller.wait_for("no instance at")?;
    ready.bgctl.run(&[&["attach", "--mode", "native"], ready.lab.interfaces.as_slice()].concat())?;
    ready.bgctl.run(&["apply", "-c", &ready.bgctl.config().display().to_string()])?;
    ready.bgctl.run(&["switch", DEPLOYMENT, "--confirm-within", "300ms"])?;
    // The data path takes it back. Nobody but the controller is there to record that.
    controller.wait_for("\"action\":\"expired\"")?;
    let log = controller.log()?;
    let told = |action: &str| log.matches(&format!("\"action\":\"{action}\"")).count();
    assert_eq!((told("switch"), told("expired")), (1, 1), "{log}");
    let switched: serde_json::Value = serde_json::from_str(
        log.lines().find(|line| line.contains("\"action\":\"switch\"")).context("the switch was told")?,
    )?;
    assert_eq!(switched["deployment"], DEPLOYMENT);
    assert_eq!(switched["level"], "INFO");
    Ok(())
}

#[test]
fn an_invalid_configuration_is_refused_at_the_start_and_ignored_later() -> Result<()> {
    let ready = ready()?;
    let config = std::fs::read_to_string(ready.bgctl.config())?;
    let mut controller = Controller::start(&ready.bgctl)?;
    ready.bgctl.write_config(&config.replace("initial", "inital"))?;
    controller.reload()?;
    let log = controller.log()?;
    assert!(log.contains("the one before stays in force") && log.contains("inital"), "{log}");
    let refused = ready.bgctl.try_run(&["serve", "-c", &ready.bgctl.config().display().to_string()])?;
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with(&ready.bgctl.config().display().to_string()));
    ready.bgctl.write_config(&config)?;
    controller.reload()?;
    assert!(controller.log()?.contains("the configuration was read again"));
    assert_eq!(controller.end(libc::SIGTERM)?.code(), Some(0));
    Ok(())
}

/// What systemd would be told.
#[test]
fn a_supervisor_is_told_of_readiness_life_reload_and_end() -> Result<()> {
    let ready = ready()?;
    let path = ready.lab.sandbox.dir().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(SOON))?;
    let mut command = ready.bgctl.command(&["serve", "-c", &ready.bgctl.config().display().to_string()]);
    const WATCHDOG: Duration = Duration::from_secs(1);
    let micros = WATCHDOG.as_micros().to_string();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", micros).stderr(std::process::Stdio::null());
    let mut process = bg_tests::Process::spawn(&mut command)?;
    let hear = |wanted: &str| -> Result<()> {
        let mut buffer = [0; 256];
        loop {
            let length = socket.recv(&mut buffer).with_context(|| format!("{wanted} was not told"))?;
            if String::from_utf8_lossy(&buffer[..length]).contains(wanted) {
                return Ok(());
            }
        }
    };
    hear("READY=1")?;
    for _ in 0..4 {
        let began = Instant::now();
        hear("WATCHDOG=1")?;
        // It is told twice in this time.
        assert!(
            began.elapsed() < WATCHDOG * 3 / 4,
            "a watchdog would have killed a controller that is somewhat slower"
        );
    }
    let signal = |signal| {
        // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(process.id().cast_signed(), signal) }, 0);
    };
    signal(libc::SIGHUP);
    hear("RELOADING=1")?;
    hear("READY=1")?;
    signal(libc::SIGTERM);
    hear("STOPPING=1")?;
    assert_eq!(process.wait(SOON)?.as_ref().and_then(ExitStatus::code), Some(0));
    Ok(())
}

#[test]
fn a_file_system_that_does_not_respond_holds_up_neither_life_nor_end() -> Result<()> {
    let ready = ready()?;
    let config = ready.bgctl.config().to_owned();
    let mut controller = Controller::start(&ready.bgctl)?;
    // Opening a FIFO that nobody writes to takes for ever.
    std::fs::rename(&config, config.with_extension("kept"))?;
    bg_tests::run(&format!("mkfifo {}", config.display()))?;
    controller.signal(libc::SIGHUP)?;
    let end = Instant::now() + SOON;
    while !waits_for_a_file(controller.id())? {
        assert!(Instant::now() < end, "it does not read the file");
        std::thread::sleep(Duration::from_millis(5));
    }
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    controller.wait_for("\"action\":\"switch\"")?;
    let ended = controller.end(libc::SIGTERM)?;
    assert_eq!(ended.code(), Some(0));
    Ok(())
}

/// Whether a thread of a process waits for a file to be opened.
fn waits_for_a_file(process: u32) -> Result<bool> {
    let opens = format!("{} ", libc::SYS_openat);
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // It may have ended.
        let call = std::fs::read_to_string(thread?.path().join("syscall")).unwrap_or_default();
        if call.starts_with(&opens) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn an_apply_has_the_configuration_read_again() -> Result<()> {
    let ready = ready()?;
    let config = std::fs::read_to_string(ready.bgctl.config())?;
    let mut controller = Controller::start(&ready.bgctl)?;
    ready.bgctl.apply(&config.replacen("drain_timeout = \"1h\"", "drain_timeout = \"2h\"", 1))?;
    controller.wait_for("the configuration was read again")?;
    Ok(())
}

/// A deployment gets its last live colour back then, and the history says that instead.
#[test]
fn an_apply_that_restores_everything_has_the_configuration_read_again_too() -> Result<()> {
    let ready = ready()?;
    let config = std::fs::read_to_string(ready.bgctl.config())?;
    let mut controller = Controller::start(&ready.bgctl)?;
    ready.bgctl.run(&["detach", "--all"])?;
    ready.bgctl.run(&[&["attach", "--mode", "native"], ready.lab.interfaces.as_slice()].concat())?;
    ready.bgctl.apply(&config.replacen("drain_timeout = \"1h\"", "drain_timeout = \"2h\"", 1))?;
    controller.wait_for("the configuration was read again")?;
    let log = controller.log()?;
    let told = |action: &str| log.contains(&format!("\"action\":\"{action}\""));
    assert!(told("recovered") && !told("apply"), "{log}");
    Ok(())
}

#[test]
fn a_controller_says_if_silent_connections_cannot_be_reset() -> Result<()> {
    let ready = ready()?;
    let config = ready.bgctl.config().display().to_string();
    let says = |wrapper: &[&str]| -> Result<String> {
        let mut controller = Controller::launch_by(&ready.bgctl, wrapper, &["-c", &config])?;
        controller.wait_for("the controller is ready")?;
        let log = controller.log()?;
        assert_eq!(controller.end(libc::SIGTERM)?.code(), Some(0));
        Ok(log)
    };
    let log = says(&["setpriv", "--bounding-set=-net_raw", "--"])?;
    let expected = "no raw socket for IPv4 (Operation not permitted (os error 1)), no raw socket for IPv6 (";
    let line = log.lines().find(|line| line.contains(expected)).with_context(|| log.clone())?;
    assert!(line.contains("WARN") && line.contains("Grant CAP_NET_RAW"), "{line}");
    let log = says(&[])?;
    assert!(!log.contains("raw socket"), "{log}");
    Ok(())
}
