//! The running state, read back from the maps into the terms of a configuration.
//!
//! The `services` map is the truth as far as the `vips` array agrees. If a row's address is not the one that
//! its service has in `vips`, a killed call has left the row. The same is true of the row of a preview address whose
//! service has no VIP any more. A service, backend or table to which no other row refers is left over too,
//! and is free as soon as no program can use it any more.

#[cfg(feature = "serve")]
use std::{collections::BTreeMap, sync::atomic::Ordering};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use aya::maps::lpm_trie::Key;
use bg_common::{
    Backend, BackendInfo, Colour, DeploymentRow, Family, LiveWord, MAX_DEPLOYMENTS, Mode, Protocol, Role, ServiceInfo,
    ServiceKey, ServiceRow, TableSpan, TesterKey, Vip,
};

#[cfg(feature = "serve")]
use crate::maps::Services;
use crate::{
    Error,
    config::{Encap, Prefix, Tee},
    health::HealthWord,
    history::Moment,
    live::Reading,
    maps::{Tables, Words},
    tunnels,
};
#[cfg(feature = "serve")]
use bg_common::Identity;

/// The weight of a backend while its service's table is being replaced, so that the work of a killed apply
/// never looks complete.
pub(crate) const UNSETTLED: u32 = u32::MAX;

/// The whole running state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    /// By name.
    pub(crate) deployments: HashMap<String, RunningDeployment>,
    /// The services to which a row of the `services` map refers.
    pub(crate) services: Vec<RunningService>,
    /// The rows of the `services` map.
    pub(crate) published: HashMap<ServiceKey, ServiceRow>,
    /// What is in use.
    pub(crate) used: Used,
    /// What killed calls have left.
    pub(crate) left_over: LeftOver,
    /// The names of deployments by index.
    names: HashMap<u16, String>,
    /// The positions in `services` by virtual address.
    positions: HashMap<ServiceKey, usize>,
}

/// The used indexes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    pub(crate) deployments: HashSet<u16>,
    pub(crate) services: HashSet<u16>,
    pub(crate) slots: Vec<bool>,
    pub(crate) spans: Vec<TableSpan>,
}

/// Rows of the `services` map that belong to no service, and services and slots to which nothing refers.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOver {
    pub(crate) rows: Vec<ServiceKey>,
    pub(crate) services: Vec<u16>,
    pub(crate) slots: Vec<u32>,
}

