//! Access to entries that other CPUs and user space share.
//!
//! Rows of the flow tables and of `backends` are read and written in place, without a lock, while
//! others do the same. So they are never borrowed: each field is read or written by one volatile
//! access, and each field is one of which any mixture of old and new is harmless (argued where it is
//! declared, in `bg-common`).

use crate::headers::IpVersion;
use bg_common::{Addr, Backend, Be16, Flow, FlowRole, Identity, NextHop, TcpState};

macro_rules! read {
    ($row:expr, $($field:tt)+) => {
        // SAFETY: the tables hand out pointers to whole rows that live as long as the program runs;
        // the type of each field is valid for any bytes.
        unsafe { (&raw const (*$row).$($field)+).read_volatile() }
    };
}

macro_rules! write {
    ($row:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for reading.
        unsafe { (&raw mut (*$row).$($field)+).write_volatile($value) }
    };
}

/// An entry of a flow table.
#[derive(Clone, Copy)]
pub struct FlowRef(pub *mut Flow);

impl FlowRef {
    /// Slot of the backend.
    #[inline(always)]
    pub fn backend(self) -> u32 {
        read!(self.0, backend)
    }

    /// Epoch of the backend's slot when the flow was opened.
    #[inline(always)]
    pub fn epoch(self) -> u32 {
        read!(self.0, epoch)
    }

    /// Generation that opened it.
    #[inline(always)]
    pub fn generation(self) -> u32 {
        read!(self.0, generation)
    }

    /// Sequence number of its SYN.
    #[inline(always)]
    pub fn isn(self) -> u32 {
        read!(self.0, isn)
    }

    /// Index of the service.
    #[inline(always)]
    pub fn service(self) -> u16 {
        read!(self.0, service)
    }

    /// Index of the deployment.
    #[inline(always)]
    pub fn deployment(self) -> u16 {
        read!(self.0, deployment)
    }

    /// Bits of [`FlowRole`].
    #[inline(always)]
    pub fn role(self) -> u8 {
        read!(self.0, role)
    }

    /// Whether it is the entry of the reply direction.
    #[inline(always)]
    pub fn is_reply(self) -> bool {
        self.role() & FlowRole::REPLY != 0
    }

    /// Colour of the backend, as a number.
    #[inline(always)]
    pub fn colour(self) -> u8 {
        read!(self.0, colour)
    }

    /// Both ends' [`TcpState`]: client, backend.
    #[inline(always)]
    pub fn states(self) -> (u8, u8) {
        (read!(self.0, client_state), read!(self.0, backend_state))
    }

    /// Whether either end has reset the connection or both have finished it.
    #[inline(always)]
    pub fn connection_ended(self) -> bool {
        let (client, backend) = self.states();
        TcpState::ended(client, backend)
    }

    /// Whether both are entries of one flow: the same backend, in the same life of its slot.
    #[inline(always)]
    pub fn is_flow_of(self, other: Self) -> bool {
        self.backend() == other.backend() && self.epoch() == other.epoch()
    }

    /// Whether the client has answered the backend's SYN.
    #[inline(always)]
    pub fn is_established(self) -> bool {
        self.states().0 & TcpState::ESTABLISHED != 0
    }

    /// Notes a SYN that does not belong to the connection.
    #[inline(always)]
    pub fn note_syn(self, sequence: u32) {
        write!(self.0, sequence, isn);
    }

    /// For a reply entry: its flow is over, and it rewrites nothing any more.
    #[inline(always)]
    pub fn retire(self) {
        self.add_backend_state(TcpState::RESET);
    }

    /// What the entry of the other direction would hold, had it not been lost.
    #[inline(always)]
    pub fn other_direction(self) -> Flow {
        Flow {
            backend: self.backend(),
            epoch: self.epoch(),
            generation: self.generation(),
            last_seen: read!(self.0, last_seen),
            isn: self.isn(),
            service: self.service(),
            deployment: self.deployment(),
            role: self.role() ^ FlowRole::REPLY,
            colour: self.colour(),
            client_state: read!(self.0, client_state),
            backend_state: 0,
            reserved: 0,
            next_hop: NextHop::NONE,
        }
    }

    /// Notes what the client's end has shown. Writes only news.
    #[inline(always)]
    pub fn add_client_state(self, bits: u8) {
        let old = read!(self.0, client_state);
        if old | bits != old {
            write!(self.0, old | bits, client_state);
        }
    }

