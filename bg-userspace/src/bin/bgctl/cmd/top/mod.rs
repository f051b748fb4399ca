//! `bgctl top`: a live view of all deployments on the whole terminal, with keys for the changes that cannot wait.
//!
//! Threads look at the instance, read the journal and make changes ([`watch`], [`change`]). This one shows what they send, and is never
//! kept waiting by them: how old the picture is can always be seen.

mod change;
mod model;
mod rates;
mod view;
mod watch;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::Duration,
};

use anstream::{AutoStream, ColorChoice};
use bg_userspace::{Error, Instance};
use ratatui::{DefaultTerminal, crossterm::event};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::MissedTickBehavior,
};

use self::{
    model::{Effect, Model},
    watch::{Look, Memory, Watch},
};
use crate::{
    args::{Global, Top as Args},
    exit::Outcome,
    output,
};

/// What the threads send.
#[derive(Debug)]
enum Event {
    /// A key, or another size of the terminal.
    Input(event::Event),
    /// The terminal is gone.
    InputEnded,
    /// What the instance looks like now.
    Looked(Box<Look>),
    /// The last records of the journal.
    Remembered(Memory),
    /// What a change would do.
    Rehearsed(u64, change::Rehearsal),
    /// A change was made, or refused.
    Made(u64, change::Made),
    /// A thread has panicked.
    Panicked,
}

/// Tells the main thread if this thread panics, because nobody waits for it.
struct Witness(UnboundedSender<Event>);

impl Drop for Witness {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Event::Panicked);
        }
    }
}

/// Starts a thread that sends events.
fn start(events: &UnboundedSender<Event>, work: impl FnOnce(&UnboundedSender<Event>) + Send + 'static) {
    let witness = Witness(events.clone());
    thread::spawn(move || work(&witness.0));
}

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<Outcome> {
    if global.json || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        output::message(
            "top shows a picture and reads keys, so it needs a terminal for both; `bgctl status --watch --json` is for programs",
        );
        return Ok(Outcome::Usage);
    }
    let only = args.only.deployment.as_deref();
    match Instance::open(&global.paths()).and_then(|instance| instance.status(only)) {
        // It is waited for.
        Ok(_) | Err(Error::NoInstance { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let is_coloured = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
    let model = Model::new(global.paths(), is_coloured);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (events, received) = unbounded_channel();
    // First of all, so that the message of a panic in a thread can be read.
    let screen = Screen::enter()?;
    let watch = Watch::start(&events, global.paths(), only.map(str::to_owned));
    start(&events, read_input);
    runtime.block_on(show(screen, model, &events, received, &watch))
}

/// The terminal, in raw mode and on its alternate screen. It is restored when this is dropped, and before the message of a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal was closed, errors do not matter.
        let _ = ratatui::try_restore();
    }
}

fn read_input(events: &UnboundedSender<Event>) {
    loop {
        let event = event::read().map_or(Event::InputEnded, Event::Input);
        let is_last = matches!(event, Event::InputEnded);
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

/// Shows the model until somebody wants to leave.
async fn show(
    mut screen: Screen,
    mut model: Model,
    events: &UnboundedSender<Event>,
    mut received: UnboundedReceiver<Event>,
    watch: &Watch,
) -> anyhow::Result<Outcome> {
    /// Countdowns and the age of the picture move even if no event comes.
    const FRAME: Duration = Duration::from_millis(250);
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [Ok(ended), Ok(interrupted), Ok(hung_up)] = &mut signals else {
        anyhow::bail!("cannot wait for signals");
    };
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.0.draw(|frame| view::draw(frame, &mut model))?;
        let event = tokio::select! {
            event = received.recv() => event,
            _ = frames.tick() => None,
            _ = ended.recv() => return Ok(Outcome::Done),
            _ = interrupted.recv() => return Ok(Outcome::Done),
            _ = hung_up.recv() => return Ok(Outcome::Done),
        };
        // All that has come, so that a burst of events is one picture.
        let mut next = event;
        while let Some(event) = next {
            match model.take(event) {
                Effect::None => {}
                Effect::Leave => return Ok(Outcome::Done),
                Effect::Break(why) => anyhow::bail!(why),
                Effect::Start(task) => start(events, move |events| task.run(events)),
                Effect::Look => watch.look(),
            }
            next = received.try_recv().ok();
        }
    }
}
