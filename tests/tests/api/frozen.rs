//! A freeze that the controller was asked for, and that outlives it.

use crate::setup::Served;
use anyhow::{Result, ensure};
use bg_tests::{Controller, address, config::DEPLOYMENT, config::udp_vip, load::Echo};
use serde_json::json;
use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The processes that this one has forked: they have its command line, which names the lab's own files.
fn forks(of: u32) -> Result<Vec<i32>> {
    let line = |id: u32| fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(ids.filter(|id| *id != of && line(*id) == line(of)).map(u32::cast_signed).collect())
}

/// Systemd kills all that the unit has started, also the process that would have ended the freeze.
#[test]
fn what_is_held_goes_on_in_time_although_everybody_was_killed_who_knew_of_it() -> Result<()> {
    const FREEZE: Duration = Duration::from_secs(4);
    let served = Served::local()?;
    let path = format!("/v1/deployments/{DEPLOYMENT}/freeze");
    let begin = Instant::now();
    served.client()?.post(&path, &json!({ "max": format!("{FREEZE:?}") }))?.done()?;
    let held = served.ready.lab.client.enter(|| {
        let echo = Echo::open_from(SocketAddr::new(address::CLIENT_V4, 0), udp_vip(address::VIP_V4))?;
        echo.send("held")?;
        anyhow::Ok(echo)
    })??;
    let Served { controller, ready, .. } = served;
    let started = forks(controller.id())?;
    ensure!(!started.is_empty(), "nobody would have ended the freeze");
    for fork in &started {
        // SAFETY: `kill` takes no pointers.
        unsafe { libc::kill(*fork, libc::SIGKILL) };
    }
    controller.end(libc::SIGKILL)?;
    let _next = Controller::start(&ready.bgctl)?;
    held.set_patience(Duration::from_secs(30))?;
    held.receive("held")?;
    let took = begin.elapsed();
    println!("{} were killed with it, and the answer came {took:?} after the freeze", started.len());
    ensure!(took >= FREEZE - Duration::from_millis(50), "nobody had to wait: {took:?}");
    ensure!(took < FREEZE + Duration::from_secs(5), "nobody has looked at the end of the freeze: {took:?}");
    ready.neighbour_is_undisturbed()
}
