//! All that an instance holds, as packets and commands find it: followed from the addresses in `services`, with names
//! and addresses in the place of indexes and slots, so that two instances can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, lpm_trie::LpmTrie};
use bg_common::{
    Addr, Backend, BackendInfo, Be16, Colour, DeploymentRow, Family, LiveWord, MAX_CHAIN, MAX_DEPLOYMENTS, Mode,
    NextHop, Role, ServiceInfo, ServiceKey, ServiceRow, SwitchTerms, TableSpan, TesterKey, Vip, endpoint_hash,
};

use memmap2::{MmapOptions, MmapRaw};

use crate::lab::Lab;

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// What each address leads to.
    services: BTreeMap<ServiceKey, Service>,
    /// By name.
    deployments: BTreeMap<String, (DeploymentRow, Testers)>,
    /// Every backend in use, with the VIP that it serves.
    backends: BTreeMap<(ServiceKey, String), usize>,
    /// Virtual addresses that packets find.
    vips: BTreeSet<ServiceKey>,
    /// Sources that packets take for backends: address, port, protocol and family.
    sources: BTreeSet<Source>,
    /// Live words and the terms that belong to them, by the deployment's name. Not compared with a fresh instance's.
    pub(crate) words: Words,
}

/// Address, port, protocol and family.
type Source = (Addr, Be16, u8, u8);

/// Tester prefixes: family, address and length of the trie's keys.
type Testers = BTreeSet<(u32, [u32; 4], u32)>;

/// Live words and terms, by the deployment's name.
type Words = BTreeMap<String, (LiveWord, SwitchTerms)>;

/// What a packet for an address finds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    deployment: String,
    role: u8,
    has_testers: u8,
    is_mirrored: u16,
    info: (String, u8, u8, (u8, u8)),
    vip: ServiceKey,
    preview: ServiceKey,
    /// The backend of each entry, by colour.
    tables: [Vec<String>; 2],
}

impl View {
    /// Everything but the live words, which depend on what was switched.
    pub(crate) fn without_words(self) -> Self {
        Self { words: BTreeMap::new(), ..self }
    }

    /// Ports of all virtual addresses.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.vips.iter().map(|key| key.port.host()).collect()
    }

    /// The live colour of each VIP.
    pub(crate) fn live(&self) -> BTreeMap<ServiceKey, Colour> {
        let vips = self.services.iter().filter(|(_, service)| service.role == Role::Vip as u8);
        vips.map(|(key, service)| (*key, self.words[&service.deployment].0.live())).collect()
    }

    /// Reads an instance that nobody changes.
    pub(crate) fn of(lab: &Lab) -> Self {
        let maps = Maps::open(lab);
        let names = maps.names();
        let mut services = BTreeMap::new();
        let mut vips = BTreeMap::new();
        for pair in maps.services.iter() {
            let (key, row): (ServiceKey, ServiceRow) = pair.unwrap();
            let info = maps.info.get(row.service);
            let address = |role| maps.vips.get(2 * u32::from(row.service) + role as u32).key;
            let vip = maps.vips.get(2 * u32::from(row.service) + u32::from(row.role));
            assert_eq!((vip.key, vip.reserved), (key, [0; 2]));
            assert_eq!(maps.find_vip(&key), Some(2 * u32::from(row.service) + u32::from(row.role)), "{key:?}");
            assert_eq!((info.in_use, info.deployment, row.reserved), (1, row.deployment, 0), "{key:?}");
            vips.insert(row.service, address(Role::Vip));
            let service = Service {
                deployment: names[&row.deployment].clone(),
                role: row.role,
                has_testers: row.has_testers,
                is_mirrored: vip.is_mirrored,
                info: (text(&info.name), info.mode, info.has_preview, (info.proxy_protocol, info.compares)),
                vip: address(Role::Vip),
                preview: address(Role::Preview),
                tables: Colour::ALL.map(|colour| maps.table(&row, colour)),
            };
            services.insert(key, service);
        }
        let known = (0..maps.info.len as u16).filter(|index| maps.info.get(*index).in_use != 0);
        assert_eq!(known.collect::<Vec<_>>(), vips.keys().copied().collect::<Vec<_>>(), "services without an address");
        let mut backends = BTreeMap::new();
        for (slot, row) in (0..).zip(maps.backends.iter()).filter(|(_, row)| row.identity.in_use != 0) {
            *backends.entry((vips[&row.service], maps.backend(slot, &names))).or_default() += 1;
            assert_eq!(row.salt, maps.vips.get(2 * u32::from(row.service)).salt, "{row:?}");
            assert_eq!(row.protocol, vips[&row.service].protocol);
        }
        let sources = maps.sources();
        let (words, deployments) = maps.deployments(&names);
        let vips: BTreeSet<ServiceKey> =
            maps.linked(&maps.vip_index, |row| maps.vips.get(row).next).map(|row| maps.vips.get(row).key).collect();
        assert_eq!(vips, services.keys().copied().collect::<BTreeSet<_>>());
        Self { services, deployments, backends, vips, sources, words }
    }
}

