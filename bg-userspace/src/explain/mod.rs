//! What the data path does with a packet, and why: the same engine is run on it, on the maps of the running instance, and tells its steps.
//!
//! Nothing is left behind. The programs that explain write to no map of the instance (see `bg_ebpf::flow::memory`), are attached
//! nowhere and go with the command. The kernel sends nothing: a test run returns the frame.
//!
//! A packet may meet several programs, one after the other: what XDP leaves to tc, tc gets, and what the host's stack sends on meets the
//! egress program of the interface that it leaves by.

mod flags;
mod frame;
mod names;
mod programs;
mod request;
mod sentence;

use std::net::SocketAddr;

use bg_common::{Event, FlowState, NextHop, Protocol, Role};
use bg_ebpf::{Action, step::Step};
use serde::Serialize;

pub use flags::TcpFlags;
pub use frame::Packet;
pub use request::ExplainRequest;
pub use sentence::Explained;

use self::{
    frame::Numbers,
    names::Names,
    programs::{Hook, Programs, Run},
    sentence::Teller,
};
use crate::{
    AttachedMode, Error, Instance, InterfaceState,
    attach::attached_interfaces,
    json,
    net::{self, Interface, LOOPBACK, next_hop},
    pins,
};

/// What the data path does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The packet's source.
    pub from: SocketAddr,
    /// The packet's destination.
    pub to: SocketAddr,
    /// Its transport protocol.
    #[serde(serialize_with = "json::protocol")]
    pub protocol: Protocol,
    /// Flags of a TCP segment.
    pub flags: Option<TcpFlags>,
    /// The programs that it meets, in this order.
    pub hooks: Vec<AtHook>,
    /// What becomes of it: the verdict of the last program.
    pub verdict: &'static str,
    /// The interface that it leaves by, if a program sends it.
    pub interface: Option<String>,
    /// The packet afterwards.
    pub packet: Packet,
}

/// What a program does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AtHook {
    /// `xdp`, `tc ingress` or `tc egress`.
    pub hook: &'static str,
    /// The interface.
    pub interface: String,
    /// The steps that decide.
    pub steps: Vec<Explained>,
    /// `pass`, `defer`, `deliver`, `redirect`, `resolve`, `to_self`, `reset`, `refuse`, `hold` or `drop`.
    pub verdict: &'static str,
}

/// Where a packet is met first.
struct Start {
    hook: Hook,
    interface: Interface,
}

impl Instance {
    /// What the data path does with a packet. Changes nothing.
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation, Error> {
        pins::check_own_namespace(&self.paths)?;
        if request.from.is_ipv4() != request.to.is_ipv4() {
            let what = format!("{} and {} are of different families", request.from, request.to);
            return Err(Error::Unrepresentable { what });
        }
        let names = Names::open(&self.paths, &self.words, net::interfaces()?)?;
        let start = self.meets_first(request, &names)?;
        let is_to_vip = is_vip(request.to, request.protocol, &names);
        let flags = match request.protocol {
            Protocol::Udp => None,
            Protocol::Tcp => Some(request.flags.unwrap_or(if is_to_vip { TcpFlags::SYN } else { TcpFlags::ACK })),
        };
        let mut programs = Programs::load(&self.paths)?;
        let mut explanation = Explanation {
            from: request.from,
            to: request.to,
            protocol: request.protocol,
            flags,
            hooks: Vec::new(),
            verdict: "pass",
            interface: None,
            packet: Packet::read(&frame::build(request, 0, Numbers::default(), [0; 6]))
                .ok_or_else(|| Error::Unrepresentable { what: "the packet cannot be built".to_owned() })?,
        };
        let mac = start.interface.mac.unwrap_or_default();
        let build = |numbers| frame::build(request, flags.map_or(0, |flags| flags.0), numbers, mac);
        let mut at = Some((start.hook, start.interface));
        let mut numbers = Numbers { sequence: 1, acknowledgment: 1 };
        while let Some((hook, interface)) = at.take() {
            let mut run = programs.run(hook, interface.index, &build(numbers))?;
            if let Some(known) = numbers_of(&run.steps, is_to_vip) {
                numbers = known;
                run = programs.run(hook, interface.index, &build(numbers))?;
            }
            let action = self.add_hook(&run, hook, &interface, request, &names, &mut explanation);
            at = self.meets_next(hook, action, &run.steps, interface, request, &names)?;
        }
        Ok(explanation)
    }

    /// Adds what a program has done to the explanation. Returns its verdict's action.
    fn add_hook(
        &self,
        run: &Run,
        hook: Hook,
        interface: &Interface,
        request: &ExplainRequest,
        names: &Names<'_>,
        explanation: &mut Explanation,
    ) -> u64 {
        let begin =
            run.steps.iter().find_map(|step| if let Step::Begin { now, .. } = step { Some(*now) } else { None });
        let (action, ifindex) = match run.steps.last() {
            Some(Step::Verdict { action, ifindex }) => (*action, *ifindex),
            _ => (Action::Pass as u64, 0),
        };
        let now = begin.unwrap_or_default() as u32;
        let is_held = run.steps.contains(&Step::Counted { event: Event::Held as u64 });
        let teller = Teller { names, request, tick_length: self.tick_length, hook, now, is_held };
        let (verdict, _) = teller.verdict(action, ifindex);
        let before = std::iter::once(None).chain(run.steps.iter().copied().map(Some));
        let steps = std::iter::zip(before, &run.steps).map(|(before, step)| as_meant(before, *step));
        let mut steps: Vec<_> = steps.filter_map(|step| teller.tell(step)).collect();
        // The engine may ask the same twice, for a packet that it cannot decide at once.
        steps.dedup();
        explanation.hooks.push(AtHook { hook: hook.name(), interface: interface.name.clone(), steps, verdict });
        explanation.verdict = verdict;
        explanation.interface = (ifindex != 0 && action != Action::TooBig as u64).then(|| names.interface(ifindex));
        if let Some(packet) = Packet::read(&run.frame) {
            explanation.packet = packet;
        }
        action
    }

