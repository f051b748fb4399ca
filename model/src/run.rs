//! Programs, step by step. A program is a function that reads and writes what all share by [`Run::step`] only. To make a step, the
//! function is called again from its beginning: it gets the answers that it got before, makes one new step, and goes on until the next.
//! There it is left. So the code of the data path itself can be a part of the model, and can be interrupted wherever it touches memory
//! or a clock.

use crate::{
    memory::{Fault, Shared, TICK},
    mutation::Mutation,
};
use bg_common::{ClockId, Conditions, LiveWord, SwitchTerms, Timing};
use bg_ebpf::world::{Generations, Guard};
use std::cell::{Cell, RefCell};

/// One call of a program.
pub(crate) struct Run<'a> {
    shared: RefCell<&'a mut Shared>,
    past: &'a [u64],
    at: Cell<usize>,
    new: RefCell<Vec<u64>>,
    at_end: Cell<End>,
    pub(crate) mutation: Option<Mutation>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Not yet reached.
    None,
    /// The next step is for another call.
    Left,
    /// The step has to wait.
    Blocked,
}

/// What has come of a call.
pub(crate) enum Came<T> {
    /// The program has to wait. Nothing was changed.
    Blocked,
    /// It has made a step. These are all answers so far.
    On(Vec<u64>),
    /// It has made its last step.
    Ended(T),
}

impl<'a> Run<'a> {
    /// Makes the step of a program that comes after the `past` ones.
    pub(crate) fn make<T>(
        shared: &'a mut Shared,
        past: &'a [u64],
        mutation: Option<Mutation>,
        program: impl FnOnce(&Run<'a>) -> Option<T>,
    ) -> Came<T> {
        let run = Run {
            shared: RefCell::new(shared),
            past,
            at: Cell::new(0),
            new: RefCell::default(),
            at_end: Cell::new(End::None),
            mutation,
        };
        let result = program(&run);
        match (run.at_end.get(), result) {
            (End::Blocked, _) => Came::Blocked,
            (End::None, Some(result)) => Came::Ended(result),
            (End::None, None) => unreachable!("the program has given up"),
            (End::Left, _) => Came::On([past, &run.new.into_inner()].concat()),
        }
    }

    /// A step. `None` of `act`: it has to wait. `None` of this: the program must return.
    pub(crate) fn step<const N: usize>(&self, act: impl FnOnce(&mut Shared) -> Option<[u64; N]>) -> Option<[u64; N]> {
        if self.at_end.get() != End::None {
            return None;
        }
        let at = self.at.get();
        if let Some(answer) = self.past.get(at..at + N).filter(|answer| !answer.is_empty()) {
            self.at.set(at + N);
            return answer.try_into().ok();
        }
        if !self.new.borrow().is_empty() {
            self.at_end.set(End::Left);
            return None;
        }
        let answer = act(&mut self.shared.borrow_mut());
        match answer {
            Some(answer) => self.new.borrow_mut().extend(answer),
            None => self.at_end.set(End::Blocked),
        }
        answer
    }

    /// A step that yields nothing.
    pub(crate) fn does(&self, act: impl FnOnce(&mut Shared)) -> Option<()> {
        self.step(|shared| {
            act(shared);
            Some([0])
        })?;
        Some(())
    }

    /// Reads a clock. Boot time and TAI are the same here.
    pub(crate) fn clock(&self) -> Option<u64> {
        self.step(|shared| Some([shared.clock()])).map(|[now]| now)
    }

    /// The live word as it stands there.
    pub(crate) fn word(&self) -> Option<LiveWord> {
        self.step(|shared| Some([shared.memory.word])).map(|[word]| LiveWord(word))
    }

    /// Replaces a word if it is still there, and notes what that means. Returns the word that is there then. With `store_for`, it is
    /// replaced whatever is there.
    pub(crate) fn replace(
        &self,
        old: LiveWord,
        new: LiveWord,
        store_for: Option<Mutation>,
        note: impl FnOnce(&mut Shared),
    ) -> Option<LiveWord> {
        let is_store = store_for.is_some() && self.mutation == store_for;
        self.step(|shared| {
            if shared.memory.word != old.0 && !is_store {
                return Some([shared.memory.word]);
            }
            note(shared);
            shared.store(new);
            Some([new.0])
        })
        .map(|[there]| LiveWord(there))
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

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

    fn holding(&self, _deployment: u16, _word: LiveWord) -> Conditions {
        Conditions::NONE
    }

    fn activate(&self, _deployment: u16, slot: usize, drain: [u32; 2], guard: Option<Guard>) {
        let _ = self.does(|shared| shared.memory.terms[slot][1] = bytemuck::cast(drain));
        if let Some(guard) = guard {
            let _ = self.does(|shared| shared.memory.update(slot, |timing| timing.revert_at = guard.revert_at));
            let _ = self.does(|shared| shared.memory.update(slot, |timing| timing.activate_at = 0));
        }
    }

    fn prepare(&self, _deployment: u16, slot: usize, terms: Option<&SwitchTerms>, timing: &Timing) {
        if let Some(terms) = terms {
            let _ = self.does(|shared| shared.memory.terms[slot] = bytemuck::cast(*terms));
        }
        let _ = self.does(|shared| shared.memory.timing[slot] = bytemuck::cast(*timing));
    }

    fn exchange(&self, _deployment: u16, old: LiveWord, new: LiveWord) -> LiveWord {
        let is_expiry = old.generation() != new.generation();
        let note = |shared: &mut Shared| {
            if !is_expiry {
                // It takes effect, and needs no confirmation: a command has asked for that while it was scheduled.
                shared.known(old.generation()).deadline = 0;
                return;
            }
            let terms = shared.memory.terms[new.terms_slot()];
            shared.known(new.generation()).terms = terms;
            let known = shared.known(old.generation());
            known.is_expired = true;
            let (is_kept, is_guarded) = (known.is_kept, known.is_guarded);
            shared.is_at_fault_if(is_kept, Fault::TwoOutcomes);
            shared.is_at_fault_if(!is_guarded, Fault::NotGuarded);
        };
        self.replace(old, new, Some(Mutation::ExpiryByStore), note).unwrap_or(old)
    }
}