    /// Notes what the backend's end has shown. Writes only news.
    #[inline(always)]
    pub fn add_backend_state(self, bits: u8) {
        let old = read!(self.0, backend_state);
        if old | bits != old {
            write!(self.0, old | bits, backend_state);
        }
    }

    /// Ticks since the last packet in this direction.
    #[inline(always)]
    pub fn idle(self, now: u32) -> u32 {
        let idle = now.wrapping_sub(read!(self.0, last_seen));
        // Another CPU may have seen a later tick than this one had read: that is no idleness.
        if idle > u32::MAX / 2 { 0 } else { idle }
    }

    /// Whether a packet in this direction was seen in this tick already.
    #[inline(always)]
    pub fn was_seen_at(self, now: u32) -> bool {
        read!(self.0, last_seen) == now
    }

    /// Notes a packet. Writes once a tick, so that a busy flow's line is not passed about.
    #[inline(always)]
    pub fn seen(self, now: u32) {
        if !self.was_seen_at(now) {
            write!(self.0, now, last_seen);
        }
    }

    /// Whether this is the flow's first packet in this direction for a span of sixteen ticks, one to ten
    /// seconds by the kernel's tick rate: the occasion to look after the other direction's entry.
    #[inline(always)]
    pub fn is_first_in_span(self, now: u32) -> bool {
        (read!(self.0, last_seen) ^ now) >> 4 != 0
    }

    /// Next hop towards the client.
    #[inline(always)]
    pub fn next_hop(self) -> HopCache {
        // SAFETY: a field of a row that lives as long as the program runs.
        HopCache(unsafe { &raw mut (*self.0).next_hop })
    }
}

/// A row of `backends`.
#[derive(Clone, Copy)]
pub struct BackendRef(pub *mut Backend);

impl BackendRef {
    /// Whose slot it is. One load: both halves change at once.
    #[inline(always)]
    pub fn identity(self) -> Identity {
        // SAFETY: an aligned field of eight octets, of a row that lives as long as the program runs.
        let word = unsafe { (&raw const (*self.0).identity).cast::<u64>().read_volatile() };
        Identity { epoch: word as u32, in_use: (word >> 32) as u32 }
    }

    /// Whether the slot still holds the backend that had this epoch.
    #[inline(always)]
    pub fn is(self, epoch: u32) -> bool {
        self.identity() == Identity { epoch, in_use: 1 }
    }

    /// Address.
    #[inline(always)]
    pub fn address<V: IpVersion>(self) -> V::Address {
        let address: Addr = read!(self.0, addr);
        V::narrow(&address)
    }

    /// Port.
    #[inline(always)]
    pub fn port(self) -> Be16 {
        read!(self.0, port)
    }

    /// [`bg_common::Mode`], as a number.
    #[inline(always)]
    pub fn mode(self) -> u8 {
        read!(self.0, mode)
    }

    /// Next hop towards it.
    #[inline(always)]
    pub fn next_hop(self) -> HopCache {
        // SAFETY: a field of a row that lives as long as the program runs.
        HopCache(unsafe { &raw mut (*self.0).next_hop })
    }
}

/// A cached next hop in a shared row; see [`NextHop`] for why it needs no lock.
#[derive(Clone, Copy)]
pub struct HopCache(*mut NextHop);

impl HopCache {
    /// Ticks that a look-up is trusted for: a quarter of a second to three, by the kernel's tick rate.
    const TRUSTED: u32 = 4;

    /// The cached look-up, if it is recent. `ifindex()` zero: the host's stack has to find the way.
    #[inline(always)]
    pub fn read(self, now: u32) -> Option<NextHop> {
        let learned = read!(self.0, learned);
        if now.wrapping_sub(learned) >= Self::TRUSTED {
            return None;
        }
        Some(NextHop {
            ifindex_and_dmac: read!(self.0, ifindex_and_dmac),
            mtu_and_smac: read!(self.0, mtu_and_smac),
            learned,
            reserved: 0,
        })
    }

    /// Keeps a look-up.
    #[inline(always)]
    pub fn write(self, hop: NextHop) {
        write!(self.0, hop.ifindex_and_dmac, ifindex_and_dmac);
        write!(self.0, hop.mtu_and_smac, mtu_and_smac);
        write!(self.0, hop.learned, learned);
    }
}