impl LeftOver {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.services.is_empty() && self.slots.is_empty()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RunningDeployment {
    pub(crate) index: u16,
    pub(crate) row: DeploymentRow,
    /// The live word in force, with the number of the last generation.
    pub(crate) word: LiveWord,
    pub(crate) reading: Reading,
    pub(crate) testers: Vec<Prefix>,
    /// Whether a killed apply may have changed the testers without updating open flows.
    pub(crate) is_unsettled: bool,
}

impl RunningDeployment {
    /// The state for the journal.
    pub(crate) fn moment(&self) -> Moment {
        self.reading.moment()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RunningService {
    pub(crate) index: u16,
    pub(crate) name: String,
    /// Index of its deployment.
    pub(crate) deployment: u16,
    pub(crate) mode: Mode,
    pub(crate) vip: ServiceKey,
    pub(crate) row: ServiceRow,
    pub(crate) preview: Option<(ServiceKey, ServiceRow)>,
    /// The address in the row of `vips`. If it is not `preview`, a killed call has left it, and flows may refer to the row.
    pub(crate) preview_row: ServiceKey,
    /// See [`bg_common::Vip::salt`].
    pub(crate) salt: u16,
    /// See [`bg_common::Vip::is_mirrored`].
    pub(crate) is_mirrored: bool,
    /// By colour. In mode `tee` those to which the listeners connect.
    pub(crate) backends: [Vec<RunningBackend>; 2],
    /// By colour: the listeners of mode `tee`, to which the tables lead. There is one, unless an apply was killed.
    pub(crate) listeners: [Vec<RunningBackend>; 2],
    /// Its settings in mode `tee`. The listeners are told only if both colours have one.
    pub(crate) tee: Tee,
    /// Its settings in the modes `ipip` and `gue`.
    pub(crate) encap: Encap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunningBackend {
    pub(crate) slot: u32,
    pub(crate) address: SocketAddr,
    pub(crate) mode: Mode,
    /// As configured.
    pub(crate) weight: u32,
    pub(crate) health: HealthWord,
}

/// A service as packets go by it, and no more of it than is needed to judge whether it would have backends.
#[cfg(feature = "serve")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceInMaps {
    pub(crate) name: String,
    /// By colour. In mode `tee` those to which the listeners connect.
    pub(crate) backends: [Vec<RunningBackend>; 2],
}

#[cfg(feature = "serve")]
impl ServiceInMaps {
    /// Those of one deployment. There may be many others, and whoever asks may hold a lock.
    pub(crate) fn of(tables: &Tables, deployment: u16) -> Vec<Self> {
        let Services { info, vips, rows, .. } = &tables.services;
        let mut found: BTreeMap<u16, (Mode, Self)> = BTreeMap::new();
        for index in 0..info.rows() as u16 {
            let info = info.read(index.into());
            // One that an apply is just adding or removing has no row, so no packet goes there.
            if info.in_use != 0
                && info.deployment == deployment
                && rows.get(&vips.read(vip_row(index, Role::Vip)).key, 0).is_ok_and(|row| row.service == index)
            {
                found.insert(index, (mode_of(&info), Self { name: text(&info.name), backends: Default::default() }));
            }
        }
        for slot in 0..tables.backends.rows() as u32 {
            let word = tables.backends.words(slot as usize)[0].load(Ordering::Relaxed);
            if bytemuck::cast::<u64, Identity>(word).in_use == 0 {
                continue;
            }
            let row = tables.backends.read(slot as usize);
            let Some((mode, service)) = found.get_mut(&row.service) else { continue };
            let Some(backend) = RunningBackend::of(tables, slot, &row) else { continue };
            if !backend.is_listener(*mode) {
                service.backends[usize::from(row.colour & 1)].push(backend);
            }
        }
        found.into_values().map(|(_, service)| service).collect()
    }
}

impl RunningBackend {
    /// That of a slot with this row.
    fn of(tables: &Tables, slot: u32, row: &Backend) -> Option<Self> {
        let BackendInfo { weight, health } = tables.backend_info.read(slot as usize);
        Some(Self {
            slot,
            address: SocketAddr::new(row.addr.to_ip(Family::from_u8(row.family)?), row.port.host()),
            mode: Mode::from_u8(row.mode).unwrap_or(Mode::Nat),
            weight,
            health: HealthWord(health),
        })
    }

    /// Whether it is a listener of a service of this mode.
    fn is_listener(&self, of: Mode) -> bool {
        of == Mode::Tee && self.mode == Mode::Local
    }
}

impl RunningService {
    /// Its rows of the `services` map.
    pub(crate) fn rows(&self) -> impl Iterator<Item = ServiceRow> {
        std::iter::once(self.row).chain(self.preview.map(|(_, row)| row))
    }

    /// The slots of its backends.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.targets().map(|backend| backend.slot)
    }

    /// What has a slot: the backends and listeners of both colours.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &RunningBackend> {
        self.backends.iter().chain(&self.listeners).flatten()
    }
}

impl Running {
    /// Reads everything.
    pub(crate) fn read(words: &Words, tables: &Tables) -> Result<Self, Error> {
        let mut running = Self { published: tables.services.published()?, ..Self::default() };
        running.read_deployments(words, tables)?;
        running.read_services(tables);
        running.read_backends(tables);
        Ok(running)
    }

    /// Index of the deployment of this name.
    pub(crate) fn deployment(&self, name: &str) -> Result<u16, Error> {
        let found = self.deployments.get(name).map(|deployment| deployment.index);
        found.ok_or_else(|| Error::UnknownDeployment {
            name: name.to_owned(),
            existing: self.deployments.keys().cloned().collect(),
        })
    }

    /// A deployment's services.
    pub(crate) fn services_of(&self, deployment: u16) -> impl Iterator<Item = &RunningService> {
        self.services.iter().filter(move |service| service.deployment == deployment)
    }

    /// The service of a virtual address.
    pub(crate) fn by_vip(&self, key: &ServiceKey) -> Option<&RunningService> {
        self.positions.get(key).map(|position| &self.services[*position])
    }

    /// The name of a deployment.
    pub(crate) fn name_of(&self, index: u16) -> Option<&str> {
        self.names.get(&index).map(String::as_str)
    }

    /// The live state of a deployment.
    pub(crate) fn reading(&self, index: u16) -> Option<Reading> {
        let deployment = self.name_of(index).and_then(|name| self.deployments.get(name));
        deployment.map(|deployment| deployment.reading)
    }

    fn read_deployments(&mut self, words: &Words, tables: &Tables) -> Result<(), Error> {
        let mut testers: HashMap<u16, Vec<Prefix>> = HashMap::new();
        let mut unsettled = HashSet::new();
        for key in tables.tester_keys()? {
            if key.data().family == NO_FAMILY {
                unsettled.insert(u32::from_be(key.data().deployment) as u16);
                continue;
            }
            let (index, prefix) = prefix_of(key);
            testers.entry(index).or_default().push(prefix);
        }
        for (index, row) in deployment_rows(words) {
            let mut testers = testers.remove(&index).unwrap_or_default();
            testers.sort_by_key(|prefix| (prefix.addr, prefix.len));
            let reading = words.reading(index, 0);
            let word = reading.shown();
            self.used.deployments.insert(index);
            let is_unsettled = unsettled.contains(&index);
            self.names.insert(index, text(&row.name));
            self.deployments
                .insert(text(&row.name), RunningDeployment { index, row, word, reading, testers, is_unsettled });
        }
        Ok(())
    }

