//! A packet: it reads the word in force, and then the terms of that.

use crate::{
    memory::{Fault, Packet, Shared, instant},
    mutation::Mutation,
    run::{Came, Run},
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
}

fn program(run: &Run<'_>) -> Option<Decided> {
    let stored = run.word()?;
    let word = if stored.flags().has(LiveFlags::TIMED) { settle(0, stored, true, run) } else { stored };
    let terms = bytemuck::cast(run.terms_of(0, word.terms_slot())?);
    let is_held = is_frozen(run, word)?;
    Some(Decided { word, terms, is_held })
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
    fn new(shared: &Shared) -> Self {
        let word = shared.memory.live();
        let known = &shared.known[word.generation() as usize];
        let is_overdue = known.deadline != 0 && known.deadline <= shared.clock() && !known.is_kept;
        let mut floor = shared.floor;
        if known.active_at != 0 && known.active_at <= shared.clock() {
            floor = floor.max(word.generation());
        }
        Self {
            past: Vec::new(),
            is_awaited: false,
            began: shared.now,
            floor,
            ramped: shared.ramped,
            overdue: if is_overdue { word.generation() } else { 0 },
            frozen_until: shared.frozen_until,
        }
    }
}

/// Makes the next step of the packet of a CPU, or the first one of a new packet.
pub(crate) fn step(shared: &mut Shared, cpu: usize, mutation: Option<Mutation>) {
    let packet = shared.packets[cpu].take().unwrap_or_else(|| Packet::new(shared));
    match Run::make(shared, &packet.past, mutation, program) {
        Came::Blocked => unreachable!("a packet never waits"),
        Came::On(past) => shared.packets[cpu] = Some(Packet { past, ..packet }),
        Came::Ended(decided) => check(shared, &packet, &decided),
    }
}

fn check(shared: &mut Shared, packet: &Packet, decided: &Decided) {
    let word = decided.word;
    let generation = word.generation();
    let known = shared.known(generation).clone();
    shared.is_at_fault_if(known.terms != decided.terms, Fault::ForeignTerms);
    // A packet may have made a guarded switch take effect before it was cancelled, and decide by it afterwards. If there is no guard,
    // the exchange of the word decides which was first.
    let is_later = generation < packet.floor || !known.is_guarded;
    shared.is_at_fault_if(known.is_cancelled && is_later, Fault::Uncancelled);
    shared.is_at_fault_if(generation < packet.floor.max(shared.fenced), Fault::OldWord);
    let is_overdue = packet.overdue == generation && !known.is_kept && known.deadline <= instant(packet.began);
    shared.is_at_fault_if(is_overdue && known.deadline != 0, Fault::NotTakenBack);
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