struct Maps {
    services: BpfHashMap<MapData, ServiceKey, ServiceRow>,
    vips: Rows<Vip>,
    vip_index: Rows<[u32; 2]>,
    info: Rows<ServiceInfo>,
    deployments: Rows<DeploymentRow>,
    live: Rows<LiveWord>,
    terms: Rows<[SwitchTerms; 2]>,
    testers: LpmTrie<MapData, TesterKey, u32>,
    backends: Rows<Backend>,
    backend_index: Rows<[u32; 2]>,
    backend_info: Rows<BackendInfo>,
    maglev: Rows<[u32; 2]>,
}

impl Maps {
    fn open(lab: &Lab) -> Self {
        Self {
            services: map(lab, "services"),
            vips: Rows::open(lab, "vips"),
            vip_index: Rows::open(lab, "vip_index"),
            info: Rows::open(lab, "service_info"),
            deployments: Rows::open(lab, "deployments"),
            live: Rows::open(lab, "live"),
            terms: Rows::open(lab, "terms"),
            testers: map(lab, "testers"),
            backends: Rows::open(lab, "backends"),
            backend_index: Rows::open(lab, "backend_index"),
            backend_info: Rows::open(lab, "backend_info"),
            maglev: Rows::open(lab, "maglev"),
        }
    }

