//! Steps in words: one sentence each, and the values in it.

use std::{cmp::Ordering, time::Duration};

use bg_common::{Colour, Event, FlowBackend, FlowState, LiveFlags, LiveWord, Mode, NextHop, Role};
use bg_ebpf::{
    Action,
    flow::{row::idle, table::Stored},
    step::Step,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{frame::mac, names::Names, programs::Hook, request::ExplainRequest};
use crate::{
    config::{mode_name, protocol_name},
    flows,
    time::TickLength,
};

/// A step of a packet's way, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The step's name.
    pub step: &'static str,
    /// A sentence without its full stop.
    pub text: String,
    /// The values, by name.
    pub values: Map<String, Value>,
}

/// What sentences are made from.
pub(super) struct Teller<'a> {
    pub(super) names: &'a Names<'a>,
    pub(super) request: &'a ExplainRequest,
    pub(super) tick_length: TickLength,
    pub(super) hook: Hook,
    /// The tick at which the program ran.
    pub(super) now: u32,
    /// Whether the program keeps the packet until the thaw.
    pub(super) is_held: bool,
}

impl Teller<'_> {
    /// The sentence about a step. `None`: the step is told elsewhere.
    pub(super) fn tell(&self, step: Step) -> Option<Explained> {
        let (text, values) = self.sentence(step)?;
        let values = if let Value::Object(values) = values { values } else { Map::new() };
        Some(Explained { step: step.name(), text, values })
    }

    fn sentence(&self, step: Step) -> Option<(String, Value)> {
        let Self { names, request, hook, .. } = self;
        let protocol = protocol_name(request.protocol);
        let none = || json!({});
        let plain = |text: &str| Some((text.to_owned(), none()));
        match step {
            Step::Begin { .. } => None,
            // The frame is for the interface's address, so XDP does not know that one yet.
            Step::OtherMachine {} if *hook == Hook::Xdp => plain(
                "XDP has not learned the interface's MAC address yet: the first packet goes to tc, which learns it",
            ),
            Step::OtherMachine {} => plain("the frame is for another MAC address than the interface's"),
            Step::Vip { row } => {
                let vip = names.vip(row);
                let (what, role) = match vip.role {
                    Role::Vip => ("the virtual address", "vip"),
                    Role::Preview => ("the preview address", "preview"),
                };
                Some((
                    format!("{} is {what} of service {} of deployment {}", vip.endpoint(), vip.service, vip.deployment),
                    json!({"address": vip.address, "role": role, "service": vip.service, "deployment": vip.deployment}),
                ))
            }
            Step::NoVip {} => Some((format!("{}/{protocol} is no virtual address", request.to), none())),
            Step::Flow { backend, generation, state, last_seen, .. } => {
                self.flow(backend, generation, state, last_seen)
            }
            Step::NoFlow {} => Some((format!("no flow from {} is in the table", request.from), none())),
            Step::Continues {} => plain("the flow goes on at its backend"),
            Step::BackendGone {} => plain("that backend has been removed: the packet opens a new flow"),
            Step::EndedBySwitch { colour, generation, word, is_confined } => {
                let (colour, word) = (Colour::from_u8(colour as u8).name(), LiveWord(word));
                let new = word.generation();
                let text = if is_confined != 0 {
                    format!(
                        "the flow may only be on the idle colour, and {colour} is live since generation {new}: it has ended"
                    )
                } else {
                    format!(
                        "ended by the switch to generation {new}: the flow on {colour} was opened in generation {generation}"
                    )
                };
                Some((text, json!({"colour": colour, "opened_in": generation, "generation": new})))
            }
            Step::EndedByCommand {} => plain("the flow has been ended by a command, and who speaks is reset"),
            Step::Silent { last_seen } => {
                let silence = self.since(last_seen);
                let text = format!("the flow has timed out: its last packet came {} ago", human(silence));
                Some((text, json!({"idle_seconds": silence.as_secs()})))
            }
            Step::Reopens {} => plain("the SYN opens a new connection from the client's port"),
            Step::SynInside {} if *hook == Hook::Xdp => {
                plain("a SYN inside an established connection: XDP leaves it to tc, which notes it")
            }
            Step::SynInside {} => {
                plain("a SYN inside an established connection: it is noted, and the backend answers it")
            }
            Step::Refused {} => plain(
                "second chance: the backend has refused this connection, which the table did not know, so the other colour gets it",
            ),
            Step::Preview { deployment, word } => self.idle("preview address", deployment, LiveWord(word)),
            Step::Tester { deployment, word } => {
                self.idle(&format!("{} is a tester", request.from.ip()), deployment, LiveWord(word))
            }
            Step::Live { deployment, word, colour } => {
                self.live(deployment, LiveWord(word), Colour::from_u8(colour as u8))
            }
            Step::SecondChance { colour } => {
                let colour = Colour::from_u8(colour as u8).name();
                Some((
                    format!("second chance: {colour} gets the connection, which may be its own"),
                    json!({"colour": colour}),
                ))
            }
            Step::Backend { slot, entry, len } => {
                let backend = names.backend(slot);
                let colour = backend.colour.name();
                Some((
                    format!("backend {} of {colour}, by entry {entry} of {len} of the Maglev table", backend.address),
                    json!({"backend": backend.address, "colour": colour, "entry": entry, "entries": len}),
                ))
            }
            Step::Rival {} => plain(
                "the backend could not distinguish the flow from another one of this client: another entry is tried",
            ),
            Step::Unremembered {} => plain("the RST is sent on, but opens no flow"),
            Step::Opened { stored } => Some(match Stored::from_u32(stored as u32) {
                Stored::Yes => ("a new flow is opened".to_owned(), json!({"evicts": false})),
                Stored::Evicted => (
                    "a new flow is opened; the table is full there, so it evicts an open one".to_owned(),
                    json!({"evicts": true}),
                ),
                Stored::No => ("the table has no row for the flow: the packet is sent without one".to_owned(), none()),
            }),
            Step::DrainOver { deployment } => {
                let deployment = names.deployment(deployment);
                let text =
                    format!("the deadline of the drain of {deployment} has passed: a packet would end the drain now");
                Some((text, json!({"deployment": deployment})))
            }
            Step::FromBackend { slot } => {
                let backend = names.backend(slot);
                let (colour, endpoint) = (backend.colour.name(), format!("{}/{protocol}", backend.address));
                Some((
                    format!(
                        "{endpoint} is a backend of service {} of deployment {} ({colour})",
                        backend.service, backend.deployment
                    ),
                    json!({"backend": backend.address, "service": backend.service, "deployment": backend.deployment, "colour": colour}),
                ))
            }
            Step::NoReply {} => Some((format!("the packet is no reply of a flow from {}", request.to), none())),
            Step::Foreign {} => plain(
                "the packet belongs to a connection that the client has with the backend itself, not by the virtual address",
            ),
            Step::VipGone {} => plain("the preview address that the client has sent to was removed"),
            Step::Refusal {} => plain(
                "second chance: the backend refuses a connection that the table did not know, and the client does not get this reset",
            ),
            Step::Restored { row } => {
                let vip = names.vip(row);
                Some((format!("the source becomes {}", vip.endpoint()), json!({"source": vip.address})))
            }
            Step::Local {} if *hook == Hook::Xdp => {
                plain("the backend is an address of this host: XDP leaves the packet to tc")
            }
            Step::Local {} => plain("the backend is an address of this host"),
            Step::Own {} => plain("the client is this host"),
            Step::TtlSpent {} => plain("TTL spent: left to the host"),
            Step::CachedHop { ifindex_and_dmac, mtu_and_smac } => {
                self.hop("leaves by", NextHop { ifindex_and_dmac, mtu_and_smac, ..NextHop::NONE }, ", next hop known")
            }
            Step::Route { ifindex_and_dmac, mtu_and_smac } => self.hop(
                "the kernel's route leads out by",
                NextHop { ifindex_and_dmac, mtu_and_smac, ..NextHop::NONE },
                "",
            ),
            Step::MirrorByTc {} => {
                plain("the service has a mirror: XDP leaves the datagram to tc, which can send it twice")
            }
            Step::Mirror { colour } => {
                let colour = Colour::from_u8(colour as u8).name();
                let text =
                    format!("mirror: a copy goes to {colour}, the idle colour, and what that answers is dropped");
                Some((text, json!({"colour": colour})))
            }
            Step::MirrorAnswer { row } => {
                let vip = names.vip(row);
                Some((
                    format!(
                        "a backend of the other colour of service {} answers a copy of what the client has sent: nobody is to hear it",
                        vip.service
                    ),
                    json!({"service": vip.service, "deployment": vip.deployment}),
                ))
            }
            Step::ByStack { event } => {
                let why = match event_of(event)? {
                    Event::NoWay => {
                        return plain(
                            "there is no way to the backend: no route, in mode l2dsr a gateway, or no address to send from",
                        );
                    }
                    Event::DirectTooBig => return plain("the packet does not fit the MTU of the way to the backend"),
                    Event::TooBig => "the packet exceeds the MTU of the way out",
                    _ => "there is no next hop to redirect to, or the frame has a VLAN tag",
                };
                let whom = if *hook == Hook::Xdp { "XDP leaves it to tc" } else { "the host's stack sends it" };
                Some((format!("{why}: {whom}"), none()))
            }
            Step::NoRedirect { ifindex } => {
                let interface = names.interface(ifindex);
                Some((
                    format!("XDP cannot redirect to {interface} at once, and leaves the packet to tc"),
                    json!({"interface": interface}),
                ))
            }
            Step::Asks {} => plain(
                "XDP leaves one packet in a while to tc, so that the kernel checks that the neighbour is still there",
            ),
            Step::ForEgress {} => plain("a reply: its source is restored when it leaves this host"),
            Step::Counted { event } => {
                let name = event_of(event)?.name();
                Some((format!("counted as {name}"), json!({"event": name})))
            }
            Step::Settled { deployment, word, in_force } => {
                self.settled(deployment, LiveWord(word), LiveWord(in_force))
            }
            Step::Waits { deployment } => {
                let deployment = names.deployment(deployment);
                let whom = if *hook == Hook::Xdp { ": XDP leaves the packet to tc" } else { "" };
                let text = format!("{deployment} is frozen, so what opens a flow waits{whom}");
                Some((text, json!({"deployment": deployment})))
            }
            Step::Outer { mode, slot, room } => {
                let backend = names.backend(slot).address;
                let mode = Mode::from_u8(mode as u8).map_or("unknown", mode_name);
                let text = match room {
                    0 => format!(
                        "{backend} gets the packet as it is, but for the MAC addresses (mode {mode}), and replies to the client directly"
                    ),
                    _ => format!(
                        "{backend} gets the packet in {room} bytes of outer headers (mode {mode}), and replies to the client directly"
                    ),
                };
                Some((text, json!({"backend": backend, "mode": mode, "outer_bytes": room})))
            }
            Step::Verdict { action, ifindex } => {
                let (name, text) = self.verdict(action, ifindex);
                Some((text, json!({"verdict": name})))
            }
        }
    }

    fn flow(&self, backend: u64, generation: u64, state: u64, last_seen: u64) -> Option<(String, Value)> {
        let (backend, state) = (self.names.backend(FlowBackend(backend as u32).slot().into()), FlowState(state as u32));
        let (colour, state) = (backend.colour.name(), flows::state(state, self.request.protocol));
        let idle = self.since(last_seen);
        Some((
            format!(
                "a flow is in the table: {} ({colour}), {state}, opened in generation {generation}, last packet {} ago",
                backend.address,
                human(idle)
            ),
            json!({"backend": backend.address, "colour": colour, "state": state, "generation": generation, "idle_seconds": idle.as_secs()}),
        ))
    }

    fn live(&self, deployment: u64, word: LiveWord, colour: Colour) -> Option<(String, Value)> {
        let (deployment, generation) = (self.names.deployment(deployment), word.generation());
        let (live, share) = (word.live(), word.target_share());
        let name = colour.name();
        let draining = if word.flags().has(LiveFlags::DRAINING) { ", draining" } else { "" };
        let text = if live.full_share() == share {
            format!("{name} is live (generation {generation}{draining}): all new flows of {deployment} go to {name}")
        } else {
            let percent = f64::from(share) / 100.0;
            format!(
                "{percent} % of new flows of {deployment} go to green (generation {generation}{draining}): this one goes to {name}"
            )
        };
        let share = f64::from(share) / f64::from(bg_common::FULL_SHARE);
        Some((text, json!({"deployment": deployment, "colour": name, "generation": generation, "green_share": share})))
    }

    fn settled(&self, deployment: u64, word: LiveWord, in_force: LiveWord) -> Option<(String, Value)> {
        let deployment = self.names.deployment(deployment);
        let (armed, now) = (word.generation(), in_force.generation());
        let text = match armed.cmp(&now) {
            Ordering::Greater => format!("generation {armed} of {deployment} is armed, but does not fully apply yet"),
            Ordering::Equal if in_force.flags().has(LiveFlags::TIMED) => {
                format!("generation {armed} of {deployment} applies, and is not confirmed yet")
            }
            Ordering::Equal => format!("generation {armed} of {deployment} takes effect now"),
            Ordering::Less => {
                format!(
                    "generation {armed} of {deployment} was not confirmed in time, or its new flows have met a condition: generation {now} takes \
                     it back"
                )
            }
        };
        Some((text, json!({"deployment": deployment, "armed": armed, "generation": now})))
    }

    fn idle(&self, why: &str, deployment: u64, word: LiveWord) -> Option<(String, Value)> {
        let (deployment, generation) = (self.names.deployment(deployment), word.generation());
        let (live, idle) = (word.live().name(), word.live().other().name());
        Some((
            format!(
                "{why}: the flow goes to the idle colour of {deployment}, {idle} ({live} is live, generation {generation})"
            ),
            json!({"deployment": deployment, "colour": idle, "generation": generation}),
        ))
    }

    fn hop(&self, begin: &str, hop: NextHop, end: &str) -> Option<(String, Value)> {
        if !hop.is_some() {
            return Some(("there is no route that the packet can be redirected by".to_owned(), json!({})));
        }
        let (interface, dmac) = (self.names.interface(hop.ifindex().into()), mac(hop.dmac()));
        if !hop.is_resolved() {
            let text = format!("{begin} {interface}; the MAC address of the next hop is not known yet");
            return Some((text, json!({"interface": interface})));
        }
        Some((
            format!("{begin} {interface} to {dmac}{end}"),
            json!({"interface": interface, "mac": dmac, "mtu": hop.mtu()}),
        ))
    }

    /// Name and sentence of a verdict.
    pub(super) fn verdict(&self, action: u64, ifindex: u64) -> (&'static str, String) {
        let interface = if action == Action::TooBig as u64 { String::new() } else { self.names.interface(ifindex) };
        match action {
            a if a == Action::Defer as u64 => ("defer", "left unmodified to tc on the same interface".to_owned()),
            a if a == Action::Deliver as u64 => ("deliver", "rewritten, and handed to the host's stack".to_owned()),
            a if a == Action::Redirect as u64 => ("redirect", format!("rewritten, and sent out by {interface}")),
            a if a == Action::Resolve as u64 => {
                ("resolve", format!("rewritten, and sent out by {interface} through the kernel's neighbour table"))
            }
            a if a == Action::ToSelf as u64 => {
                ("to_self", "rewritten, and handed to the client on this host".to_owned())
            }
            a if a == Action::Drop as u64 && self.is_held => ("hold", "held: it goes on at the thaw".to_owned()),
            a if a == Action::Drop as u64 => ("drop", "dropped".to_owned()),
            a if a == Action::Refuse as u64 => ("refuse", "answered with a reset: no backend gets it".to_owned()),
            a if a == Action::Unreachable as u64 => {
                ("refuse", "answered with an ICMP error, port unreachable: no backend gets it".to_owned())
            }
            a if a == Action::TooBig as u64 => {
                ("too_big", format!("answered with an ICMP error: packets of {ifindex} bytes fit"))
            }
            a if a == Action::TimeExceeded as u64 => {
                ("time_exceeded", "answered with an ICMP error, time exceeded".to_owned())
            }
            a if a == Action::Reset as u64 => {
                ("reset", "answered with a reset, and sent on as a reset to the other end".to_owned())
            }
            _ => ("pass", "left unmodified to the host".to_owned()),
        }
    }

    fn since(&self, last_seen: u64) -> Duration {
        Duration::from_secs(self.tick_length.duration(idle(last_seen as u32, self.now)).as_secs())
    }
}

fn human(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn event_of(event: u64) -> Option<Event> {
    Event::ALL.get(event as usize).copied()
}
