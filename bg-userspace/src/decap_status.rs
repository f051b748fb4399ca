//! `bgctl decap status`: what the programs of `bgctl decap` have counted, and what they know.

use std::net::IpAddr;

use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
    programs::loaded_programs,
};
use bg_common::{Be16, Family, TesterKey};
use bg_ebpf::unpack::Count;
use serde::Serialize;

use crate::{
    Error, Paths,
    decap::{PROGRAM, pin_of, pins_of, remove_gone, unpacked_for},
    net::{self, Interface},
    running::prefix_of,
    sys::link_info,
};

/// An interface on which packets are unpacked, or were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecapStatus {
    /// Its name.
    pub interface: String,
    /// `attached`, or `gone` if the interface has been deleted, or the program was detached by hand.
    pub state: &'static str,
    /// `native` or `generic`, if it is attached.
    pub mode: Option<&'static str>,
    /// Who may send encapsulated packets.
    pub from: Vec<String>,
    /// The UDP port of GUE.
    pub gue_port: u16,
    /// Addresses of this host that were not there when the program was attached: packets for them pass as they are.
    pub unknown_addresses: Vec<IpAddr>,
    /// Packets that were unpacked.
    pub unpacked: u64,
    /// Packets that passed because their outer source may not send.
    pub other_source: u64,
    /// Packets that passed because what is inside is not for this host.
    pub other_destination: u64,
    /// Packets that were dropped because the network has marked congestion on them, and their transport does not know of that.
    pub congested: u64,
}

/// What is unpacked on these interfaces; on all if there is no name.
pub fn decap_status(paths: &Paths, names: &[String]) -> Result<Vec<DecapStatus>, Error> {
    remove_gone(paths)?;
    let names = if names.is_empty() { pins_of(paths)? } else { names.to_vec() };
    let (interfaces, addresses) = (net::interfaces()?, unpacked_for(net::addresses()?));
    names.into_iter().map(|name| of(paths, name, &interfaces, &addresses)).collect()
}

fn of(paths: &Paths, name: String, interfaces: &[Interface], addresses: &[IpAddr]) -> Result<DecapStatus, Error> {
    let pin = pin_of(paths, &name)?;
    let link = link_info(&pin).map_err(Error::io("read", &pin))?;
    let maps = Maps::of(link.program_id)?;
    let here = interfaces.iter().find(|interface| interface.index == link.ifindex);
    let attached = here.and_then(|interface| interface.xdp.iter().find(|xdp| xdp.program_id == link.program_id));
    let known: HashMap<_, TesterKey, u32> = maps.open("addresses")?;
    let known = known.keys().map(|key| key.map(address_of)).collect::<Result<Vec<_>, _>>();
    let known = known.map_err(Error::map("read", "addresses"))?;
    let sources: LpmTrie<_, TesterKey, u32> = maps.open("sources")?;
    let sources = sources.keys().map(|key| key.map(|key| prefix_of(key).1.to_string())).collect::<Result<Vec<_>, _>>();
    let mut from = sources.map_err(Error::map("read", "sources"))?;
    from.sort_unstable();
    let port: Array<_, u64> = maps.open("gue_port")?;
    let port = port.get(&0, 0).map_err(Error::map("read", "gue_port"))?;
    let counts: PerCpuArray<_, u64> = maps.open("counts")?;
    let count = |what: Count| {
        let counts = counts.get(&(what as u32), 0).map_err(Error::map("read", "counts"))?;
        Ok::<u64, Error>(counts.iter().sum())
    };
    let mut unknown: Vec<_> = addresses.iter().copied().filter(|ip| !known.contains(ip)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    Ok(DecapStatus {
        interface: name,
        state: if attached.is_some() { "attached" } else { "gone" },
        mode: attached.map(|xdp| xdp.mode.name()),
        from,
        gue_port: Be16(port as u16).host(),
        unknown_addresses: unknown,
        unpacked: count(Count::Unpacked)?,
        other_source: count(Count::OtherSource)?,
        other_destination: count(Count::OtherDestination)?,
        congested: count(Count::Congested)?,
    })
}

fn address_of(key: TesterKey) -> IpAddr {
    key.addr.to_ip(Family::from_u8(u32::from_be(key.family) as u8).unwrap_or(Family::V4))
}

/// The maps of a program, which has no pins of them.
struct Maps(Vec<u32>);

impl Maps {
    fn of(program: u32) -> Result<Self, Error> {
        let mut programs = loaded_programs().filter_map(Result::ok);
        let found = programs.find(|info| info.id() == program).ok_or(Error::NoObject)?;
        Ok(Self(found.map_ids().map_err(Error::program("read", PROGRAM))?.unwrap_or_default()))
    }

    fn open<T: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<T, Error> {
        let opened = self.0.iter().filter_map(|id| MapData::from_id(*id).ok());
        let is_it = |map: &MapData| map.info().is_ok_and(|info| info.name_as_str() == Some(name));
        let map = opened.into_iter().find(is_it).ok_or(Error::NoObject)?;
        Map::from_map_data(map).and_then(T::try_from).map_err(Error::map("open", name))
    }
}
