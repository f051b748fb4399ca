//! The content of all maps, built without code of user space, so that only the
//! engine is tested.

use bg_common::{
    Addr, Backend, Be16, Colour, DeploymentRow, Family, GUE_PORT, Identity, LiveFlags, LiveWord, Mode, NextHop,
    Protocol, Role, ServiceKey, ServiceRow, SwitchTerms, TableSpan, TesterKey, Tunnel, Vip, endpoint_hash,
};
use std::net::{IpAddr, SocketAddr};

/// A time-out in ticks that no test run outlives.
pub const TICKS_LONG: u32 = 1 << 20;

/// The source of outer headers.
pub const OUTER_V4: &str = "10.255.0.1";
/// The same of IPv6.
pub const OUTER_V6: &str = "2001:db8:ff::1";

/// A backend of a [`ServiceAt`].
#[derive(Clone, Copy, Debug)]
pub struct BackendAt {
    /// Its address.
    pub address: SocketAddr,
    /// The interface of its next hop. `None` if there is no next hop, so that the host's stack has to find it.
    pub out_of: Option<u32>,
}

/// A service to add.
#[derive(Clone, Debug)]
pub struct ServiceAt {
    /// Index of its deployment.
    pub deployment: u16,
    /// The address for users.
    pub vip: SocketAddr,
    /// The preview address.
    pub preview: Option<SocketAddr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The mode, which says how packets reach backends.
    pub mode: Mode,
    /// Backends by colour.
    pub backends: [Vec<BackendAt>; 2],
}

/// The indexes of a [`Scenario`], and the rows with their links.
#[derive(Clone, Debug)]
pub struct Indexed {
    /// `vip_index`.
    pub vip_heads: Vec<u32>,
    /// `vips`, by row. Rows that are not in the scenario are zero.
    pub vips: Vec<Vip>,
    /// `backend_index`.
    pub backend_heads: Vec<u32>,
    /// `backends`.
    pub backends: Vec<Backend>,
}

/// The content of all maps.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// `deployments`, `live` and `terms`, by index.
    pub deployments: Vec<(DeploymentRow, LiveWord, [SwitchTerms; 2])>,
    /// `services`.
    pub services: Vec<(ServiceKey, ServiceRow)>,
    /// `vips`, by row, without links.
    pub vips: Vec<(u32, Vip)>,
    /// `backends`, without links. Their next hops are learned when the scenario is loaded.
    pub backends: Vec<Backend>,
    /// `tunnels`, by slot.
    pub tunnels: Vec<Tunnel>,
    /// `maglev`.
    pub maglev: Vec<u32>,
    /// `testers`: prefix length of the address in bits, key.
    pub testers: Vec<(u32, TesterKey)>,
}

impl Scenario {
    /// Adds a deployment in generation 1 whose live colour is blue. Returns its index.
    pub fn deployment(&mut self) -> u16 {
        let row = DeploymentRow {
            tcp_idle: TICKS_LONG,
            tcp_opening: TICKS_LONG,
            udp_idle: TICKS_LONG,
            in_use: 1,
            ..bytemuck::Zeroable::zeroed()
        };
        let word = LiveWord::new(1, LiveFlags::NONE, 0, 0);
        self.deployments.push((row, word, [SwitchTerms::default(); 2]));
        u16::try_from(self.deployments.len() - 1).expect("few deployments")
    }

    /// Adds a service. Returns its index.
    pub fn service(&mut self, service: &ServiceAt) -> u16 {
        let index = u16::try_from(self.vips.iter().map(|(row, _)| row / 2 + 1).max().unwrap_or(0)).expect("few");
        let is_direct = service.mode.is_direct();
        let tables = Colour::ALL.map(|colour| {
            let base = self.maglev.len() as u32;
            let backends = &service.backends[colour as usize];
            for at in backends {
                let slot = self.backends.len() as u32;
                self.backends.push(Backend {
                    identity: Identity { epoch: 7 + slot, in_use: 1 },
                    addr: at.address.ip().into(),
                    port: Be16::new(at.address.port()),
                    family: Family::of(at.address.ip()) as u8,
                    mode: service.mode as u8,
                    service: index,
                    colour: colour as u8,
                    next_hop: at.out_of.map_or(NextHop::NONE, |ifindex| {
                        NextHop::pack(ifindex, 1500, 0x0200_0000_0000 | u64::from(slot), 0x0600_0000_0001, 0)
                    }),
                    protocol: service.protocol as u8 | if is_direct { Backend::DIRECT } else { 0 },
                    deployment: service.deployment,
                    ..Backend::default()
                });
                self.tunnels.push(Tunnel {
                    source: if at.address.is_ipv4() { OUTER_V4 } else { OUTER_V6 }
                        .parse::<IpAddr>()
                        .expect("one")
                        .into(),
                    spread: 0,
                    port: Be16::new(GUE_PORT),
                    reserved: 0,
                });
                // A few entries for each, so that neighbouring hashes meet different backends.
                self.maglev.push(slot);
            }
            TableSpan { base, len: backends.len() as u32 }
        });
        for (role, address) in [(Role::Vip, Some(service.vip)), (Role::Preview, service.preview)] {
            let Some(address) = address else { continue };
            let key = service_key(address, service.protocol);
            let row = ServiceRow {
                service: index,
                deployment: service.deployment,
                role: role as u8,
                has_testers: 0,
                reserved: 0,
                tables,
            };
            self.services.push((key, row));
            self.vips.push((2 * u32::from(index) + role as u32, Vip { key, ..Vip::default() }));
        }
        index
    }

