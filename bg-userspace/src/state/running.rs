//! The live states of the running deployments, to compare them with the state directory.

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
    pub(super) rolled_back: bool,
}

/// All running deployments.
pub(super) fn running(words: &Words) -> Vec<Running> {
    let rows = deployment_rows(words).map(|(index, row)| {
        let reading = words.reading(index, 0);
        Running { name: text(&row.name), now: reading.lasting(), rolled_back: reading.is_rolled_back() }
    });
    rows.filter(|running| running.now.generation != 0).collect()
}
