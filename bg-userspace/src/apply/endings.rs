//! Ending the connections of backends that are removed.

use std::{collections::HashSet, net::SocketAddr};

use bg_common::{Backend, Mode, Protocol, Role, ServiceKey};
use bg_ebpf::policy::lifetime;

use super::work::Work;
use crate::{
    Error,
    ending::Ender,
    flows::endpoint_of,
    maps::{Tables, clock},
    running::vip_row,
    time::tick,
};

impl Work<'_> {
    /// Resets the TCP connections of backends that are about to be removed, at both ends, while the data path still knows them. A
    /// connection that can go on, at the same backend of another service or colour that has taken over its virtual address, is left alone. It cannot
    /// go on in a mode whose replies take another way, and where replies do not pass this host, the colour must be the live one, to which a segment
    /// without a flow goes.
    pub(super) fn end_connections(&self, slots: &[u32]) -> Result<(), Error> {
        if slots.is_empty() {
            return Ok(());
        }
        let slots: HashSet<u32> = slots.iter().copied().collect();
        let used = (0..self.tables.backends.rows() as u32).filter(|slot| !slots.contains(slot));
        let used = used.map(|slot| self.tables.backends.read(slot as usize)).filter(|row| row.identity.in_use != 0);
        let now = tick(clock(self.paths)?);
        let is_live = |row: &Backend| {
            let live = self.words.reading(row.deployment, now).word.live();
            Mode::from_u8(row.mode).is_none_or(|mode| !mode.is_direct()) || row.colour == live as u8
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
