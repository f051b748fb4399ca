//! The hot paths of the packet engine, to be counted by callgrind; see `cargo xtask budget`, which runs this.
//!
//! On each path [`PACKETS`] packets are taken, each of a flow of its own, and it is checked what became of each. Only
//! [`counted_packet`] is to be counted, and [`path_taken`] is the end of a path. In what is counted nothing is
//! random: no time, no hash that is seeded anew, no address in a hash.
//!
//! Then all of it is done again by an engine that looks everything up twice. It is there to be caught.
//!
//! Printed is what was counted, in that order: engine, path, number of packets, with tabs between.

mod path;
mod world;

use bg_common::Protocol::{Tcp, Udp};
use bg_ebpf::{
    Action, Direction, Frame, Verdict,
    path::slow::SlowPath,
    process,
    wire::{
        headers::{V4, V6},
        packet::Packet,
    },
};
use path::{Kind, Path};
use world::{Twice, World};

/// Packets that are counted on a path.
const PACKETS: u16 = 256;

/// The paths that matter, under the names that their budgets have.
const PATHS: [Path; 13] = [
    Path { name: "open flow, IPv4 TCP", kind: Kind::Open, v6: false, protocol: Tcp, tags: 0 },
    Path { name: "open flow, IPv4 UDP", kind: Kind::Open, v6: false, protocol: Udp, tags: 0 },
    Path { name: "open flow, IPv6 TCP", kind: Kind::Open, v6: true, protocol: Tcp, tags: 0 },
    Path { name: "open flow, IPv6 UDP", kind: Kind::Open, v6: true, protocol: Udp, tags: 0 },
    Path { name: "open flow, IPv4 TCP, VLAN", kind: Kind::Open, v6: false, protocol: Tcp, tags: 1 },
    Path { name: "reply, IPv4 TCP", kind: Kind::Reply, v6: false, protocol: Tcp, tags: 0 },
    Path { name: "reply, IPv4 UDP", kind: Kind::Reply, v6: false, protocol: Udp, tags: 0 },
    Path { name: "reply, IPv6 TCP", kind: Kind::Reply, v6: true, protocol: Tcp, tags: 0 },
    Path { name: "new flow, IPv4 TCP", kind: Kind::New, v6: false, protocol: Tcp, tags: 0 },
    Path { name: "new flow, IPv4 UDP", kind: Kind::New, v6: false, protocol: Udp, tags: 0 },
    Path { name: "new flow, IPv6 TCP", kind: Kind::New, v6: true, protocol: Tcp, tags: 0 },
    Path { name: "not for a VIP, IPv4 TCP", kind: Kind::Other, v6: false, protocol: Tcp, tags: 0 },
    Path { name: "not for a VIP, IPv6 TCP", kind: Kind::Other, v6: true, protocol: Tcp, tags: 0 },
];

/// What is counted: the engine, and what it asks of the world, for one packet.
///
/// Its name is callgrind's to find, so it is not mangled.
#[inline(never)]
#[unsafe(no_mangle)]
fn counted_packet(world: &World, frame: &mut [u8]) -> Verdict {
    one_packet(world, frame)
}

/// The same with an engine that looks everything up twice.
#[inline(never)]
#[unsafe(no_mangle)]
fn counted_packet_twice(world: &Twice<'_>, frame: &mut [u8]) -> Verdict {
    one_packet(world, frame)
}

#[inline(always)]
fn one_packet<W: SlowPath<V4> + SlowPath<V6>>(world: &W, frame: &mut [u8]) -> Verdict {
    let about = Frame { direction: Direction::Early, len: frame.len() };
    let range = frame.as_mut_ptr_range();
    // SAFETY: the buffer outlives both, and the engine reads nothing through the first once it has written
    // through the second.
    let (packet, mut writer) = unsafe { (Packet::new(range.start, range.end), Packet::new(range.start, range.end)) };
    process(&packet, about, world, &mut writer)
}

/// Takes a path. Frames are made before, and verdicts are looked at afterwards.
fn take(path: &Path, twice: bool) {
    let world = World::load(path.scenario());
    for before in path.before() {
        for flow in 0..PACKETS {
            one_packet(&world, &mut path.of_flow(&before, flow));
        }
    }
    let counted = path.counted();
    let originals: Vec<_> = (0..PACKETS).map(|flow| path.of_flow(&counted, flow)).collect();
    let mut frames = originals.clone();
    let (opened, events) = (world.opened(), world.events());
    let verdicts: Vec<Verdict> = if twice {
        let world = Twice::new(&world);
        frames.iter_mut().map(|frame| counted_packet_twice(&world, frame)).collect()
    } else {
        frames.iter_mut().map(|frame| counted_packet(&world, frame)).collect()
    };
    let expected = path.action();
    assert!(verdicts.iter().all(|verdict| verdict.action() == expected), "{}: expected {expected:?}", path.name);
    let new_flows = if path.kind == Kind::New { u64::from(PACKETS) } else { 0 };
    assert_eq!(world.opened() - opened, new_flows, "{}: flows opened", path.name);
    assert_eq!(world.events(), events, "{}: events counted", path.name);
    let changed = frames.iter().zip(&originals).filter(|(frame, original)| frame != original).count();
    let to_change = if matches!(expected, Action::Pass | Action::Defer) { 0 } else { frames.len() };
    assert_eq!(changed, to_change, "{}: frames rewritten", path.name);
}

/// A path is at its end: callgrind writes down what it has counted.
#[inline(never)]
#[unsafe(no_mangle)]
fn path_taken(engine: &str, path: &Path) {
    println!("{engine}\t{}\t{PACKETS}", path.name);
}

fn main() {
    for path in &PATHS {
        take(path, false);
        path_taken("engine", path);
    }
    for path in &PATHS {
        take(path, true);
        path_taken("twice", path);
    }
}
