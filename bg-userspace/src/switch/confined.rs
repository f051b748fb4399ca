//! Flows that may only be on the idle colour, whose colour a switch has made live.

use bg_common::{Backend, Colour, Flow, Protocol, ServiceRow};
use bg_ebpf::policy::lifetime::{is_confined_to_live, is_open};

use super::store::Stored;
use crate::{
    Error, Instance,
    ending::Ender,
    maps::{Tables, clock},
    pins,
    time::tick,
};

impl Instance {
    /// Resets the connections of testers and of preview addresses that a switch has ended (invariant 6), at both ends. Otherwise they would end with
    /// their next segment, which a client that waits for an answer never sends.
    pub(super) fn end_confined(&self, index: u16, stored: &Stored) -> Result<(), Error> {
        let word = stored.to.word;
        if !stored.changed || word.live() == stored.from.word.live() || !pins::is_in_this_namespace(&self.paths)? {
            return Ok(());
        }
        let tables = Tables::open(&self.paths)?;
        let may_confine =
            |row: &ServiceRow| row.has_testers != 0 || tables.services.info.read(row.service.into()).has_preview != 0;
        if !self.services_of(index)?.iter().any(|(_, row)| may_confine(row)) {
            return Ok(());
        }
        let (row, now) = (self.words.deployments.read(index.into()), tick(clock(&self.paths)?));
        let is_ended = |backend: &Backend, flow: &Flow| {
            let colour = Colour::from_u8(backend.colour);
            backend.deployment == index
                && is_confined_to_live(flow.state, colour, word)
                && is_open(flow, Protocol::Tcp, &row, now)
        };
        Ender::new(&self.paths, &tables)?.end_without_waiting(is_ended)
    }
}
