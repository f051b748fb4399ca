//! Follows the history: what is appended to the journal becomes an event.
//!
//! What the data path has done by itself is recorded by the next command. Here that is the controller, as soon as the observer sees a
//! change. This part may wait for a slow disk, and no other part waits for it.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{controller::Controller, error::ServeError, event::Event, view::View};
use crate::{
    history::{Action, Record},
    state::State,
};

/// How often it looks whether something was appended.
const LOOK: Duration = Duration::from_millis(250);
/// How much of the journal is read at once. More is left for the next time.
const MOST: u64 = 1 << 20;

/// Follows until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let mut views = controller.views();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tail = Tail::default();
    let mut seen = None;
    loop {
        tokio::select! {
            _ = views.changed() => {}
            _ = ticks.tick() => {}
            () = controller.stopped() => return Ok(()),
        }
        // Asking for what is not recorded takes a process of its own, so it is asked only when there may be something.
        let now = views.borrow_and_update().as_deref().map(generations);
        let has_changed = now.is_some() && now != seen;
        seen = now;
        let at = tail.clone();
        let next = async {
            let before = at.clone();
            let looked = controller.on_instance(None, move |instance| {
                let problems = if has_changed { instance.check_state() } else { Vec::new() };
                Ok((problems, at.next(instance.journal())))
            });
            match looked.await {
                Ok(looked) => Some(looked),
                // While there is no instance, the place is kept: what is recorded as soon as there is one is news.
                Err(_) => {
                    let paths = controller.paths().clone();
                    let read = move || (Vec::new(), before.next(State::of_pins(&paths).journal()));
                    tokio::task::spawn_blocking(read).await.ok()
                }
            }
        };
        // A file system that does not respond must not hold up the end.
        let next = tokio::select! {
            next = next => next,
            () = controller.stopped() => return Ok(()),
        };
        let Some((problems, next)) = next else { continue };
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        match next {
            Ok((after, records)) => {
                tail = after;
                let is_news = !records.is_empty();
                if records.iter().any(may_be_an_apply) {
                    controller.ask_to_reload();
                }
                for record in records {
                    tracing::info!(deployment = record.deployment, action = record.action.name(), who = %record.who, "recorded");
                    controller.publish(Event::of(record));
                }
                if is_news {
                    controller.look();
                }
            }
            Err(error) => tracing::debug!("cannot read the history: {error}"),
        }
    }
}

/// Whoever applies has mostly changed the file. An apply that gives a deployment its last live colour back is recorded as that.
fn may_be_an_apply(record: &Record) -> bool {
    record.action == Action::Apply || (record.action == Action::Recovered && record.from.is_none())
}

/// What changes if there is something to record.
fn generations(view: &View) -> Vec<(String, u32, &'static str)> {
    let deployments = view.status.deployments.iter();
    deployments.map(|found| (found.name.clone(), found.generation, found.phase)).collect()
}

/// How far a journal was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tail {
    /// `None` before the first look: what was recorded before is no news.
    path: Option<PathBuf>,
    offset: u64,
}

impl Tail {
    /// The complete records after this, and the place after them.
    fn next(self, path: PathBuf) -> io::Result<(Self, Vec<Record>)> {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // All that will be in it is new.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { path: Some(path), offset: 0 }, Vec::new()));
            }
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        if self.path.as_ref() != Some(&path) || self.offset > length {
            return Ok((Self { path: Some(path), offset: length }, Vec::new()));
        }
        if self.offset == length {
            return Ok((self, Vec::new()));
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        // The last line may be only half written.
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines = bytes[..end].split(|byte| *byte == b'\n');
        let records = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        // A line longer than that is no record.
        let read = if end == 0 && bytes.len() as u64 == MOST { MOST } else { end as u64 };
        Ok((Self { offset: self.offset + read, ..self }, records))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write as _};

    use bg_common::Colour;

    use super::*;
    use crate::history::{History, Moment};

    #[test]
    fn an_apply_is_one_also_if_it_restores_a_deployment() {
        let moment = Some(Moment { generation: 1, live: Colour::Blue });
        let is = |action, from| may_be_an_apply(&Record { action, from, to: moment, ..Record::of_this_process() });
        assert!(is(Action::Apply, moment) && is(Action::Apply, None) && is(Action::Recovered, None));
        // What nobody has recorded, for example a load balancer's own switch.
        assert!(!is(Action::Recovered, moment) && !is(Action::Switch, moment));
    }

    #[test]
    fn what_is_appended_is_read_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(History::FILE);
        let append = |bytes: &[u8]| {
            OpenOptions::new().create(true).append(true).open(&path).unwrap().write_all(bytes).unwrap();
        };
        let line = |deployment: &str| {
            let record = Record { deployment: deployment.to_owned(), ..Record::of_this_process() };
            [serde_json::to_vec(&record).unwrap(), b"\n".to_vec()].concat()
        };
        let names = |records: Vec<Record>| records.into_iter().map(|record| record.deployment).collect::<Vec<_>>();
        append(&line("before"));
        let (tail, records) = Tail::default().next(path.clone()).unwrap();
        assert!(records.is_empty(), "what was there is no news");
        append(&line("a"));
        let b = line("b");
        append(&b[..9]);
        let (tail, records) = tail.next(path.clone()).unwrap();
        assert_eq!(names(records), ["a"]);
        append(&b[9..]);
        append(b"no record\n");
        append(&line("c"));
        let (tail, records) = tail.next(path.clone()).unwrap();
        assert_eq!(names(records), ["b", "c"]);
        assert!(tail.clone().next(path.clone()).unwrap().1.is_empty());
        std::fs::write(&path, line("anew")).unwrap();
        let (tail, records) = tail.next(path.clone()).unwrap();
        assert!(records.is_empty(), "another file, of which nobody knows what is new");
        std::fs::remove_file(&path).unwrap();
        let (tail, _) = tail.next(path.clone()).unwrap();
        append(&line("first"));
        assert_eq!(names(tail.next(path).unwrap().1), ["first"]);
    }
}
