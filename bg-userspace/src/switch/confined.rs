//! Flows that may only be on the idle colour, whose colour a switch has made live.

use bg_common::{Backend, Colour, DeploymentRow, Flow, LiveWord, Protocol};
use bg_ebpf::policy::lifetime::{is_confined_to_live, is_open};

use super::store::Stored;
use crate::{
    Error, Instance,
    ending::Ender,
    live::Reading,
    maps::{Tables, clock},
    pins,
    running::deployment_rows,
    time::tick,
};

impl Instance {
    /// Resets the connections of testers and of preview addresses that a command has ended by a switch (invariant 6), at both ends. Otherwise they would end
    /// with their next segment, which a client that waits for an answer never sends.
    pub(super) fn end_confined_by(&self, index: u16, stored: &Stored) -> Result<(), Error> {
        let is_switched = stored.changed && stored.to.word.live() != stored.from.word.live();
        self.end_confined_of(|deployment, reading| {
            deployment == index && (is_switched || is_made_by_itself(&stored.from)) || is_made_by_itself(reading)
        })
    }

    /// The same where the data path has switched by itself: by a schedule, a ramp, a deadline or a condition. Each command that looks at the flows
    /// calls it. What cannot be ended now is ended by the next one, or by the flow's next segment.
    pub(crate) fn end_confined(&self) -> Result<(), Error> {
        self.end_confined_of(|_, reading| is_made_by_itself(reading))
    }

    fn end_confined_of(&self, is_meant: impl Fn(u16, &Reading) -> bool) -> Result<(), Error> {
        let now = tick(clock(&self.paths)?);
        let readings = deployment_rows(&self.words).map(|(index, row)| (index, row, self.words.reading(index, now)));
        let meant: Vec<_> = readings.filter(|(index, _, reading)| is_meant(*index, reading)).collect();
        if meant.is_empty() || !pins::is_in_this_namespace(&self.paths)? {
            return Ok(());
        }
        let tables = Tables::open(&self.paths)?;
        let mut confining: Vec<(u16, DeploymentRow, LiveWord)> = Vec::new();
        for (index, row, reading) in meant {
            let may_confine = |service: u16, has_testers: u8| {
                has_testers != 0 || tables.services.info.read(service.into()).has_preview != 0
            };
            if self.services_of(index)?.iter().any(|(_, row)| may_confine(row.service, row.has_testers)) {
                confining.push((index, row, reading.word));
            }
        }
        if confining.is_empty() {
            return Ok(());
        }
        let is_ended = |backend: &Backend, flow: &Flow| {
            let colour = Colour::from_u8(backend.colour);
            confining.iter().any(|(index, row, word)| {
                backend.deployment == *index
                    && is_confined_to_live(flow.state, colour, *word)
                    && is_open(flow, Protocol::Tcp, row, now)
            })
        };
        Ender::new(&self.paths, &tables)?.end_without_waiting(is_ended)
    }
}

/// Whether the data path may have made the live colour of a reading, and no command since.
fn is_made_by_itself(reading: &Reading) -> bool {
    let before = reading.timing.before;
    reading.is_taken_back()
        || (before != LiveWord::default() && (!reading.is_pending() || before.live() != reading.word.live()))
}
