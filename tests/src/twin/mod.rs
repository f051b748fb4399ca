//! Feeding the same bytes to the engine's host build and to the loaded programs. Both must
//! agree in verdict, bytes and state.
//!
//! A [`Scenario`] is the content of all maps. [`Host`] has it in plain collections, [`Kernel`] in the maps of a
//! loaded object that is not attached, and whose programs `BPF_PROG_TEST_RUN` runs.

mod bytes;
mod copies;
mod explainer;
mod host;
mod kernel;
mod scenario;
mod table;

pub use explainer::Explainer;
pub use host::Host;
pub use kernel::{FRESH, Kernel, Program, Sizes};
pub use scenario::{BackendAt, Indexed, OUTER_V4, OUTER_V6, Scenario, ServiceAt, TICKS_LONG};
pub use table::FlowMemory;

use bg_common::{Addr, Be16, CachedHop, Flow, FlowKey4, FlowKey6, FlowState};
use bg_ebpf::Action;
use std::{collections::BTreeMap, net::IpAddr};

/// The result for a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict's action.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// The key of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowOf {
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub port: u16,
    /// The row of `vips` to which it sends.
    pub vip: u16,
}

/// All flows, without the parts that depend on time.
pub type Flows = BTreeMap<FlowOf, Flow>;

/// The flows of both tables, whose rows are given as words. Panics if two rows have the same key.
fn flows_of(
    rows4: impl IntoIterator<Item = impl AsRef<[u64]>>,
    rows6: impl IntoIterator<Item = impl AsRef<[u64]>>,
) -> Flows {
    let flows4 = rows4.into_iter().filter_map(|row| flow4(row.as_ref()));
    let flows6 = rows6.into_iter().filter_map(|row| flow6(row.as_ref()));
    let mut flows = Flows::new();
    for (of, flow) in flows4.chain(flows6) {
        assert_eq!(flows.insert(of, comparable(flow)), None, "two rows of {of:?}");
    }
    flows
}

/// A row of `flows4`: the word of the key, then those of the flow; see the documentation of the pinned ABI.
fn flow4(row: &[u64]) -> Option<(FlowOf, Flow)> {
    let key: FlowKey4 = bytemuck::cast(row[0]);
    let client = IpAddr::from(key.client.to_ne_bytes());
    Some((FlowOf { client, port: key.port.host(), vip: key.vip }, table::live_flow(row, 1)?))
}

/// A row of `flows6`: the three words of the key, then those of the flow, and two more.
fn flow6(row: &[u64]) -> Option<(FlowOf, Flow)> {
    let key: FlowKey6 = bytemuck::cast([row[0], row[1], row[2]]);
    assert_eq!(key.reserved, 0);
    let client = IpAddr::from(key.client.octets());
    Some((FlowOf { client, port: key.port.host(), vip: key.vip }, table::live_flow(row, 3)?))
}

/// A flow without ticks, the cached next hop, and the parts that only the table uses.
fn comparable(flow: Flow) -> Flow {
    let state = FlowState(flow.state.0 & !FlowState::IDENTITY);
    // Half of it is the tick at which a doubtful SYN came.
    let note = if state.has(FlowState::DOUBTFUL) { flow.note >> 16 } else { flow.note };
    Flow { state, last_seen: 0, note, hop: CachedHop::default(), ..flow }
}

impl FlowOf {
    /// The key of an IPv4 client's flow.
    pub fn key4(self) -> Option<FlowKey4> {
        let IpAddr::V4(client) = self.client else { return None };
        Some(FlowKey4 { client: u32::from_ne_bytes(client.octets()), port: Be16::new(self.port), vip: self.vip })
    }

    /// The key of an IPv6 client's flow.
    pub fn key6(self) -> Option<FlowKey6> {
        let IpAddr::V6(client) = self.client else { return None };
        Some(FlowKey6 { client: Addr::v6(client.octets()), reserved: 0, port: Be16::new(self.port), vip: self.vip })
    }
}
