//! What the engine asks of the world around it: maps, clock and routes.
//!
//! In the kernel these are BPF maps and helpers (`kernel/`), on the host plain collections. The trait is
//! monomorphised, so the seam costs nothing.

use crate::{
    flow::{
        key::FlowVersion,
        memory::{Memory, RawWords},
    },
    step::Step,
    wire::headers::{V4, V6},
};
use bg_common::{
    Addr, Backend, ClockId, Conditions, DeploymentRow, Event, Family, FlowKey4, FlowKey6, LiveWord, NextHop,
    ServiceKey, ServiceRow, SwitchTerms, TesterKey, Timing, Tunnel, Vip,
};

/// A route look-up.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouteCall {
    /// Source address of the packet.
    pub src: Addr,
    /// Destination address of the packet. The answer puts the next hop's address in its place.
    pub dst: Addr,
    /// Family of the destination. An IPv4 packet may have a next hop with an IPv6 address.
    pub family: Family,
    /// The answer; see [`NextHop::is_resolved`]. [`NextHop::NONE`]: the host's stack has to find the way.
    pub hop: NextHop,
}

/// Words of the scratch buffer.
pub const SCRATCH_WORDS: usize = 48;

/// Maps, clock and routes.
pub trait World {
    /// Memory of the IPv4 flow table.
    fn flows4(&self) -> &impl Memory<FlowKey4, Words = RawWords>;
    /// Memory of the IPv6 flow table.
    fn flows6(&self) -> &impl Memory<FlowKey6, Words = RawWords>;
    /// The live word of a deployment as it stands there; [`crate::policy::timed::read`] reads the one in force. Its terms are read
    /// by [`crate::policy::lifetime::terms`].
    fn live(&self, deployment: u16) -> Option<LiveWord>;
    /// The word in force, by [`crate::policy::timed::settle`].
    fn settle(&self, deployment: u16, word: LiveWord, judges: bool) -> LiveWord;
    /// The terms of the generation that uses `slot`.
    fn terms(&self, deployment: u16, slot: usize) -> Option<SwitchTerms>;
    /// The conditions of the generation that uses `slot`: a [`bg_common::Trips`].
    fn trips(&self, _deployment: u16, _slot: usize) -> Option<RawWords> {
        None
    }
    /// Stores [`SwitchTerms::ended_before`] of a word whose drain is over, then replaces the word, if it is still there.
    fn end_drain(&self, deployment: u16, word: LiveWord, settled: LiveWord, ended_before: [u32; 2]);
    /// Loads before it come before loads after it. Nothing, where one thread runs.
    fn order(&self) {}
    /// A row of what refused connections are remembered by, below [`bg_common::REFUSAL_ROWS`]; see [`crate::policy::refusals`].
    fn refusals(&self, _row: u32) -> u64 {
        0
    }
    /// Stores such a row. Whoever stores one at the same moment may be forgotten.
    fn set_refusals(&self, _row: u32, _names: u64) {}
    /// Settings of a deployment.
    fn deployment(&self, deployment: u16) -> Option<&DeploymentRow>;
    /// Head of `vip_index` for a hash.
    fn vip_head(&self, hash: u32) -> u32;
    /// Row `2 * service + role` of the virtual addresses.
    fn vip(&self, row: u32) -> Option<*const Vip>;
    /// Head of `backend_index` for a hash.
    fn backend_head(&self, hash: u32) -> u32;
    /// A backend's row.
    fn backend(&self, slot: u32) -> Option<*mut Backend>;
    /// How packets to a backend are encapsulated.
    fn tunnel(&self, _slot: u32) -> Option<*const Tunnel> {
        None
    }
    /// The service at a virtual address.
    fn service(&self, key: &ServiceKey) -> Option<&ServiceRow>;
    /// Entry of the flat Maglev array: a backend's slot.
    fn maglev(&self, entry: u32) -> Option<u32>;
    /// A row of the numbered next hops, as three words.
    fn numbered_hop(&self, number: u32) -> Option<RawWords>;
    /// The number of a next hop towards clients: [`next_hop::number_of`](crate::egress::next_hop::number_of).
    fn hop_number(&self, ifindex_and_dmac: u64, mtu_and_smac: u64) -> u32;
    /// Whether a tester prefix of the deployment covers the address.
    fn is_tester(&self, key: &TesterKey) -> bool;
    /// Whether a frame to this MAC address, met on the way in, is one that the host's stack would take.
    fn is_addressed_here(&self, destination: u64) -> bool;
    /// Asks the kernel's routes.
    fn route(&self, call: &mut RouteCall);
    /// Prepares that the frame leaves by an interface, if that takes redirected frames at this hook.
    fn prepare_redirect(&self, ifindex: u32) -> bool;
    /// Memory for a route look-up of the packet that this CPU processes.
    fn route_call(&self) -> Option<*mut RouteCall>;
    /// Memory for the slow path of the packet that this CPU processes: [`SCRATCH_WORDS`] words. Pointers do not lie here: the
    /// verifier would take them for numbers.
    fn scratch(&self) -> Option<*mut u64>;
    /// Payload bytes of each segment that the frame will be cut into, if it is a GSO frame; else zero.
    fn gso_size(&self) -> u32 {
        0
    }
    /// Whether the frame has a VLAN tag that is not among its bytes.
    fn is_tagged(&self) -> bool {
        false
    }
    /// Whether this host itself has sent the frame, which came by its loopback interface.
    fn is_own(&self) -> bool {
        false
    }
    /// [`bg_common::Timing::hold_until`] of the generation that uses `slot`.
    fn hold_until(&self, _deployment: u16, _slot: usize) -> u64 {
        0
    }
    /// Nanoseconds of `CLOCK_BOOTTIME`. Reading it takes longer than the coarse clock.
    fn boot_ns(&self) -> u64 {
        0
    }
    /// Replaces the live word of a deployment whose freeze is over, if it is still there.
    fn end_hold(&self, _deployment: u16, _word: LiveWord, _thawed: LiveWord) {}
    /// Keeps the packet, which would open a flow of a frozen deployment, and says what has become of it. `None`: it goes on,
    /// since it is played back, or nobody waits any more.
    fn hold(&self, _deployment: u16) -> Option<Event> {
        None
    }
    /// Whether the packet was held in the queue of this deployment, and is being played back. It has lost the route that it had from the loopback
    /// interface.
    fn is_played_back(&self, _deployment: u16) -> bool {
        false
    }
    /// The colour that the packet is a copy for, plus one; zero if it is none. Whoever has it next cannot tell any more.
    fn copy_for(&self) -> u32 {
        0
    }
    /// Has a copy of the packet, which is not modified yet, come by this hook for this colour. Whether there will be one.
    fn copy(&self, _colour: u8) -> bool {
        false
    }
    /// Counts a copy that is sent to a backend of a service and colour.
    fn count_copy(&self, _service: u16, _colour: u8) {}
    /// Whether an ICMP error may be sent now, by [`crate::policy::error_rate`]. It counts as sent. Those that tell what fits have a limit of their own.
    fn may_send_error(&self, _tells_size: bool) -> bool {
        true
    }
    /// The coarse clock, see [`bg_common::TICK_SHIFT`].
    fn tick(&self) -> u32;
    /// Notes a step that decides something. The engine calls it by `note!`.
    fn note(&self, _step: Step) {}
    /// Notes when a new flow was decided: by the word of the switch that is being made, or by an older one.
    fn note_decision(&self, _deployment: u16, _is_by_new_word: bool) {}
    /// Counts an event.
    fn count(&self, event: Event);
    /// Counts a flow of a service and colour that a packet has opened.
    fn count_flow(&self, service: u16, colour: u8);
    /// Counts a packet of a service and colour.
    fn count_packet(&self, service: u16, colour: u8, bytes: u64);
}

