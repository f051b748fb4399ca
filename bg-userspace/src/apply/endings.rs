//! What becomes of the flows of backends that are removed.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use bg_common::{Backend, FlowBackend, FlowKey4, FlowKey6, LiveFlags, Mode, Protocol, Role, ServiceKey};
use bg_ebpf::policy::lifetime;

use super::work::Work;
use crate::{
    Error,
    ending::Ender,
    flow_table::FlowTable,
    flows::endpoint_of,
    maps::{Tables, clock, flows4, flows6},
    running::vip_row,
    time::tick,
};

impl Work<'_> {
    /// Has the flows of backends that are about to be removed go on at the rows that follow theirs: the same backend in another mode, if it replies to
    /// clients directly in both. To both ends these modes are alike, and the row alone tells where a connection is: by its hash it might go to
    /// another backend or colour by now. No program opens flows at these backends any more.
    pub(super) fn hand_over(&mut self, slots: &[u32]) -> Result<(), Error> {
        /// After this many rounds, a row that is still being written was left by a writer that stopped.
        const PASSES: usize = 8;
        let gone: HashSet<u32> = slots.iter().copied().collect();
        let direct =
            (0..self.tables.backends.rows() as u32).map(|slot| (slot, self.tables.backends.read(slot as usize)));
        let direct = direct.filter(|(_, row)| row.identity.in_use != 0 && row.is_direct());
        let place = |row: &Backend| (row.service, row.colour, endpoint_of(row));
        let (old, new): (Vec<_>, Vec<_>) = direct.partition(|(slot, _)| gone.contains(slot));
        let name = |slot: u32, row: &Backend| FlowBackend::new(slot, row.identity.epoch);
        let new: HashMap<_, _> = new.iter().map(|(slot, row)| (place(row), name(*slot, row))).collect();
        let follows: HashMap<_, _> =
            old.iter().filter_map(|(slot, row)| Some((name(*slot, row), *new.get(&place(row))?))).collect();
        if follows.is_empty() {
            return Ok(());
        }
        let (v4, v6) = (flows4(self.paths)?, flows6(self.paths)?);
        let follows = |backend| follows.get(&backend).copied();
        for _ in 0..PASSES {
            let more4 = FlowTable::<FlowKey4>::new(v4.all()).repoint(follows);
            let more6 = FlowTable::<FlowKey6>::new(v6.all()).repoint(follows);
            if !more4 && !more6 {
                break;
            }
            // Programs that have found a flow at its old backend need that until they end.
            self.wait()?;
        }
        Ok(())
    }

    /// Resets the TCP connections of backends that are about to be removed, at both ends, while the data path still knows them. A
    /// connection that can go on, at the same backend of another service or colour that has taken over its virtual address, is left alone. It cannot
    /// go on in a mode whose replies take another way. Where replies do not pass this host, nobody here hears that a backend refuses it: so the colour
    /// must be the one to which all segments without a flow go.
    pub(super) fn end_connections(&self, slots: &[u32]) -> Result<(), Error> {
        if slots.is_empty() {
            return Ok(());
        }
        let slots: HashSet<u32> = slots.iter().copied().collect();
        let used = (0..self.tables.backends.rows() as u32).filter(|slot| !slots.contains(slot));
        let used = used.map(|slot| self.tables.backends.read(slot as usize)).filter(|row| row.identity.in_use != 0);
        let now = tick(clock(self.paths)?);
        let is_live = |row: &Backend| {
            let reading = self.words.reading(row.deployment, now);
            let is_steady = !reading.stored.flags().has(LiveFlags::TIMED);
            let live = reading.word.live();
            !row.is_direct()
                || (is_steady && reading.word.target_share() == live.full_share() && row.colour == live as u8)
        };
        let stay: HashSet<_> = used.filter(is_live).map(|row| name(&self.tables, &row)).collect();
        let is_gone =
            |slot: u32, backend: &Backend| slots.contains(&slot) && !stay.contains(&name(&self.tables, backend));
        let is_any_tcp = slots.iter().any(|slot| {
            let row = self.tables.backends.read(*slot as usize);
            row.protocol() == Some(Protocol::Tcp) && is_gone(*slot, &row)
        });
        if !is_any_tcp {
            return Ok(());
        }
        let ender = Ender::new(self.paths, &self.tables)?;
        ender.end(
            |backend, flow| {
                let row = self.words.deployments.read(backend.deployment.into());
                is_gone(flow.backend.slot(), backend) && lifetime::is_open(flow, Protocol::Tcp, &row, now)
            },
            1,
        )?;
        Ok(())
    }
}

/// A backend, by the virtual address that its clients send to, by its own, and by the way of its replies.
fn name(tables: &Tables, backend: &Backend) -> (ServiceKey, Option<SocketAddr>, Option<Mode>) {
    // Modes whose backends reply to clients directly are alike to both ends.
    let way = Mode::from_u8(backend.mode).filter(|mode| !mode.is_direct());
    (tables.services.vips.read(vip_row(backend.service, Role::Vip)).key, endpoint_of(backend), way)
}
