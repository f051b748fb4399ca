//! Bringing journal and state file up to a switch that the kernel knows and they do not: its process was
//! killed between the two, or a load balancer has flipped the word itself.

use crate::{
    Error, Paths,
    history::{Action, History, LastLive, Record},
    live::moment,
    lock::Lock,
    maps::Words,
    running::{deployment_rows, text},
};

/// Records what has not been recorded.
pub(crate) fn recover(paths: &Paths, words: &Words) -> Result<(), Error> {
    let last = LastLive::load(paths.state_dir())?;
    let news = || {
        deployment_rows(words).filter_map(|(index, row)| {
            let (name, now) = (text(&row.name), moment(words.live.read(index.into())));
            let known = last.deployments.get(&name).copied();
            let is_news = now.generation != 0 && known.is_none_or(|known| known.generation < now.generation);
            is_news.then_some((name, known, now))
        })
    };
    if news().next().is_none() {
        return Ok(());
    }
    let _lock = Lock::history(paths)?;
    let history = History::new(paths.state_dir());
    for (name, known, now) in news() {
        // The process may have been killed between journal and state file.
        let journal = history.read(Some(&name))?;
        if journal.records.last().and_then(|record| record.to) != Some(now) {
            let reason = "found in the kernel; whoever did it has not recorded it";
            history.append(&Record::now(&name, Action::Recovered, known, Some(now), Some(reason)))?;
        }
        LastLive::update(paths.state_dir(), |deployments| _ = deployments.insert(name, now))?;
    }
    Ok(())
}
