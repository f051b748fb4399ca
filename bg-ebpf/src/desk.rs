//! Where a packet is laid that has to be looked at more closely.
//!
//! The stack of a program is 512 octets for a whole chain of calls. So what opens flows, and what asks for routes, works in
//! memory that a CPU has for the one packet that it is at. Pointers do not lie here: the verifier would take
//! them for numbers.

use crate::{
    forward::LiveReading,
    headers::{Headers, IpVersion},
    tables::{RouteQuery, Tables},
};
use bg_common::{Flow, NextHop, TableSpan};

/// Words of a desk.
pub const WORDS: usize = 64;

/// All that is worked on. Only what the code at hand has put there means something. The question comes first, at a place
/// that does not depend on the version of IP: the tc program reads the next hop there.
#[repr(C)]
pub struct Desk<V: IpVersion> {
    /// A question to the kernel's routes; after the answer its destination is the next hop's address.
    pub query: RouteQuery,
    /// What the packet says.
    pub headers: Headers<V>,
    /// The clock.
    pub now: u32,
    /// The live word that was read for the packet.
    pub reading: LiveReading,
    /// Whether this host itself has sent it.
    pub is_own: bool,
    /// Whether there is an entry under its five-tuple.
    pub is_known: bool,
    /// Where the backends of its colour stand.
    pub backends: TableSpan,
    /// Which of them is taken.
    pub hash: u32,
    /// Whether an answer may be the first of a flow that is not ours.
    pub begins: bool,
    /// [`bg_common::FlowState::IDENTITY`] of the entry that an answer was found by.
    pub identity: u32,
    /// The packet's five-tuple.
    pub key: V::Key,
    /// The five-tuple of the other direction.
    pub other_key: V::Key,
    /// The five-tuple of another flow, whose other direction looks the same.
    pub others_key: V::Key,
    /// An entry to store under the first.
    pub new_flow: Flow,
    /// An entry to store under the second.
    pub new_other: Flow,
    /// The answer to the question.
    pub hop: NextHop,
}

/// This CPU's desk.
#[inline(always)]
pub fn desk<V: IpVersion>(tables: &impl Tables) -> Option<*mut Desk<V>> {
    const { assert!(size_of::<Desk<V>>() <= 8 * WORDS && align_of::<Desk<V>>() <= 8) };
    Some(tables.desk()?.cast())
}
