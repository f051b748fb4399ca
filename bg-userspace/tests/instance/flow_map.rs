//! The pinned `flows4` as the programs see it, to be filled and looked at by tests.

use aya::maps::{Array, Map, MapData};
use bg_common::{Addr, Be16, FLOW_WAYS, Flow, FlowHash, FlowKey4, FlowState, Meta, Vip, endpoint_hash};
use bg_ebpf::flow::{
    key::{Key as _, Match},
    memory::{Memory, RawWords, Words as _},
    row::FlowRef,
    table::{Stored, find, insert},
};
use memmap2::{MmapOptions, MmapRaw};
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::lab::Lab;

const WORDS: usize = FLOW_WAYS as usize * FlowKey4::ROW;

/// All of the map.
pub(crate) struct FlowMap {
    memory: MmapRaw,
    hash: FlowHash,
    vips: Array<MapData, Vip>,
    buckets: u32,
}

impl FlowMap {
    pub(crate) fn open(lab: &Lab) -> Self {
        let map = MapData::from_pin(lab.paths.map("flows4")).unwrap();
        let buckets = map.info().unwrap().max_entries();
        let memory =
            MmapOptions::new().len(buckets as usize * WORDS * 8).map_raw(map.fd().as_fd().as_raw_fd()).unwrap();
        Self { memory, hash: meta(lab).flow_hash, vips: array(lab, "vips"), buckets }
    }

    /// Puts a flow where a program would.
    pub(crate) fn insert(&self, key: &FlowKey4, flow: &Flow, now: u32) -> Stored {
        insert(self, key, self.hash(key), flow, now)
    }

    /// The same, of a virtual address whose row is empty, beside that of another one.
    pub(crate) fn insert_beside(&self, key: &FlowKey4, vip: u16, flow: &Flow, now: u32) -> Stored {
        insert(self, key, self.hash(&FlowKey4 { vip, ..*key }), flow, now)
    }

    /// Makes the table refuse every flow, as if programs were writing to all rows.
    pub(crate) fn refuse(&self) {
        // Of a hash that no flow has.
        let busy = u64::from(FlowState::BUSY) | u64::from(u32::MAX) << 32;
        let rows = (0..self.buckets).filter_map(|bucket| self.bucket(bucket));
        rows.for_each(|row| {
            (0..FLOW_WAYS as usize).for_each(|way| row.store(way * FlowKey4::ROW + FlowKey4::HEAD, busy))
        });
    }

    /// The row of a flow, where a program would find it.
    pub(crate) fn find(&self, key: &FlowKey4) -> Option<FlowRef> {
        find(self, key, self.hash(key), Match::Whole)
    }

    fn hash(&self, key: &FlowKey4) -> u32 {
        key.hash(self.vips.get(&key.vip.into(), 0).unwrap().salt, self)
    }

    /// Everything that stands there, read without the protocol: for when nobody writes.
    pub(crate) fn flows(&self) -> Vec<(FlowKey4, Flow)> {
        let mut all = vec![0_u64; self.buckets as usize * WORDS];
        // SAFETY: the mapping is that long.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.as_mut_ptr().cast(), all.as_mut_ptr(), all.len()) };
        let flow = |words: &[u64]| {
            let [key, head, origin, times] = *words else { unreachable!() };
            (bytemuck::cast(key), Flow::from_words([head, origin, times]))
        };
        let flows = all.chunks(FlowKey4::ROW).map(flow);
        flows.filter(|(_, flow)| flow.state.0 & FlowState::STATUS == FlowState::LIVE).collect()
    }
}

impl Memory<FlowKey4> for FlowMap {
    type Words = RawWords;

    fn bucket(&self, index: u32) -> Option<RawWords> {
        // SAFETY: the index is below the number of buckets, and the mapping lives as long as `self`.
        (index < self.buckets)
            .then(|| unsafe { RawWords::new(self.memory.as_mut_ptr().cast::<u64>().add(index as usize * WORDS)) })
    }

    fn mask(&self) -> u32 {
        self.buckets - 1
    }

    fn hash_key(&self, index: usize) -> u64 {
        self.hash.0[index]
    }

    fn order(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// The row of `vips` of the service at this IPv4 address, as a packet finds it.
pub(crate) fn vip_row(lab: &Lab, address: [u8; 4], port: u16, protocol: u8) -> Option<u16> {
    let heads: Array<_, [u32; 2]> = array(lab, "vip_index");
    let vips: Array<_, Vip> = array(lab, "vips");
    let (addr, port) = (Addr::v4(address), Be16::new(port));
    let head = endpoint_hash(&addr, port, protocol) & (2 * heads.len() - 1);
    let mut link = heads.get(&(head / 2), 0).unwrap()[head as usize % 2];
    loop {
        let row = vips.get(&link.checked_sub(1)?, 0).unwrap();
        if (row.key.addr, row.key.port, row.key.protocol) == (addr, port, protocol) {
            return Some(link as u16 - 1);
        }
        link = row.next;
    }
}

pub(crate) fn array<T: aya::Pod>(lab: &Lab, name: &str) -> Array<MapData, T> {
    MapData::from_pin(lab.paths.map(name)).and_then(Map::from_map_data).unwrap().try_into().unwrap()
}

pub(crate) fn meta(lab: &Lab) -> Meta {
    array(lab, "meta").get(&0, 0).unwrap()
}