    /// Sets the salt of a service.
    pub fn salt(&mut self, service: u16, salt: u16) {
        for (row, vip) in &mut self.vips {
            if *row / 2 == u32::from(service) {
                vip.salt = salt;
            }
        }
        self.backends.iter_mut().filter(|backend| backend.service == service).for_each(|backend| backend.salt = salt);
    }

    /// Where the Maglev tables of a service stand, for each colour.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn tables(&self, service: usize) -> [TableSpan; 2] {
        let row = self.services.iter().find(|(_, row)| usize::from(row.service) == service);
        row.expect("a service of the scenario").1.tables
    }

    /// Gives a service a mirror.
    pub fn mirror(&mut self, service: u16) {
        for (_, vip) in self.vips.iter_mut().filter(|(row, _)| *row == 2 * u32::from(service)) {
            vip.is_mirrored = 1;
        }
    }

    /// The indexes, with this many heads each, a power of two. If several backends share address, port, protocol and salt,
    /// one of them is in the index.
    pub fn indexed(&self, heads: u32) -> Indexed {
        assert!(heads.is_power_of_two());
        let rows = self.vips.iter().map(|(row, _)| *row as usize + 1).max().unwrap_or(0);
        let mut vips = vec![Vip::default(); rows];
        let mut vip_heads = vec![0; heads as usize];
        for (row, vip) in &self.vips {
            let head = &mut vip_heads[head_of(&vip.key.addr, vip.key.port, vip.key.protocol, heads)];
            vips[*row as usize] = Vip { next: *head, ..*vip };
            *head = row + 1;
        }
        let mut backends = self.backends.clone();
        let mut backend_heads = vec![0; heads as usize];
        let endpoint = |backend: &Backend| (backend.addr, backend.port, backend.protocol, backend.salt);
        for slot in 0..backends.len() {
            let backend = backends[slot];
            if backend.is_direct() {
                backends[slot].next = slot as u32 + 1;
                continue;
            }
            if backends[..slot].iter().any(|other| endpoint(other) == endpoint(&backend)) {
                continue;
            }
            let head = &mut backend_heads[head_of(&backend.addr, backend.port, backend.protocol, heads)];
            backends[slot].next = *head;
            *head = slot as u32 + 1;
        }
        Indexed { vip_heads, vips, backend_heads, backends }
    }

    /// Makes all sources of a prefix testers of a deployment.
    pub fn tester(&mut self, deployment: u16, address: IpAddr, prefix: u32) {
        let family = Family::of(address);
        let key = TesterKey {
            deployment: u32::from(deployment).to_be(),
            family: u32::from(family as u8).to_be(),
            addr: address.into(),
        };
        self.testers.push((prefix, key));
        for (_, row) in &mut self.services {
            if row.deployment == deployment {
                row.has_testers = 1;
            }
        }
    }

    /// Whether one of the prefixes covers a key of the `testers` trie, by comparing with each.
    pub fn covers(&self, key: &TesterKey) -> bool {
        let bits = |addr: Addr| u128::from_be_bytes(addr.octets());
        self.testers.iter().any(|(prefix, tester)| {
            let mask = if *prefix == 0 { 0 } else { u128::MAX << (128 - prefix) };
            (tester.deployment, tester.family) == (key.deployment, key.family)
                && (bits(tester.addr) ^ bits(key.addr)) & mask == 0
        })
    }
}

fn head_of(address: &Addr, port: Be16, protocol: u8, heads: u32) -> usize {
    (endpoint_hash(address, port, protocol) & (heads - 1)) as usize
}

/// The `services` key of an address.
pub(super) fn service_key(address: SocketAddr, protocol: Protocol) -> ServiceKey {
    ServiceKey {
        addr: address.ip().into(),
        port: Be16::new(address.port()),
        protocol: protocol as u8,
        family: Family::of(address.ip()) as u8,
    }
}
