//! The outer headers of the modes `ipip` and `gue`: what packets find in `tunnels`.
//!
//! The source address is that from which this host would send to the backend itself, unless a prefix is configured. The data path cannot ask the kernel for it
//! (`bpf_fib_lookup` tells it since Linux 6.7), so user space does, at each apply, at each switch, at each attach, and in `bgctl serve` every ten seconds: by
//! a socket that is connected and never used.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr, UdpSocket},
};

use bg_common::{Addr, Backend, Be16, Family, Mode, ServiceInfo, Tunnel};
#[cfg(feature = "serve")]
use bg_ebpf::rows::TunnelRef;
use bytemuck::Zeroable as _;

use crate::{
    Error, Paths,
    config::{Encap, Prefix},
    lock::Lock,
    maps::Tables,
    net,
};

/// In a row: no source is known.
const UNKNOWN: Addr = Addr([0; 4]);

/// The settings of a service's encapsulation, in a row that is otherwise empty.
pub(crate) fn info_of(mode: Mode, encap: &Encap) -> ServiceInfo {
    let mut info = ServiceInfo::zeroed();
    if !mode.is_tunnel() {
        return info;
    }
    info.gue_port = encap.gue_port;
    for prefix in encap.prefixes() {
        match prefix.addr {
            IpAddr::V4(addr) => (info.outer_len[0], info.outer4) = (prefix.len + 1, addr.octets()),
            IpAddr::V6(addr) => (info.outer_len[1], info.outer6) = (prefix.len + 1, addr.octets()),
        }
    }
    info
}

/// The settings in a service's row.
pub(crate) fn encap_of(info: &ServiceInfo) -> Encap {
    let prefix = |addr: IpAddr, len: u8| len.checked_sub(1).map(|len| Prefix { addr, len });
    Encap {
        gue_port: if info.gue_port == 0 { bg_common::GUE_PORT } else { info.gue_port },
        outer_source: [prefix(info.outer4.into(), info.outer_len[0]), prefix(info.outer6.into(), info.outer_len[1])],
    }
}

/// The row of a backend of a service. `None`: its packets are not encapsulated.
pub(crate) fn row(backend: &Backend, info: &ServiceInfo) -> Option<Tunnel> {
    row_from(backend, info, source_towards)
}

fn row_from(
    backend: &Backend,
    info: &ServiceInfo,
    source_towards: impl FnOnce(SocketAddr) -> Option<IpAddr>,
) -> Option<Tunnel> {
    Mode::from_u8(backend.mode).filter(|mode| mode.is_tunnel())?;
    let address = SocketAddr::new(backend.addr.to_ip(Family::from_u8(backend.family)?), backend.port.host());
    let encap = encap_of(info);
    let (source, spread) = match encap.outer_source[usize::from(address.is_ipv6())] {
        Some(prefix) => (prefix.addr.into(), spread(prefix)),
        None => (source_towards(address).map_or(UNKNOWN, Addr::from), 0),
    };
    Some(Tunnel { source, spread, port: Be16::new(encap.gue_port), reserved: 0 })
}

/// The source address of the outer headers of a flow with this hash, as the data path writes it. `source` is the address from which this host would send to the
/// backend.
#[cfg(feature = "serve")]
pub(crate) fn outer_source(encap: &Encap, backend: IpAddr, source: Option<IpAddr>, hash: u32) -> Option<Addr> {
    let Some(prefix) = encap.outer_source[usize::from(backend.is_ipv6())] else { return source.map(Addr::from) };
    let tunnel = Tunnel { source: prefix.addr.into(), spread: spread(prefix), ..Tunnel::default() };
    let family = if backend.is_ipv6() { Family::V6 } else { Family::V4 };
    Some(TunnelRef(&raw const tunnel).source(family as u8, hash))
}

/// The bits of an address's last word that do not belong to the prefix, in network order.
fn spread(prefix: Prefix) -> u32 {
    let bits = if prefix.addr.is_ipv4() { 32 } else { 128 };
    let free = u32::from(bits - prefix.len).min(32);
    u32::MAX.checked_shr(32 - free).unwrap_or(0).to_be()
}