/// Whether steps are noted: on the host, and in the object that explains.
pub(crate) const EXPLAINS: bool = cfg!(any(feature = "explain", not(target_arch = "bpf")));

/// Notes a step. In the object that packets meet it leaves no code: a call of an empty function would change what the compiler
/// makes of its surroundings.
macro_rules! note {
    ($world:expr, $step:expr) => {
        if $crate::world::EXPLAINS {
            $world.note($step);
        }
    };
}
pub(crate) use note;

/// What guards a word that has taken effect.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// [`bg_common::Trips::began_at`].
    pub began_at: u64,
    /// [`Timing::revert_at`].
    pub revert_at: u64,
    /// [`bg_common::Trips::paused_until`].
    pub paused_until: u64,
}

/// The live words with their terms and timings, for who changes them. Slots are those of [`LiveWord::terms_slot`].
pub trait Generations {
    /// The terms of the generation that uses `slot`.
    fn terms_of(&self, deployment: u16, slot: usize) -> Option<SwitchTerms>;
    /// The timing of the generation that uses `slot`. `activate_at` is read before the rest.
    fn timing(&self, deployment: u16, slot: usize) -> Option<Timing>;
    /// The tick.
    fn present_tick(&self) -> u32;
    /// Nanoseconds of a clock.
    fn now(&self, clock: ClockId) -> u64;
    /// The conditions that take back a word, and hold now.
    fn holding(&self, deployment: u16, word: LiveWord) -> Conditions;
    /// Stores when a drain of the word of `slot` ends and when it began, and then, if the word stays timed, what guards it, and last that it has
    /// taken effect. All who do this at once store nearly the same.
    fn activate(&self, deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>);
    /// Stores terms and timing of a generation that is about to be.
    fn prepare(&self, deployment: u16, slot: usize, terms: &SwitchTerms, timing: &Timing);
    /// Replaces a word, if it is still there. Returns the word that is there then.
    fn exchange(&self, deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord;
}

/// Finds the flow table for a version of IP.
pub trait Flows: FlowVersion {
    /// Its memory.
    fn flows<W: World>(world: &W) -> &impl Memory<Self::Key, Words = RawWords>;
}

impl Flows for V4 {
    #[inline(always)]
    fn flows<W: World>(world: &W) -> &impl Memory<FlowKey4, Words = RawWords> {
        world.flows4()
    }
}

impl Flows for V6 {
    #[inline(always)]
    fn flows<W: World>(world: &W) -> &impl Memory<FlowKey6, Words = RawWords> {
        world.flows6()
    }
}
