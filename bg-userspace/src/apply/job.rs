//! Writing one service into the maps.

use std::{collections::HashMap, net::SocketAddr};

use bg_common::{
    Backend, BackendInfo, Be16, Colour, Family, Identity, Mode, NextHop, Role, ServiceInfo, ServiceKey, ServiceRow,
    TableSpan, Vip,
};

use super::{fill::Fill, work::Work};
use crate::{
    Error, Room,
    config::{BackendSpec, Service},
    health::{self, HealthWord},
    maglev,
    plan::{Action, DeploymentDiff, ServiceDiff, Slot},
    running::{UNSETTLED, padded, service_key, table, vip_row},
    tunnels,
};

/// The writes for one service, and their order.
#[derive(Debug)]
pub(super) struct Job {
    is_new: bool,
    info: ServiceInfo,
    vip: Vip,
    preview: Option<Vip>,
    /// The address that the row of the preview address has now.
    old_preview: ServiceKey,
    row: ServiceRow,
    /// The rows of new backends, with their slots.
    new_backends: Vec<(u32, Backend)>,
    /// Slots whose weight changes, or that go: their weight in the table is not what their row says.
    unsettle: Vec<u32>,
    /// Slots and the weights that they have once the rows are published.
    settle: Vec<(u32, u32)>,
    retired_slots: Vec<u32>,
    retired_spans: Vec<TableSpan>,
    /// The new tables.
    pub(super) fills: Vec<Fill>,
}

impl Job {
    /// Allocates room for the service. Frees all of it again if there is not enough.
    pub(super) fn prepare(
        work: &mut Work<'_>,
        deployment: &DeploymentDiff<'_>,
        deployment_index: u16,
        diff: &ServiceDiff<'_>,
    ) -> Result<Self, Error> {
        let ServiceDiff { wanted: service, current, actions } = diff;
        let missing = |what, needed, free, capacity| Error::NoRoom { what, needed, free, capacity };
        let fresh = actions
            .iter()
            .filter(|action| matches!(action, Action::AddBackend { .. } | Action::AddListener { .. }))
            .count();
        if work.slots.free() < fresh {
            return Err(missing(Room::Backends, fresh, work.slots.free(), work.tables.backends.rows()));
        }
        let mut spans = [None; 2];
        for (span, colour) in spans.iter_mut().zip(Colour::ALL) {
            if diff.backend_actions(colour).next().is_none() {
                continue;
            }
            let weights: Vec<u32> = service.targets(colour).iter().map(|spec| spec.weight).collect();
            let len = maglev::table_len(&weights);
            *span = work.spans.take(len);
            if span.is_none() {
                let free = work.spans.longest() as usize;
                spans.into_iter().flatten().for_each(|span| work.spans.give(span));
                let capacity = 2 * work.maglev.rows();
                return Err(missing(Room::TableEntriesInOnePiece, len as usize, free, capacity));
            }
        }
        let index = match current {
            Some(current) => current.index,
            None => match work.services.take() {
                Some(index) => index as u16,
                None => {
                    spans.into_iter().flatten().for_each(|span| work.spans.give(span));
                    return Err(missing(Room::Services, 1, 0, work.tables.services.info.rows()));
                }
            },
        };

        let info = ServiceInfo {
            name: padded(&service.name),
            deployment: deployment_index,
            in_use: 1,
            mode: service.mode as u8,
            has_preview: service.preview.is_some().into(),
            proxy_protocol: if service.tee.proxy_protocol { 2 } else { 0 },
            compares: service.tee.compare.into(),
            ..tunnels::info_of(service.mode, &service.encap)
        };
        let salt = work.salts.take(service, *current, index);
        let vip = |address| Vip { key: service_key(address, service.protocol), salt, ..Vip::default() };
        let mut job = Self {
            is_new: current.is_none(),
            info,
            vip: Vip { is_mirrored: service.is_mirrored.into(), ..vip(service.vip) },
            preview: service.preview.map(vip),
            old_preview: current.map_or_else(ServiceKey::default, |current| current.preview_row),
            row: ServiceRow {
                service: index,
                deployment: deployment_index,
                role: Role::Vip as u8,
                has_testers: u8::from(!deployment.wanted.testers.is_empty()),
                reserved: 0,
                tables: current.map_or_else(Default::default, |current| current.row.tables),
            },
            new_backends: Vec::new(),
            unsettle: Vec::new(),
            settle: Vec::new(),
            retired_slots: Vec::new(),
            retired_spans: Vec::new(),
            fills: Vec::new(),
        };
        for (colour, span) in Colour::ALL.into_iter().zip(spans) {
            if let Some(span) = span {
                job.change_colour(work, diff, colour, span);
            }
        }
        Ok(job)
    }