    /// All rows that are in a list of an index.
    fn linked<'a>(&'a self, index: &'a Rows<[u32; 2]>, next: impl Fn(u32) -> u32 + 'a) -> impl Iterator<Item = u32> {
        let heads = (0..index.len).flat_map(|row| index.get(row));
        let list = move |head: u32| {
            let rows: Vec<u32> = std::iter::successors(head.checked_sub(1), |row| next(*row).checked_sub(1)).collect();
            assert!(rows.len() <= MAX_CHAIN as usize, "a packet does not walk so far: {rows:?}");
            rows
        };
        heads.flat_map(list)
    }

    /// The row of `vips` that a packet for this address finds.
    fn find_vip(&self, key: &ServiceKey) -> Option<u32> {
        let head = endpoint_hash(&key.addr, key.port, key.protocol) & (2 * self.vip_index.len - 1);
        let mut link = self.vip_index.get(head / 2)[head as usize % 2];
        for _ in 0..MAX_CHAIN {
            let row = self.vips.get(link.checked_sub(1)?);
            if row.key == *key {
                return Some(link - 1);
            }
            link = row.next;
        }
        None
    }

    /// Everything that the index of backends has. Of each address with each salt in use one row is there, and no other.
    fn sources(&self) -> BTreeSet<Source> {
        let source = |row: &Backend| (row.addr, row.port, row.protocol, row.family);
        // Backends behind a listener are found by no packet.
        let is_found = |row: &Backend| row.identity.in_use != 0 && row.mode != Mode::Tee as u8;
        let in_use = self.backends.iter().filter(is_found);
        let expected: BTreeSet<(Source, u16)> = in_use.map(|row| (source(&row), row.salt)).collect();
        let mut found = BTreeSet::new();
        for slot in self.linked(&self.backend_index, |slot| self.backends.get(slot).next) {
            let row = self.backends.get(slot);
            assert!(row.identity.in_use == 1 && found.insert((source(&row), row.salt)), "{slot}: {row:?}");
        }
        assert_eq!(found, expected);
        found.into_iter().map(|(source, _)| source).collect()
    }

    /// Names of deployments by index. A row without one has no live word either.
    fn names(&self) -> BTreeMap<u16, String> {
        let mut names = BTreeMap::new();
        for index in 0..MAX_DEPLOYMENTS as u16 {
            let row = self.deployments.get(index);
            if row.in_use != 0 {
                names.insert(index, text(&row.name));
            } else {
                assert_eq!(self.live.get(index), LiveWord::default(), "{index} is no deployment");
            }
        }
        names
    }

    fn deployments(&self, names: &BTreeMap<u16, String>) -> (Words, BTreeMap<String, (DeploymentRow, Testers)>) {
        let (mut words, mut deployments) = (BTreeMap::new(), BTreeMap::new());
        for (index, name) in names {
            let index = u32::from(*index);
            let word = self.live.get(index);
            words.insert(name.clone(), (word, self.terms.get(index)[word.terms_slot()]));
            deployments.insert(name.clone(), (self.deployments.get(index), BTreeSet::new()));
        }
        for key in self.testers.keys().map(Result::unwrap) {
            let data = key.data();
            let name = &names[&(u32::from_be(data.deployment) as u16)];
            let tester = (u32::from_be(data.family), data.addr.0, key.prefix_len());
            deployments.get_mut(name).unwrap().1.insert(tester);
        }
        (words, deployments)
    }

    /// The backends of a table, entry by entry. All of them belong to the row's service and deployment.
    fn table(&self, row: &ServiceRow, colour: Colour) -> Vec<String> {
        let TableSpan { base, len } = row.tables[colour as usize];
        let slot = |entry: u32| self.maglev.get(entry / 2)[entry as usize % 2];
        let mut known = BTreeMap::new();
        let mut backend = |slot: u32| {
            let named = || {
                let backend = self.backends.get(slot);
                let led_here = (backend.identity.in_use, backend.service, backend.deployment, backend.colour);
                assert_ne!(backend.mode, Mode::Tee as u8, "{backend:?}");
                assert_eq!(led_here, (1, row.service, row.deployment, colour as u8), "slot {slot}: {backend:?}");
                self.described(slot)
            };
            known.entry(slot).or_insert_with(named).clone()
        };
        (base..base + len).map(|entry| backend(slot(entry))).collect()
    }

    fn backend(&self, slot: u32, names: &BTreeMap<u16, String>) -> String {
        format!("{} of {}", self.described(slot), names[&self.backends.get(slot).deployment])
    }

    /// All fields of a backend but for numbers that each instance gives as it likes, and the next hop.
    fn described(&self, slot: u32) -> String {
        let (row, info) = (self.backends.get(slot), self.backend_info.get(slot));
        let family = Family::from_u8(row.family).unwrap();
        let address = SocketAddr::new(row.addr.to_ip(family), row.port.host());
        let Backend { colour, mode, protocol, .. } = row;
        let own = Backend {
            identity: Default::default(),
            service: 0,
            deployment: 0,
            next_hop: NextHop::default(),
            next: 0,
            salt: 0,
            ..row
        };
        let told = Backend {
            addr: row.addr,
            port: row.port,
            family: row.family,
            mode,
            colour,
            protocol,
            ..Backend::default()
        };
        assert_eq!((own, info.health), (told, 0));
        format!("{address}/{protocol} {} mode {mode} weight {}", Colour::from_u8(colour).name(), info.weight)
    }
}

fn map<T: TryFrom<Map, Error = MapError>>(lab: &Lab, name: &str) -> T {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).and_then(T::try_from).unwrap()
}

fn text(padded: &[u8; 64]) -> String {
    String::from_utf8_lossy(padded).trim_end_matches('\0').to_owned()
}

/// An array in mapped memory: reading a quarter of a million rows by system calls takes too long.
struct Rows<T> {
    memory: MmapRaw,
    len: u32,
    row: PhantomData<T>,
}

impl<T: aya::Pod> Rows<T> {
    fn open(lab: &Lab, name: &str) -> Self {
        let map = MapData::from_pin(lab.paths.map(name)).unwrap();
        let len = map.info().unwrap().max_entries();
        let bytes = len as usize * size_of::<T>().next_multiple_of(8);
        let memory = MmapOptions::new().len(bytes).map_raw(map.fd().as_fd().as_raw_fd()).unwrap();
        Self { memory, len, row: PhantomData }
    }

    fn get(&self, index: impl Into<u32>) -> T {
        let index = index.into();
        assert!(index < self.len);
        let offset = index as usize * size_of::<T>().next_multiple_of(8);
        // SAFETY: the row lies within the mapping, any bit pattern is a `T`, and nobody writes while a test reads.
        unsafe { self.memory.as_mut_ptr().add(offset).cast::<T>().read() }
    }

    fn iter(&self) -> impl Iterator<Item = T> {
        (0..self.len).map(|index| self.get(index))
    }
}
