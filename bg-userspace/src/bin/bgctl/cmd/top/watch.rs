//! Looking at the instance and reading the journal, each on a thread that may wait.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant, SystemTime},
};

use bg_userspace::{
    Error, Instance, Paths, Status,
    history::{History, PATIENCE, Record},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{Event, start};
use crate::output;

/// The time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// How many records of a deployment are remembered.
const RECORDS: usize = 50;

/// What the instance looked like.
#[derive(Debug)]
pub(super) struct Look {
    /// When.
    pub(super) at: Instant,
    /// Its status, or why there is none.
    pub(super) status: Result<Status, String>,
    /// Whether it is another instance than at the last look, whose counters began anew.
    pub(super) is_new: bool,
}

/// The last records of each deployment, newest first, or why they cannot be read.
pub(super) type Memory = Result<HashMap<String, Vec<Record>>, String>;

/// The threads.
pub(super) struct Watch {
    wake: Sender<()>,
}

impl Watch {
    /// Starts looking, at one deployment or all.
    pub(super) fn start(events: &UnboundedSender<Event>, paths: Paths, only: Option<String>) -> Self {
        let (wake, woken) = channel();
        let state_dir = paths.state_dir.clone();
        start(events, move |events| look_on(events, &paths, only.as_deref(), &woken));
        start(events, move |events| read_on(events, &state_dir));
        Self { wake }
    }

    /// Looks now.
    pub(super) fn look(&self) {
        // An error means that the thread has ended. Then this program ends as well.
        let _ = self.wake.send(());
    }
}

fn look_on(events: &UnboundedSender<Event>, paths: &Paths, only: Option<&str>, woken: &Receiver<()>) {
    let mut instance = None;
    loop {
        let look = look(&mut instance, paths, only);
        if events.send(Event::Looked(Box::new(look))).is_err() {
            return;
        }
        if woken.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        // Several wishes are one.
        while woken.try_recv().is_ok() {}
    }
}

/// Looks at the instance that is pinned, even after it was removed and created anew.
fn look(instance: &mut Option<Instance>, paths: &Paths, only: Option<&str>) -> Look {
    let known = instance.take().filter(Instance::is_current);
    let is_new = known.is_none();
    let status = known.map_or_else(|| Instance::open(paths), Ok).and_then(|current| {
        let status = instance.insert(current).status(only)?;
        // While it is being removed, its maps can be read to the end.
        if instance.as_ref().is_some_and(Instance::is_current) { Ok(status) } else { Err(gone(paths)) }
    });
    Look { at: Instant::now(), status: status.map_err(|error| output::advice(&error.to_string()).into_owned()), is_new }
}

fn gone(paths: &Paths) -> Error {
    Error::NoInstance { pin_root: paths.pin_root.clone(), hint: String::new() }
}

/// Reads the journal whenever it has changed.
fn read_on(events: &UnboundedSender<Event>, state_dir: &Path) {
    let mut last = None;
    loop {
        let stamp = stamp_of(state_dir);
        if last.as_ref() != Some(&stamp) {
            let journal = History::new(state_dir).read_within(None, PATIENCE);
            let memory = journal.map(|journal| by_deployment(journal.records)).map_err(|error| error.to_string());
            last = memory.is_ok().then_some(stamp);
            if events.send(Event::Remembered(memory)).is_err() {
                return;
            }
        }
        thread::sleep(PAUSE / 2);
        if events.is_closed() {
            return;
        }
    }
}

/// What changes with each record; `None` if there is no journal.
fn stamp_of(state_dir: &Path) -> Option<(u64, SystemTime)> {
    let journal = fs::metadata(state_dir.join(History::FILE)).ok()?;
    Some((journal.len(), journal.modified().ok()?))
}

fn by_deployment(records: Vec<Record>) -> HashMap<String, Vec<Record>> {
    let mut all: HashMap<String, Vec<Record>> = HashMap::new();
    for record in records.into_iter().rev() {
        let its = all.entry(record.deployment.clone()).or_default();
        if its.len() < RECORDS {
            its.push(record);
        }
    }
    all
}
