//! Two controllers of one host whose configurations name the same socket.

use crate::setup::Served;
use anyhow::{Context, Result, ensure};
use bg_tests::{Bgctl, Controller, HttpClient};
use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// Proves that a controller with this configuration does not start, and that the socket stays what it was.
fn is_refused(bgctl: &Bgctl, socket: &Path) -> Result<()> {
    let before = std::fs::symlink_metadata(socket)?.ino();
    let mut controller = Controller::launch(bgctl, &["-c", &bgctl.config().display().to_string()])?;
    let ended = controller.wait(Duration::from_secs(20))?.context("it runs beside the other one")?;
    let log = controller.log()?;
    ensure!(ended.code() == Some(1) && log.contains("another controller listens there"), "{ended}: {log}");
    ensure!(std::fs::symlink_metadata(socket)?.ino() == before, "the socket is another one");
    ensure!(HttpClient::unix(socket)?.get("/healthz")?.status == 200);
    Ok(())
}

#[test]
fn the_first_controller_keeps_the_socket_however_the_other_one_starts_and_ends() -> Result<()> {
    let served = Served::with(|_| Ok(String::new()))?;
    let socket = served.socket().to_owned();
    let Served { controller: first, ready, .. } = served;
    // It needs no instance to begin.
    let second = ready.bgctl.another("second")?;
    second.write_config(&std::fs::read_to_string(ready.bgctl.config())?)?;
    is_refused(&second, &socket)?;

    // A killed controller leaves its socket behind, and its successor takes that over.
    first.end(libc::SIGKILL)?;
    ensure!(socket.exists());
    let first = Controller::start(&ready.bgctl)?;
    is_refused(&second, &socket)?;

    // While it is gone, the path is for whoever comes first.
    first.end(libc::SIGKILL)?;
    let other = Controller::start(&second)?;
    is_refused(&ready.bgctl, &socket)?;
    ensure!(other.end(libc::SIGTERM)?.code() == Some(0));
    ensure!(!socket.exists(), "an orderly end takes it away");
    let first = Controller::start(&ready.bgctl)?;
    ensure!(HttpClient::unix(&socket)?.get("/healthz")?.status == 200);
    ensure!(first.end(libc::SIGTERM)?.code() == Some(0));
    Ok(())
}
