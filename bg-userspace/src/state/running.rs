//! The live states of the running deployments, to compare them with the state directory.

use super::change::Past;
use crate::{
    history::{Moment, Scheduled},
    maps::Words,
    running::{deployment_rows, text},
    time::moment_of,
};

/// A deployment according to the maps.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) now: Moment,
    /// The state that outlives a reboot.
    pub(super) lasting: Moment,
    /// What becomes of that by itself.
    pub(super) scheduled: Option<Scheduled>,
    pub(super) rolled_back: bool,
    pub(super) is_unconfirmed: bool,
    pub(super) past: Past,
}

/// All running deployments.
pub(super) fn running(words: &Words) -> Vec<Running> {
    let rows = deployment_rows(words).map(|(index, row)| {
        let name = text(&row.name);
        let (reading, past) = Past::read(words, index, &name);
        let (now, lasting) = (reading.moment(), reading.lasting());
        let scheduled = reading.scheduled().and_then(|(moment, instant, clock)| {
            let at = moment_of(instant, clock)?;
            Some(Scheduled { moment, at })
        });
        let (rolled_back, is_unconfirmed) = (reading.is_rolled_back(), reading.is_unconfirmed());
        Running { name, now, lasting, scheduled, rolled_back, is_unconfirmed, past }
    });
    rows.filter(|running| running.now.generation != 0).collect()
}