/// The address from which this host would send to a backend. `None`: there is no route now.
fn source_towards(backend: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if backend.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(backend).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Learns the source addresses anew. An address that is not known now stays as it was. The caller holds the lock of apply: what is found for
/// a backend must not be written to a row that has become another one's.
pub(crate) fn learn(paths: &Paths, _lock: &Lock) -> Result<(), Error> {
    let tables = Tables::open(paths)?;
    write(&tables, &changes(&tables, &mut Sources::new()));
    Ok(())
}

/// The same for callers without the lock, which is taken only if there is something to write. An apply or an attach that holds it learns by itself.
pub(crate) fn follow(paths: &Paths) -> Result<(), Error> {
    let (tables, mut sources) = (Tables::open(paths)?, Sources::new());
    if changes(&tables, &mut sources).is_empty() {
        return Ok(());
    }
    let _lock = Lock::apply_if_free(paths)?;
    write(&tables, &changes(&tables, &mut sources));
    Ok(())
}

/// From which address this host would send to another: each is asked for once.
type Sources = HashMap<IpAddr, Option<IpAddr>>;

/// The rows that are not as they should be now, with what they should be.
fn changes(tables: &Tables, sources: &mut Sources) -> Vec<(usize, Tunnel)> {
    if !is_any(tables) {
        return Vec::new();
    }
    let mut towards = |address: SocketAddr| *sources.entry(address.ip()).or_insert_with(|| source_towards(address));
    let changed = encapsulated(tables).filter_map(|(slot, backend, info)| {
        let tunnel = row_from(&backend, &info, &mut towards)?;
        let old = tables.tunnels.read(slot);
        let is_known = tunnel.source != UNKNOWN;
        let tunnel = if is_known { tunnel } else { Tunnel { source: old.source, ..tunnel } };
        (tunnel != old).then_some((slot, tunnel))
    });
    changed.collect()
}

fn write(tables: &Tables, changes: &[(usize, Tunnel)]) {
    changes.iter().for_each(|(slot, tunnel)| tables.tunnels.write(*slot, tunnel));
}

/// What is wrong with the source address of the outer headers towards a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceProblem {
    /// None is known, so all its packets are dropped.
    Unknown,
    /// This host does not have it, so backends that know their edges refuse the packets.
    NotOurs(IpAddr),
    /// By the routes, this host would use another one now.
    Other {
        /// The address in use.
        used: IpAddr,
        /// The address that this host would use.
        wanted: IpAddr,
    },
}

/// A problem with the outer headers towards a backend, as a warning. Sources from a configured prefix are not judged.
pub(crate) fn problems(paths: &Paths) -> Result<Vec<(IpAddr, SourceProblem)>, Error> {
    let tables = Tables::open(paths)?;
    let mut problems = Vec::new();
    if !is_any(&tables) {
        return Ok(problems);
    }
    let mut seen = HashSet::new();
    for (slot, backend, info) in encapsulated(&tables) {
        let Some(family) = Family::from_u8(backend.family) else { continue };
        let address = backend.addr.to_ip(family);
        let tunnel = tables.tunnels.read(slot);
        let is_given = encap_of(&info).outer_source[usize::from(address.is_ipv6())].is_some();
        if is_given || !seen.insert((address, tunnel.source)) {
            continue;
        }
        let source = (tunnel.source != UNKNOWN).then(|| tunnel.source.to_ip(family));
        let wanted = source_towards(SocketAddr::new(address, backend.port.host()));
        problems.extend(judge(source, wanted, net::is_local).map(|problem| (address, problem)));
    }
    problems.sort_by_key(|(address, _)| *address);
    Ok(problems)
}

fn judge(source: Option<IpAddr>, wanted: Option<IpAddr>, is_ours: impl Fn(IpAddr) -> bool) -> Option<SourceProblem> {
    match (source, wanted) {
        (None, _) => Some(SourceProblem::Unknown),
        (Some(used), _) if !is_ours(used) => Some(SourceProblem::NotOurs(used)),
        (Some(used), Some(wanted)) if used != wanted => Some(SourceProblem::Other { used, wanted }),
        _ => None,
    }
}

