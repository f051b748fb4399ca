//! A packet: it opens a flow by the word in force and the terms of that, or resets one.

use crate::{
    fault::Fault,
    memory::{Packet, Shared, instant},
    run::{Came, Run, Setting},
    trips,
};
use bg_common::{LiveFlags, LiveWord};
use bg_ebpf::{policy::timed::settle, world::Generations as _};

/// Units of time that a packet may take. The least time for a confirmation is longer.
pub(crate) const LONGEST: u64 = 1;

/// What a packet decides by.
struct Decided {
    word: LiveWord,
    terms: [u64; 2],
    is_held: bool,
    /// Whether it counts for the conditions of a switch.
    is_counted: bool,
}

fn program(run: &Run<'_>) -> Option<Decided> {
    let word = run.once(|| {
        let stored = run.word()?;
        Some(if stored.flags().has(LiveFlags::TIMED) { settle(0, stored, true, run) } else { stored })
    })?;
    let terms = bytemuck::cast(run.terms_of(0, word.terms_slot())?);
    let is_held = is_frozen(run, word)?;
    let may_count = run.setting.watches && !is_held && word.flags().has(LiveFlags::TIMED);
    let is_counted = may_count && trips::open(run, word)?;
    Some(Decided { word, terms, is_held, is_counted })
}

/// `policy::freeze::is_frozen`.
fn is_frozen(run: &Run<'_>, word: LiveWord) -> Option<bool> {
    if !word.flags().has(LiveFlags::HOLD) {
        return Some(false);
    }
    let now = run.clock()?;
    let [hold_until] = run.step(|shared| Some([shared.memory.timing(word.terms_slot()).hold_until]))?;
    if now < hold_until {
        return Some(true);
    }
    run.replace(word, word.with_flags(word.flags().without(LiveFlags::HOLD)), None, |_| {})?;
    Some(false)
}

impl Packet {
    /// One that resets a flow, by no word.
    fn reset(shared: &Shared, of: u32) -> Self {
        Self { resets: Some(of), began: shared.now, ..Self::default() }
    }

    fn new(shared: &Shared) -> Self {
        let word = shared.memory.live();
        let known = &shared.known[word.generation() as usize];
        let is_overdue = known.deadline != 0 && known.deadline <= shared.clock() && !known.is_kept;
        let must_trip = shared.must_trip(word.generation(), shared.now);
        let mut floor = shared.floor;
        if known.active_at != 0 && known.active_at <= shared.clock() {
            floor = floor.max(word.generation());
        }
        Self {
            past: Vec::new(),
            resets: None,
            is_awaited: false,
            began: shared.now,
            floor,
            ramped: shared.ramped,
            overdue: if is_overdue { word.generation() } else { 0 },
            must_trip: if must_trip { word.generation() } else { 0 },
            frozen_until: shared.frozen_until,
        }
    }
}

/// Makes the next step of the packet of a CPU, or the first one of a new packet, which resets a flow or opens one.
pub(crate) fn step(shared: &mut Shared, cpu: usize, resets: Option<u32>, setting: Setting) {
    let begun = shared.packets[cpu].take();
    let mut packet =
        begun.unwrap_or_else(|| resets.map_or_else(|| Packet::new(shared), |of| Packet::reset(shared, of)));
    let watch = packet.resets.map(|of| (of, shared.watch(of).clone()));
    let came = Run::make(shared, &packet.past, setting, |run| match &watch {
        Some((of, watch)) => trips::answer(run, *of, watch).map(|()| None),
        None => program(run).map(Some),
    });
    match came {
        Came::Blocked => unreachable!("a packet never waits"),
        Came::On(past) => {
            packet.past = past;
            shared.packets[cpu] = Some(packet);
        }
        Came::Ended(Some(decided)) => check(shared, &packet, &decided),
        Came::Ended(None) => {}
    }
}

/// No packet has to take a switch back whose conditions are put off meanwhile, or which others have taken back.
pub(crate) fn excuse(shared: &mut Shared) {
    let generation = shared.memory.live().generation();
    let must_trip = |packet: &Packet| packet.must_trip == generation && shared.must_trip(generation, packet.began);
    let must: Vec<_> = shared.packets.iter().map(|packet| packet.as_ref().is_some_and(must_trip)).collect();
    for (packet, must_trip) in shared.packets.iter_mut().zip(must) {
        packet.iter_mut().filter(|_| !must_trip).for_each(|packet| packet.must_trip = 0);
    }
}

fn check(shared: &mut Shared, packet: &Packet, decided: &Decided) {
    let word = decided.word;
    let generation = word.generation();
    let known = shared.known(generation).clone();
    let is_of_return = known.terms_of_return != [0; 2] && known.terms_of_return == decided.terms;
    shared.is_at_fault_if(known.terms != decided.terms && !is_of_return, Fault::ForeignTerms);
    // A packet may have made a guarded switch take effect before it was cancelled, and decide by it afterwards. If there is no guard,
    // the exchange of the word decides which was first.
    let is_watched = shared.watches.get(generation as usize).is_some_and(|watch| watch.colour.is_some());
    let is_later = generation < packet.floor || !(known.is_guarded || is_watched);
    shared.is_at_fault_if(known.is_cancelled && is_later, Fault::Uncancelled);
    shared.is_at_fault_if(generation < packet.floor.max(shared.fenced), Fault::OldWord);
    let is_overdue = packet.overdue == generation && !known.is_kept && known.deadline <= instant(packet.began);
    shared.is_at_fault_if(is_overdue && known.deadline != 0, Fault::NotTakenBack);
    if packet.must_trip != 0 && trips::watched_by(shared, word) == packet.must_trip {
        let is_overlooked = shared.must_trip(packet.must_trip, packet.began);
        shared.is_at_fault_if(is_overlooked, Fault::NotTripped);
    }
    if !shared.watches.is_empty() && !decided.is_held && word.flags().has(LiveFlags::TIMED) {
        trips::opened(shared, word, decided.is_counted);
    }
    shared.is_at_fault_if(known.active_at > shared.clock(), Fault::OffSchedule);
    let frozen_until = packet.frozen_until.min(shared.frozen_until);
    shared.is_at_fault_if(!decided.is_held && shared.clock() < frozen_until, Fault::NotHeld);
    shared.is_at_fault_if(decided.is_held && instant(packet.began) >= shared.last_hold, Fault::HeldTooLong);
    let (of, least) = packet.ramped;
    if of != 0 && (generation == of || generation + 1 == of) {
        shared.is_at_fault_if(word.target_share() < least, Fault::Shrank);
        if shared.ramped.0 == of {
            shared.ramped.1 = shared.ramped.1.max(word.target_share());
        }
    }
}