    /// Takes in the actions for the backends of a colour, whose new table gets `span`.
    fn change_colour(&mut self, work: &mut Work<'_>, diff: &ServiceDiff<'_>, colour: Colour, span: TableSpan) {
        let service = diff.wanted;
        let running = || {
            diff.current.into_iter().flat_map(|current| {
                [&current.backends, &current.listeners].into_iter().flat_map(|of| &of[colour as usize])
            })
        };
        let mut slots: HashMap<u32, SocketAddr> = running().map(|backend| (backend.slot, backend.address)).collect();
        for action in diff.backend_actions(colour) {
            match *action {
                Action::AddBackend { address, weight, .. } => {
                    slots.extend(self.add(work, service, colour, BackendSpec { address, weight }, service.mode));
                }
                Action::AddListener { address, .. } => {
                    let listener = BackendSpec { address, weight: 1 };
                    slots.extend(self.add(work, service, colour, listener, Mode::Local));
                }
                Action::SetWeight { slot: Slot(slot), to, .. } => {
                    self.unsettle.push(slot);
                    self.settle.push((slot, to));
                }
                Action::RemoveBackend { slot: Slot(slot), .. } | Action::RemoveListener { slot: Slot(slot), .. } => {
                    self.unsettle.push(slot);
                    self.retired_slots.push(slot);
                    slots.remove(&slot);
                }
                _ => {}
            }
        }
        self.retired_spans.extend(diff.current.map(|current| table(&current.row, colour)));
        self.row.tables[colour as usize] = span;
        let slots: HashMap<SocketAddr, u32> = slots.into_iter().map(|(slot, address)| (address, slot)).collect();
        let healths: HashMap<u32, HealthWord> = running().map(|backend| (backend.slot, backend.health)).collect();
        let health = |address| slots.get(address).and_then(|slot| healths.get(slot)).copied().unwrap_or_default();
        let specs = service.targets(colour);
        self.fills.push(Fill {
            span,
            ids: specs.iter().map(|spec| maglev::identity(spec.address)).collect(),
            weights: specs.iter().map(|spec| spec.weight).collect(),
            shares: specs.iter().map(|spec| health(&spec.address).share()).collect(),
            is_refused: health::is_refused(specs.iter().map(|spec| (spec.weight, health(&spec.address)))),
            slots: specs.iter().filter_map(|spec| slots.get(&spec.address)).copied().collect(),
        });
    }

    /// Takes a slot for a backend or listener. There are enough, because they have been counted.
    fn add(
        &mut self,
        work: &mut Work<'_>,
        service: &Service,
        colour: Colour,
        BackendSpec { address, weight }: BackendSpec,
        mode: Mode,
    ) -> Option<(u32, SocketAddr)> {
        let slot = work.slots.take()?;
        let epoch = work.tables.backends.read(slot).identity.epoch.wrapping_add(1);
        // A row that is in no list tells where it is.
        let next = if mode.is_direct() { slot as u32 + 1 } else { 0 };
        let row = Backend { mode: mode as u8, next, ..self.backend_row(service, colour, address, epoch) };
        self.new_backends.push((slot as u32, row));
        self.settle.push((slot as u32, weight));
        Some((slot as u32, address))
    }

