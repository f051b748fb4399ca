//! `bgctl status`: what is live, once or every second.

mod picture;
mod screen;

use std::time::Duration;

use bg_userspace::Instance;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use self::{picture::Picture, screen::Screen};
use crate::{
    args::{Global, Status as Args},
    exit::Outcome,
    output,
};

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<Outcome> {
    let instance = Instance::open(&global.paths())?;
    if args.watch {
        return watch(global, args, &instance);
    }
    let status = instance.status(args.only.deployment.as_deref())?;
    if global.json {
        output::print_json(&status)?;
    } else {
        output::print_styled(&Picture::new(&status, global.verbose).text())?;
    }
    Ok(Outcome::Done)
}

/// Until interrupted, which is how it is meant to end.
fn watch(global: &Global, args: &Args, instance: &Instance) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupted, mut ended) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut screen = Screen::default();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = interrupted.recv() => return Ok(Outcome::Done),
                _ = ended.recv() => return Ok(Outcome::Done),
            }
            let status = instance.status(args.only.deployment.as_deref())?;
            if global.json {
                output::print_json_line(&status)?;
            } else {
                screen.show(Picture::new(&status, global.verbose))?;
            }
        }
    })
}
