//! The same bytes to the engine as it is built for the host, and to the loaded program: the two must
//! agree in verdict, bytes and state.
//!
//! A [`Scenario`] is the content of all maps. [`Host`] holds it in plain collections, [`Kernel`] in the maps of a
//! loaded object that is attached to nothing and run by `BPF_PROG_TEST_RUN`.

mod host;
mod kernel;
mod scenario;

pub use host::Host;
pub use kernel::{Kernel, Program};
pub use scenario::{BackendAt, Scenario, ServiceAt, TICKS_LONG};

use bg_common::{Flow, FlowKey4, FlowKey6, FlowState};
use bg_ebpf::Action;
use std::collections::BTreeMap;

/// What came of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict's action.
    pub action: Action,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

/// All flow entries, by their key's bytes, with what depends on the moment left out.
pub type Flows = BTreeMap<Vec<u8>, Flow>;

/// A key and its entry as [`Flows`] holds them: without ticks, cached next hops, and what is the table's business.
fn comparable(key: &[u8], flow: Flow) -> (Vec<u8>, Flow) {
    let state = FlowState(flow.state.0 & !FlowState::IDENTITY);
    let note = match state {
        state if state.has(FlowState::REPLY) => 0,
        // Half of it may be the tick at which a doubtful SYN came.
        state if state.has(FlowState::ESTABLISHED) => flow.note >> 16,
        _ => flow.note,
    };
    (key.to_vec(), Flow { state, last_seen: 0, note, ..flow })
}

/// Keys of both tables as bytes.
fn key4(key: &FlowKey4) -> &[u8] {
    bytemuck::bytes_of(key)
}

fn key6(key: &FlowKey6) -> &[u8] {
    bytemuck::bytes_of(key)
}