    /// The program that the packet meets next.
    fn meets_next(
        &self,
        hook: Hook,
        action: u64,
        steps: &[Step],
        interface: Interface,
        request: &ExplainRequest,
        names: &Names<'_>,
    ) -> Result<Option<(Hook, Interface)>, Error> {
        let is_unmodified = action == Action::Pass as u64 || action == Action::Defer as u64;
        if hook == Hook::Xdp && is_unmodified {
            return Ok(Some((Hook::TcIngress, interface)));
        }
        let is_for_egress = hook == Hook::TcIngress && steps.contains(&Step::ForEgress {});
        if !is_for_egress {
            return Ok(None);
        }
        // Without a route the stack sends it nowhere.
        let Ok(hop) = next_hop(request.to.ip()) else { return Ok(None) };
        let attached = attached_interfaces(&self.paths)?;
        let out = names.interfaces.iter().find(|interface| interface.index == hop.ifindex);
        let is_attached =
            |out: &&Interface| attached.iter().any(|on| on.name == out.name && on.state == InterfaceState::Attached);
        Ok(out.filter(is_attached).map(|out| (Hook::TcEgress, out.clone())))
    }

    /// Where the packet is met first.
    fn meets_first(&self, request: &ExplainRequest, names: &Names<'_>) -> Result<Start, Error> {
        let attached = attached_interfaces(&self.paths)?;
        // The way back to its source. A packet of this host itself, other than to a virtual address, is on its way out.
        let is_own = next_hop(request.from.ip()).is_ok_and(|hop| hop.ifindex == LOOPBACK);
        let is_out = is_own && !is_vip(request.to, request.protocol, names);
        let interface = match &request.interface {
            Some(name) => net::interface(name)?,
            None => {
                let way = if is_out { request.to.ip() } else { request.from.ip() };
                let hop = next_hop(way).map_err(|_| Error::Unrepresentable {
                    what: format!(
                        "this host has no route to {way}, which would tell the interface: name it with --iface"
                    ),
                })?;
                let found = names.interfaces.iter().find(|interface| interface.index == hop.ifindex);
                found.cloned().unwrap_or_default()
            }
        };
        let on = attached.iter().find(|it| it.name == interface.name && it.state == InterfaceState::Attached);
        let Some(on) = on else {
            let attached = attached.into_iter().map(|interface| interface.name).collect();
            return Err(Error::NotAttached { interface: interface.name, attached });
        };
        let hook = match on.mode {
            _ if is_out => Hook::TcEgress,
            AttachedMode::Native | AttachedMode::Generic => Hook::Xdp,
            AttachedMode::Tc => Hook::TcIngress,
        };
        Ok(Start { hook, interface })
    }
}

/// The numbers of a segment that belongs to the flow which was found, if the engine looks at them: until the client has confirmed the
/// connection, it compares the sequence number of a SYN, and the number that a backend acknowledges.
fn numbers_of(steps: &[Step], is_to_vip: bool) -> Option<Numbers> {
    let note = steps.iter().find_map(|step| match *step {
        Step::Flow { state, note, .. } if !FlowState(state as u32).has(FlowState::CONFIRMED) => Some(note as u32),
        _ => None,
    })?;
    let sequence = u32::from_be(note);
    Some(if is_to_vip {
        Numbers { sequence, acknowledgment: 1 }
    } else {
        Numbers { sequence: 1, acknowledgment: sequence.wrapping_add(1) }
    })
}

/// XDP is told no MTU of a way whose next hop is not resolved, so each packet seems to be too big for it. What keeps it from redirecting the packet
/// is the next hop.
fn as_meant(before: Option<Step>, step: Step) -> Step {
    match (before, step) {
        (Some(Step::Route { ifindex_and_dmac, mtu_and_smac }), Step::ByStack { event })
            if event == Event::TooBig as u64 =>
        {
            let hop = NextHop { ifindex_and_dmac, mtu_and_smac, ..NextHop::NONE };
            if hop.is_resolved() || hop.mtu() != 0 { step } else { Step::NoRedirect { ifindex: hop.ifindex().into() } }
        }
        _ => step,
    }
}

fn is_vip(address: SocketAddr, protocol: Protocol, names: &Names<'_>) -> bool {
    let published = names.tables.services.published().unwrap_or_default();
    published.iter().any(|(key, row)| {
        let role = row.role == Role::Vip as u8 || row.role == Role::Preview as u8;
        role && crate::running::address_of(key) == address && key.protocol == protocol as u8
    })
}
