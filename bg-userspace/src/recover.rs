//! Bringing journal and state file up to a switch that the kernel knows and they do not: its process was
//! killed between the two, or a load balancer has flipped the word itself.

use crate::{
    Error, Paths,
    history::{Action, History, LastLive, Moment, Record},
    live::moment,
    lock::Lock,
    maps::Words,
    running::{deployment_rows, text},
};

/// Records what has not been recorded, and will not be by its doer.
pub(crate) fn recover(paths: &Paths, words: &Words) -> Result<(), Error> {
    if news(paths, words)?.is_empty() {
        return Ok(());
    }
    let news = match Lock::nobody_records(paths) {
        Some(_lock) => news(paths, words)?,
        // A switch is in the act, and records itself.
        None => return Ok(()),
    };
    let _lock = Lock::history(paths)?;
    let history = History::new(paths.state_dir());
    for News { name, now } in news {
        let known = LastLive::load(paths.state_dir())?.deployments.get(&name).copied();
        if !is_news(known, now) {
            continue;
        }
        // The process may have been killed between journal and state file.
        let journal = history.read(Some(&name))?;
        if journal.records.last().and_then(|record| record.to) != Some(now) {
            let reason = "found in the kernel; who did it has not recorded it, and if it was a bgctl that was killed, \
                          its switch is done: running it again without a colour would undo it";
            history.append(&Record::now(&name, Action::Recovered, known, Some(now), Some(reason)))?;
        }
        LastLive::update(paths.state_dir(), |deployments| _ = deployments.insert(name, now))?;
    }
    Ok(())
}

/// A deployment's state that the state directory does not know.
struct News {
    name: String,
    now: Moment,
}

fn news(paths: &Paths, words: &Words) -> Result<Vec<News>, Error> {
    let last = LastLive::load(paths.state_dir())?;
    let states = deployment_rows(words)
        .map(|(index, row)| News { name: text(&row.name), now: moment(words.live.read(index.into())) });
    Ok(states.filter(|state| is_news(last.deployments.get(&state.name).copied(), state.now)).collect())
}

fn is_news(known: Option<Moment>, now: Moment) -> bool {
    now.generation != 0 && known.is_none_or(|known| known.generation < now.generation)
}
