//! The live states of the running deployments, to compare them with the state directory.

use super::change::Past;
use crate::{
    history::Moment,
    maps::Words,
    running::{deployment_rows, text},
};

/// A deployment according to the maps.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) now: Moment,
    /// The state that outlives a reboot.
    pub(super) lasting: Moment,
    pub(super) rolled_back: bool,
    pub(super) past: Past,
}

/// All running deployments.
pub(super) fn running(words: &Words) -> Vec<Running> {
    let rows = deployment_rows(words).map(|(index, row)| {
        let name = text(&row.name);
        let (reading, past) = Past::read(words, index, &name);
        let (now, lasting) = (reading.moment(), reading.lasting());
        Running { name, now, lasting, rolled_back: reading.is_rolled_back(), past }
    });
    rows.filter(|running| running.now.generation != 0).collect()
}
