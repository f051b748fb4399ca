//! `bgctl status`: print the status, once or every second.

mod picture;
mod screen;

use std::time::Duration;

use bg_userspace::{Instance, Status};
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
        return watch(global, args, instance);
    }
    let status = status(&instance, args)?;
    if global.json {
        output::print_json(&status)?;
    } else {
        output::print_styled(&Picture::new(&status, global.verbose).text())?;
    }
    Ok(Outcome::Done)
}

fn status(instance: &Instance, args: &Args) -> Result<Status, bg_userspace::Error> {
    let mut status = instance.status(args.only.deployment.as_deref())?;
    for remedy in status.interfaces.iter_mut().filter_map(|interface| interface.remedy.as_mut()) {
        *remedy = output::advice(remedy).into_owned();
    }
    Ok(status)
}

/// Prints the status until interrupted, which is the normal end.
fn watch(global: &Global, args: &Args, instance: Instance) -> anyhow::Result<Outcome> {
    let mut watched = Watched { global, args, instance: Some(instance) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupted, mut ended) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut screen = Screen::default();
        let mut is_first = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = interrupted.recv() => return Ok(Outcome::Done),
                _ = ended.recv() => return Ok(Outcome::Done),
            }
            match watched.status() {
                Ok(status) if global.json => output::print_json_line(&status)?,
                Ok(status) => screen.show(Picture::new(&status, global.verbose))?,
                // At the first time this is an error. Later, somebody is changing the instance, and the old picture must not look current.
                Err(error) if is_first => return Err(error.into()),
                Err(error) => screen.say(&format!("{error}"))?,
            }
            is_first = false;
        }
    })
}

/// The watched instance: the one that is pinned, even after it was removed and created anew.
struct Watched<'a> {
    global: &'a Global,
    args: &'a Args,
    instance: Option<Instance>,
}

impl Watched<'_> {
    fn status(&mut self) -> Result<Status, bg_userspace::Error> {
        let current = self.instance.take().filter(Instance::is_current);
        let instance = current.map_or_else(|| Instance::open(&self.global.paths()), Ok)?;
        status(self.instance.insert(instance), self.args)
    }
}
