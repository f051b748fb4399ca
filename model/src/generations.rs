//! The live words for the engine's code, step by step.

use crate::{
    fault::Fault,
    memory::{Shared, TICK},
    mutation::Mutation,
    run::Run,
    trips,
};
use bg_common::{Cause, ClockId, Conditions, LiveWord, SwitchTerms, Timing};
use bg_ebpf::world::{Generations, Guard};

/// As the data path does it (`kernel/generations.rs`), and user space under the lock. Where the program must return, nothing happens.
impl Generations for Run<'_> {
    fn terms_of(&self, _deployment: u16, slot: usize) -> Option<SwitchTerms> {
        self.step(|shared| Some(shared.memory.terms[slot])).map(bytemuck::cast)
    }

    fn timing(&self, _deployment: u16, slot: usize) -> Option<Timing> {
        let [activate_at] = self.step(|shared| Some([shared.memory.timing(slot).activate_at]))?;
        let rest: Timing = self.step(|shared| Some(shared.memory.timing[slot])).map(bytemuck::cast)?;
        Some(Timing { activate_at, ..rest })
    }

    fn present_tick(&self) -> u32 {
        TICK
    }

    fn now(&self, _clock: ClockId) -> u64 {
        self.clock().unwrap_or(0)
    }

    fn holding(&self, _deployment: u16, word: LiveWord) -> Conditions {
        trips::judge(self, word)
    }

    fn activate(&self, _deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>) {
        let _ = self.does(|shared| shared.memory.terms[slot][1] = bytemuck::cast(drain));
        if let Some(guard) = guard {
            if self.setting.watches {
                let until = trips::short_pause(guard.paused_until);
                let _ = self.does(|shared| {
                    let row = &mut shared.memory.trips[slot];
                    row.paused_until = until;
                    let generation = row.generation;
                    if let Some(watch) = shared.watches.get_mut(generation as usize) {
                        watch.put_off(until);
                    }
                });
            }
            let _ = self.does(|shared| shared.memory.update(slot, |timing| timing.revert_at = guard.revert_at));
            let _ = self.does(|shared| shared.memory.update(slot, |timing| timing.activate_at = 0));
        }
    }

    fn prepare(&self, _deployment: u16, slot: usize, terms: &SwitchTerms, timing: &Timing) {
        let _ = self.does(|shared| {
            let terms = bytemuck::cast(*terms);
            shared.memory.terms[slot] = terms;
            // A ramp is taken back while the word before it is in force, whose terms these replace.
            if shared.known(timing.generation - 1).is_ramp {
                shared.known(timing.generation - 2).terms_of_return = terms;
            }
        });
        // Nobody depends on when that was.
        let timing = Timing { made_at: 0, ..*timing };
        let _ = self.does(|shared| shared.memory.timing[slot] = bytemuck::cast(timing));
        self.prepared.set(Cause::from_u8(timing.cause));
    }

    fn exchange(&self, _deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord {
        let is_return = old.generation() != new.generation();
        let is_trip = self.prepared.get() == Cause::Tripped;
        let note = |shared: &mut Shared| {
            if !is_return {
                // It takes effect, and needs no confirmation: a command has asked for that while it was scheduled.
                shared.known(old.generation()).deadline = 0;
                return;
            }
            let terms = shared.memory.terms[new.terms_slot()];
            let known = shared.known(new.generation());
            (known.terms, known.share) = (terms, new.target_share());
            known.cause = if is_trip { Cause::Tripped as u8 } else { Cause::Expired as u8 };
            let known = shared.known(old.generation());
            known.is_taken_back = true;
            let (is_kept, is_guarded) = (known.is_kept, known.is_guarded);
            shared.is_at_fault_if(is_kept, Fault::TwoOutcomes);
            if is_trip {
                trips::tripped(shared, old, new, self.setting.fails);
            } else {
                shared.is_at_fault_if(!is_guarded, Fault::NotGuarded);
            }
        };
        self.replace(old, new, Some(Mutation::ExpiryByStore), note).unwrap_or(old)
    }
}