    fn backend_row(&self, service: &Service, colour: Colour, address: SocketAddr, epoch: u32) -> Backend {
        Backend {
            identity: Identity { epoch, in_use: 1 },
            addr: address.ip().into(),
            port: Be16::new(address.port()),
            family: Family::of(address.ip()) as u8,
            mode: service.mode as u8,
            service: self.row.service,
            colour: colour as u8,
            protocol: service.protocol as u8 | if service.mode.is_direct() { Backend::DIRECT } else { 0 },
            next_hop: NextHop::default(),
            next: 0,
            deployment: self.row.deployment,
            salt: self.vip.salt,
        }
    }

    /// Whether the row of the preview address still has another address, which has to end first.
    pub(super) fn changes_preview(&self) -> bool {
        self.old_preview != ServiceKey::default() && Some(self.old_preview) != self.preview.map(|vip| vip.key)
    }

    /// The preview address that is removed.
    pub(super) const fn old_preview(&self) -> ServiceKey {
        self.old_preview
    }

    /// The row of the preview address in `vips`.
    pub(super) fn preview_row(&self) -> usize {
        vip_row(self.row.service, Role::Preview)
    }

    /// Writes everything that can be written before the service's rows are replaced.
    pub(super) fn write_rows(&self, work: &mut Work<'_>) -> Result<(), Error> {
        let service = self.row.service;
        if self.is_new {
            for colour in Colour::ALL {
                work.traffic.clear(2 * u32::from(service) + colour as u32)?;
            }
            work.tables.services.info.write(service.into(), &self.info);
            // A backend that exists already has its address and is in a list.
            work.tables.services.vips.write(vip_row(service, Role::Vip), &self.vip);
        }
        if let Some(preview) = self.preview.filter(|_| self.old_preview == ServiceKey::default()) {
            work.tables.services.vips.write(self.preview_row(), &preview);
        }
        for (slot, backend) in &self.new_backends {
            let unknown = HealthWord::UNKNOWN.0;
            work.tables.backend_info.write(*slot as usize, &BackendInfo { weight: UNSETTLED, health: unknown });
            if let Some(tunnel) = tunnels::row(backend, &self.info) {
                work.tables.tunnels.write(*slot as usize, &tunnel);
            }
            work.tables.backends.write(*slot as usize, backend);
        }
        for slot in &self.unsettle {
            set_weight(work, *slot, UNSETTLED);
        }
        Ok(())
    }

    /// Replaces the service's rows, after the tables are written. The row of a preview address that still has to end is not replaced.
    pub(super) fn publish(&self, work: &mut Work<'_>) -> Result<(), Error> {
        work.write_row(self.vip.key, self.row)?;
        // One half-word, which changes at once. A new service has it already.
        let mirror = self.vip.is_mirrored;
        work.tables.services.vips.update(vip_row(self.row.service, Role::Vip), |vip| vip.is_mirrored = mirror);
        if self.changes_preview() { Ok(()) } else { self.publish_preview(work) }
    }

    fn publish_preview(&self, work: &mut Work<'_>) -> Result<(), Error> {
        let row = ServiceRow { role: Role::Preview as u8, ..self.row };
        self.preview.map_or(Ok(()), |preview| work.write_row(preview.key, row))
    }

    /// Writes the new preview address, or none, into its row. The old one has ended.
    pub(super) fn replace_preview(&self, work: &mut Work<'_>) -> Result<(), Error> {
        work.tables.services.vips.write(self.preview_row(), &self.preview.unwrap_or_default());
        self.publish_preview(work)
    }

    /// Settles the weights, after the rows are published.
    pub(super) fn settle(self, work: &mut Work<'_>) {
        for (slot, weight) in self.settle {
            set_weight(work, slot, weight);
        }
        work.tables.services.info.write(self.row.service.into(), &self.info);
        work.retired.slots.extend(self.retired_slots);
        work.retired.spans.extend(self.retired_spans);
    }
}

/// Leaves the backend's health as it is.
fn set_weight(work: &Work<'_>, slot: u32, weight: u32) {
    work.tables.backend_info.update(slot as usize, |info| info.weight = weight);
}
