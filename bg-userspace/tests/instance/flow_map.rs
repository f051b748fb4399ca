//! The pinned `flows4` as the programs see it, to be filled and looked at by tests.

use aya::maps::{Array, Map, MapData};
use bg_common::{FLOW_WAYS, Flow, FlowHash, FlowKey4, FlowState, Meta};
use bg_ebpf::{
    flow_ref::{FlowRef, RawWords},
    flow_table::{self, Memory, Stored, Tuple as _},
};
use memmap2::{MmapOptions, MmapRaw};
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::lab::Lab;

const WORDS: usize = FLOW_WAYS as usize * FlowKey4::ENTRY;

/// All of the map.
pub(crate) struct FlowMap {
    memory: MmapRaw,
    hash: FlowHash,
    buckets: u32,
}

impl FlowMap {
    pub(crate) fn open(lab: &Lab) -> Self {
        let map = MapData::from_pin(lab.paths.map("flows4")).unwrap();
        let buckets = map.info().unwrap().max_entries();
        let memory =
            MmapOptions::new().len(buckets as usize * WORDS * 8).map_raw(map.fd().as_fd().as_raw_fd()).unwrap();
        Self { memory, hash: meta(lab).flow_hash, buckets }
    }

    /// Puts a flow where a program would.
    pub(crate) fn insert(&self, key: &FlowKey4, flow: &Flow, now: u32) -> Stored {
        flow_table::insert(self, key, flow, now)
    }

    /// The entry of a five-tuple, where a program would find it.
    pub(crate) fn find(&self, key: &FlowKey4) -> Option<FlowRef> {
        flow_table::find(self, key)
    }

    /// Everything that stands there, read without the protocol: for when nobody writes.
    pub(crate) fn entries(&self) -> Vec<(FlowKey4, Flow)> {
        let mut all = vec![0_u64; self.buckets as usize * WORDS];
        // SAFETY: the mapping is that long.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.as_mut_ptr().cast(), all.as_mut_ptr(), all.len()) };
        let entry = |words: &[u64]| {
            let flow = Flow::from_words([words[1], words[2], words[3]]);
            let protocol = if flow.state.has(FlowState::UDP) { 17 } else { 6 };
            (FlowKey4 { src: words[0] as u32, dst: (words[0] >> 32) as u32, ports: flow.ports, protocol }, flow)
        };
        let entries = all.chunks(FlowKey4::ENTRY).map(entry);
        entries.filter(|(_, flow)| flow.state.0 & FlowState::STATUS == FlowState::LIVE).collect()
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

pub(crate) fn meta(lab: &Lab) -> Meta {
    let map = MapData::from_pin(lab.paths.map("meta")).and_then(Map::from_map_data).unwrap();
    Array::<_, Meta>::try_from(map).unwrap().get(&0, 0).unwrap()
}