/// The problem, in words.
pub(crate) fn told((backend, problem): &(IpAddr, SourceProblem)) -> String {
    match problem {
        SourceProblem::Unknown => format!(
            "no source address is known for outer headers towards {backend}, so its packets are dropped (no_way): there was no route or no address"
        ),
        SourceProblem::NotOurs(used) => {
            format!("outer headers towards {backend} have the source {used}, which is not an address of this host")
        }
        SourceProblem::Other { used, wanted } => format!(
            "outer headers towards {backend} have the source {used}, and by the routes it would be {wanted} now"
        ),
    }
}

/// What can be done about it.
pub(crate) const REMEDY: &str = "`bgctl apply` once there is a route; `bgctl serve` looks every ten seconds";

/// The problems of an instance as warnings, of which there are a few at most.
pub(crate) fn warnings(paths: &Paths) -> Vec<String> {
    const TOLD: usize = 4;
    let problems = problems(paths).unwrap_or_default();
    let mut warnings: Vec<_> =
        problems.iter().take(TOLD).map(|problem| format!("{}: {REMEDY}", told(problem))).collect();
    if let Some(more @ 1..) = problems.len().checked_sub(TOLD) {
        warnings.push(format!("so it is with {more} more backends"));
    }
    warnings
}

/// The rows of backends to which packets are encapsulated, with their slots and services.
fn encapsulated(tables: &Tables) -> impl Iterator<Item = (usize, Backend, ServiceInfo)> {
    let rows = (0..tables.backends.rows()).map(|slot| (slot, tables.backends.read(slot)));
    let is_it = |row: &Backend| row.identity.in_use != 0 && Mode::from_u8(row.mode).is_some_and(Mode::is_tunnel);
    let found = rows.filter(move |(_, row)| is_it(row));
    found.map(|(slot, row)| (slot, row, tables.services.info.read(row.service.into())))
}

/// Whether there is a backend in mode `ipip` or `gue`.
fn is_any(tables: &Tables) -> bool {
    let modes = (0..tables.services.info.rows()).map(|index| tables.services.info.read(index));
    modes.filter(|info| info.in_use != 0).any(|info| Mode::from_u8(info.mode).is_some_and(Mode::is_tunnel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (addr, len) = text.split_once('/').unwrap();
        Prefix { addr: addr.parse().unwrap(), len: len.parse().unwrap() }
    }

    #[test]
    fn the_bits_behind_a_prefix_spread_flows() {
        let octets = |text| spread(prefix(text)).to_ne_bytes();
        assert_eq!(octets("10.0.0.0/8"), [0, 255, 255, 255]);
        assert_eq!(octets("10.9.8.0/23"), [0, 0, 1, 255]);
        assert_eq!(octets("10.9.8.7/32"), [0; 4]);
        assert_eq!(octets("0.0.0.0/0"), [255; 4]);
        assert_eq!(octets("2001:db8::/64"), [255; 4]);
        assert_eq!(octets("2001:db8::/112"), [0, 0, 255, 255]);
        assert_eq!(octets("2001:db8::1/128"), [0; 4]);
    }

    #[test]
    fn settings_survive_the_row() {
        for outer_source in [[None, None], [Some(prefix("10.0.0.0/8")), None], [None, Some(prefix("::1/128"))]] {
            let encap = Encap { gue_port: 5555, outer_source };
            assert_eq!(encap_of(&info_of(Mode::Gue, &encap)), encap);
            assert_eq!(encap_of(&info_of(Mode::Nat, &encap)), Encap::default());
        }
    }

    #[test]
    fn the_source_towards_a_loopback_address_is_one() {
        assert_eq!(source_towards("127.0.0.1:9".parse().unwrap()), Some("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn sources_are_judged() {
        let [ours, other, gone]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "10.9.9.9"].map(|ip| ip.parse().unwrap());
        let judge = |source, wanted| judge(source, wanted, |address| address != gone);
        assert_eq!(judge(None, None), Some(SourceProblem::Unknown));
        assert_eq!(judge(None, Some(ours)), Some(SourceProblem::Unknown));
        assert_eq!(judge(Some(gone), Some(ours)), Some(SourceProblem::NotOurs(gone)));
        assert_eq!(judge(Some(ours), Some(other)), Some(SourceProblem::Other { used: ours, wanted: other }));
        assert_eq!(judge(Some(ours), Some(ours)), None);
        assert_eq!(judge(Some(ours), None), None, "the route is away for a moment");
    }
}