    fn read_services(&mut self, tables: &Tables) {
        let (of_service, left_over) = sort_rows(&self.published, |key, row| {
            let index = usize::from(row.service);
            let is_in_use = index < tables.services.info.rows() && tables.services.info.read(index).in_use != 0;
            is_in_use && tables.services.vips.read(vip_row(row.service, role_of(row))).key == *key
        });
        self.left_over.rows = left_over;
        // Rows that are left over do not count, because they are removed before anything is allocated.
        self.used.spans.extend(of_service.values().flatten().flatten().flat_map(|(_, row)| row.tables));
        for index in 0..tables.services.info.rows() as u16 {
            let info = tables.services.info.read(index.into());
            if info.in_use == 0 {
                continue;
            }
            self.used.services.insert(index);
            match of_service.get(&index) {
                Some([Some((vip, row)), preview]) => {
                    let vip_row_of = |role| tables.services.vips.read(vip_row(index, role));
                    let Vip { salt, is_mirrored, .. } = vip_row_of(Role::Vip);
                    self.positions.insert(*vip, self.services.len());
                    self.services.push(RunningService {
                        index,
                        name: text(&info.name),
                        deployment: row.deployment,
                        mode: mode_of(&info),
                        vip: *vip,
                        row: *row,
                        preview: *preview,
                        preview_row: vip_row_of(Role::Preview).key,
                        salt,
                        is_mirrored: is_mirrored != 0,
                        backends: Default::default(),
                        listeners: Default::default(),
                        tee: Tee {
                            listen: None,
                            proxy_protocol: info.proxy_protocol != 0,
                            compare: info.compares != 0,
                        },
                        encap: tunnels::encap_of(&info),
                    });
                }
                _ => self.left_over.services.push(index),
            }
        }
    }

    fn read_backends(&mut self, tables: &Tables) {
        let position: HashMap<u16, usize> =
            self.services.iter().enumerate().map(|(position, service)| (service.index, position)).collect();
        self.used.slots = vec![false; tables.backends.rows()];
        for slot in 0..tables.backends.rows() as u32 {
            let backend = tables.backends.read(slot as usize);
            if backend.identity.in_use == 0 {
                continue;
            }
            self.used.slots[slot as usize] = true;
            let known = position.get(&backend.service).zip(RunningBackend::of(tables, slot, &backend));
            let Some((position, found)) = known else {
                self.left_over.slots.push(slot);
                continue;
            };
            let service = &mut self.services[*position];
            let is_listener = found.is_listener(service.mode);
            let of_colours = if is_listener { &mut service.listeners } else { &mut service.backends };
            of_colours[usize::from(backend.colour & 1)].push(found);
        }
        for service in &mut self.services {
            // The new one, if an apply that replaces it was killed.
            let of = |colour: Colour| service.listeners[colour as usize].last().map(|listener| listener.address);
            service.tee.listen = of(Colour::Blue).zip(of(Colour::Green)).map(<[SocketAddr; 2]>::from);
        }
    }
}

/// A service's rows, VIP and preview.
type Rows = [Option<(ServiceKey, ServiceRow)>; 2];

/// The rows of each service, and the rows that are left over. `is_right` returns whether the service of a row knows it.
fn sort_rows(
    published: &HashMap<ServiceKey, ServiceRow>,
    is_right: impl Fn(&ServiceKey, &ServiceRow) -> bool,
) -> (HashMap<u16, Rows>, Vec<ServiceKey>) {
    let mut of_service: HashMap<u16, Rows> = HashMap::new();
    let mut left_over = Vec::new();
    for (key, row) in published {
        if is_right(key, row) {
            of_service.entry(row.service).or_default()[role_of(row) as usize] = Some((*key, *row));
        } else {
            left_over.push(*key);
        }
    }
    of_service.retain(|_, [vip, preview]| {
        if vip.is_none() {
            left_over.extend(preview.map(|(key, _)| key));
        }
        vip.is_some()
    });
    (of_service, left_over)
}

/// The role of the row's address in its service.
pub(crate) fn role_of(row: &ServiceRow) -> Role {
    if row.role == Role::Preview as u8 { Role::Preview } else { Role::Vip }
}

/// A service's row of the `vips` array.
pub(crate) fn vip_row(service: u16, role: Role) -> usize {
    2 * usize::from(service) + role as usize
}

/// The rows that hold a deployment, with their indexes.
pub(crate) fn deployment_rows(words: &Words) -> impl Iterator<Item = (u16, DeploymentRow)> {
    let rows = (0..MAX_DEPLOYMENTS as u16).map(|index| (index, words.deployments.read(index.into())));
    rows.filter(|(_, row)| row.in_use != 0)
}

/// A name in a row, where it is padded with zeros.
pub(crate) fn text(padded: &[u8; 64]) -> String {
    let end = padded.iter().position(|octet| *octet == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..end]).into_owned()
}

