//! Writing one service into the maps.

use std::{collections::HashMap, net::SocketAddr};

use bg_common::{
    Backend, BackendInfo, Be16, Colour, Family, Identity, NextHop, Role, ServiceInfo, ServiceKey, ServiceRow,
    TableSpan, Vip,
};

use super::{fill::Fill, work::Work};
use crate::{
    Error, Room,
    config::{BackendSpec, Deployment, Service},
    maglev,
    running::{RunningBackend, RunningService, UNSETTLED, padded, service_key, table, vip_row},
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
        deployment: &Deployment,
        deployment_index: u16,
        service: &Service,
        current: Option<&RunningService>,
    ) -> Result<Self, Error> {
        let missing = |what, needed, free, capacity| Error::NoRoom { what, needed, free, capacity };
        let fresh: usize = Colour::ALL.into_iter().map(|colour| new_backends(service, colour, current)).sum();
        if work.slots.free() < fresh {
            return Err(missing(Room::Backends, fresh, work.slots.free(), work.tables.backends.rows()));
        }
        let lengths = Colour::ALL.map(|colour| new_table_len(service, colour, current));
        let mut spans = [None; 2];
        for (span, len) in spans.iter_mut().zip(lengths) {
            let Some(len) = len else { continue };
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
            reserved: [0; 3],
        };
        let salt = work.salts.take(service, current, index);
        let vip = |address| Vip { key: service_key(address, service.protocol), salt, ..Vip::default() };
        let mut job = Self {
            is_new: current.is_none(),
            info,
            vip: vip(service.vip),
            preview: service.preview.map(vip),
            old_preview: current.map_or_else(ServiceKey::default, |current| current.preview_row),
            row: ServiceRow {
                service: index,
                deployment: deployment_index,
                role: Role::Vip as u8,
                has_testers: u8::from(!deployment.testers.is_empty()),
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
                job.change_colour(work, service, colour, current, span);
            }
        }
        Ok(job)
    }

    /// Plans a new table for the colour in `span`.
    fn change_colour(
        &mut self,
        work: &mut Work<'_>,
        service: &Service,
        colour: Colour,
        current: Option<&RunningService>,
        span: TableSpan,
    ) {
        let mut running = by_address(service, colour, current);
        let mut slots = Vec::new();
        for spec in service.backends(colour) {
            let slot = match running.remove(&spec.address) {
                Some(backend) => {
                    if backend.weight != spec.weight {
                        self.unsettle.push(backend.slot);
                        self.settle.push((backend.slot, spec.weight));
                    }
                    backend.slot
                }
                None => {
                    // There are enough, because they have been counted.
                    let Some(slot) = work.slots.take() else { continue };
                    self.settle.push((slot as u32, spec.weight));
                    let epoch = work.tables.backends.read(slot).identity.epoch.wrapping_add(1);
                    self.new_backends.push((slot as u32, self.backend_row(service, colour, spec, epoch)));
                    slot as u32
                }
            };
            slots.push(slot);
        }
        let stays: std::collections::HashSet<u32> = slots.iter().copied().collect();
        if let Some(current) = current {
            let gone = current.backends[colour as usize].iter().map(|backend| backend.slot);
            let gone: Vec<u32> = gone.filter(|slot| !stays.contains(slot)).collect();
            self.unsettle.extend(&gone);
            self.retired_slots.extend(gone);
            self.retired_spans.push(table(&current.row, colour));
        }
        self.row.tables[colour as usize] = span;
        let specs = service.backends(colour);
        self.fills.push(Fill {
            span,
            ids: specs.iter().map(|spec| maglev::identity(spec.address)).collect(),
            weights: specs.iter().map(|spec| spec.weight).collect(),
            slots,
        });
    }

    fn backend_row(&self, service: &Service, colour: Colour, spec: &BackendSpec, epoch: u32) -> Backend {
        Backend {
            identity: Identity { epoch, in_use: 1 },
            addr: spec.address.ip().into(),
            port: Be16::new(spec.address.port()),
            family: Family::of(spec.address.ip()) as u8,
            mode: service.mode as u8,
            service: self.row.service,
            colour: colour as u8,
            protocol: service.protocol as u8,
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
            set_weight(work, *slot, UNSETTLED);
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

fn set_weight(work: &Work<'_>, slot: u32, weight: u32) {
    work.tables.backend_info.write(slot as usize, &BackendInfo { weight, reserved: 0 });
}

/// The running backends of the colour that can stay, because they have the service's mode.
fn by_address<'a>(
    service: &Service,
    colour: Colour,
    current: Option<&'a RunningService>,
) -> HashMap<SocketAddr, &'a RunningBackend> {
    let running = current.map_or(&[][..], |current| &current.backends[colour as usize]);
    running.iter().filter(|backend| backend.mode == service.mode).map(|backend| (backend.address, backend)).collect()
}

/// The number of slots that the colour needs.
fn new_backends(service: &Service, colour: Colour, current: Option<&RunningService>) -> usize {
    let running = by_address(service, colour, current);
    service.backends(colour).iter().filter(|spec| !running.contains_key(&spec.address)).count()
}

/// The length of the table that the colour needs; `None` if the present table is right.
fn new_table_len(service: &Service, colour: Colour, current: Option<&RunningService>) -> Option<u32> {
    let specs = service.backends(colour);
    let running = by_address(service, colour, current);
    let is_right = |spec: &BackendSpec| running.get(&spec.address).is_some_and(|backend| backend.weight == spec.weight);
    let as_many = current.is_some_and(|current| current.backends[colour as usize].len() == specs.len());
    if as_many && specs.iter().all(is_right) {
        return None;
    }
    let weights: Vec<u32> = specs.iter().map(|spec| spec.weight).collect();
    Some(maglev::table_len(&weights))
}