/// A name for a row. Names that do not fit have been refused before.
pub(crate) fn padded(name: &str) -> [u8; 64] {
    let mut padded = [0; 64];
    let length = name.len().min(padded.len());
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

/// A virtual address as the key of a map.
pub(crate) fn service_key(address: SocketAddr, protocol: Protocol) -> ServiceKey {
    ServiceKey {
        addr: address.ip().into(),
        port: bg_common::Be16::new(address.port()),
        protocol: protocol as u8,
        family: Family::of(address.ip()) as u8,
    }
}

/// The address in a key.
pub(crate) fn address_of(key: &ServiceKey) -> SocketAddr {
    let family = Family::from_u8(key.family).unwrap_or(Family::V4);
    SocketAddr::new(key.addr.to_ip(family), key.port.host())
}

/// A prefix as the key of the trie.
pub(crate) fn tester_key(deployment: u16, prefix: &Prefix) -> Key<TesterKey> {
    let key = TesterKey {
        deployment: u32::from(deployment).to_be(),
        family: u32::from(Family::of(prefix.addr) as u8).to_be(),
        addr: prefix.addr.into(),
    };
    Key::new(TesterKey::PREFIX_BITS + u32::from(prefix.len), key)
}

/// The value of [`TesterKey::family`] in a key that no packet matches.
const NO_FAMILY: u32 = 0;

/// A key of the trie that matches no source. It exists while testers are being changed, so that the work of a killed
/// apply does not look complete before the open flows are checked.
pub(crate) fn unsettled_key(deployment: u16) -> Key<TesterKey> {
    let addr = bg_common::Addr::default();
    Key::new(TesterKey::PREFIX_BITS, TesterKey { deployment: u32::from(deployment).to_be(), family: NO_FAMILY, addr })
}

/// The deployment and the prefix of a key.
pub(crate) fn prefix_of(key: Key<TesterKey>) -> (u16, Prefix) {
    let data = key.data();
    let family = Family::from_u8(u32::from_be(data.family) as u8).unwrap_or(Family::V4);
    let len = key.prefix_len().saturating_sub(TesterKey::PREFIX_BITS) as u8;
    (u32::from_be(data.deployment) as u16, Prefix { addr: data.addr.to_ip(family), len })
}

fn mode_of(info: &ServiceInfo) -> Mode {
    Mode::from_u8(info.mode).unwrap_or(Mode::Nat)
}

/// The tables in a row, by colour.
pub(crate) fn table(row: &ServiceRow, colour: Colour) -> TableSpan {
    row.tables[colour as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_prefixes_survive_their_rows() {
        for name in ["shop", "ünï", &"x".repeat(64)] {
            assert_eq!(text(&padded(name)), name);
        }
        for prefix in ["198.51.100.0/24", "2001:db8:7::/48", "0.0.0.0/0"] {
            let (addr, len) = prefix.split_once('/').unwrap();
            let prefix = Prefix { addr: addr.parse().unwrap(), len: len.parse().unwrap() };
            assert_eq!(prefix_of(tester_key(513, &prefix)), (513, prefix));
        }
        let vip: SocketAddr = "[2001:db8::10]:443".parse().unwrap();
        assert_eq!(address_of(&service_key(vip, Protocol::Tcp)), vip);
    }

    #[test]
    fn a_row_that_its_service_does_not_know_is_left_over() {
        let key = |port| service_key(([203, 0, 113, 10], port).into(), Protocol::Tcp);
        let row = |service, role| ServiceRow { service, role: role as u8, ..ServiceRow::default() };
        // 0: whole; 1: its preview address has changed; 2: its VIP is gone.
        let published = HashMap::from([
            (key(1), row(0, Role::Vip)),
            (key(2), row(0, Role::Preview)),
            (key(3), row(1, Role::Vip)),
            (key(4), row(1, Role::Preview)),
            (key(5), row(1, Role::Preview)),
            (key(6), row(2, Role::Preview)),
        ]);
        let (of_service, mut left_over) = sort_rows(&published, |at, _| *at != key(4));
        left_over.sort();
        assert_eq!(left_over, [key(4), key(6)]);
        let keys = |service| of_service[&service].map(|row| row.map(|(key, _)| key));
        assert_eq!(keys(0), [Some(key(1)), Some(key(2))]);
        assert_eq!(keys(1), [Some(key(3)), Some(key(5))]);
        assert!(!of_service.contains_key(&2));
    }
}
