//! A deployment's live state at a moment (`live.rs` of user space).

use crate::{
    memory::TICK,
    mutation::Mutation,
    run::{Result, Run},
};
use bg_common::{Cause, LiveFlags, LiveWord, SwitchTerms, Timing};
use bg_ebpf::policy::timed::{Due, Return, activation, due, settle, taken_back};

/// In the place of a deadline: the switch was confirmed before it has taken effect.
pub(crate) const NEVER: u64 = u64::MAX;

/// A deployment's state at a moment.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) stored: LiveWord,
    pub(crate) word: LiveWord,
    pub(crate) terms: SwitchTerms,
    pub(crate) timing: Timing,
    pub(crate) generation: u32,
    pub(crate) is_explicit: bool,
}

impl Reading {
    pub(crate) fn is_pending(&self) -> bool {
        self.stored.flags().has(LiveFlags::TIMED) && self.timing.activate_at != 0
    }

    pub(crate) fn confirm_by(&self) -> Option<u64> {
        let deadline = self.timing.revert_at;
        (self.word.flags().has(LiveFlags::TIMED) && !matches!(deadline, 0 | NEVER)).then_some(deadline)
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.stored.flags().has(LiveFlags::TIMED) && self.timing.conditions != 0
    }

    pub(crate) fn is_taken_back(&self) -> bool {
        matches!(self.cause(), Cause::Expired | Cause::Tripped)
    }

    pub(crate) fn before_ramp(&self, share: u16) -> Option<u16> {
        let (before, reached) = (self.stored.previous_share(), self.stored.target_share());
        let is_cancelled = self.cause() == Cause::Cancelled && self.timing.before != LiveWord::default();
        let goes_on = (before < reached && reached < share) || (before > reached && reached > share);
        (is_cancelled && goes_on).then_some(before)
    }

    pub(crate) fn cause(&self) -> Cause {
        Cause::from_u8(self.timing.cause)
    }
}

/// `Words::had_conditions`.
pub(crate) fn had_conditions(run: &Run<'_>, reading: &Reading) -> Option<bool> {
    if !run.setting.watches {
        return Some(false);
    }
    let [generation] = run.step(|shared| Some([shared.memory.trips[reading.stored.terms_slot()].generation.into()]))?;
    Some(generation == u64::from(reading.stored.generation()))
}

impl Result for Reading {
    const WORDS: usize = 15;

    fn words(&self) -> Vec<u64> {
        let terms: [u64; 2] = bytemuck::cast(self.terms);
        let timing: [u64; 9] = bytemuck::cast(self.timing);
        let rest = [self.generation.into(), self.is_explicit.into()];
        [&[self.stored.0, self.word.0], &terms[..], &timing, &rest].concat()
    }

    fn from_words(words: &[u64]) -> Self {
        let (terms, timing): ([u64; 2], [u64; 9]) =
            (words[2..4].try_into().expect("two"), words[4..13].try_into().expect("nine"));
        Self {
            stored: LiveWord(words[0]),
            word: LiveWord(words[1]),
            terms: bytemuck::cast(terms),
            timing: bytemuck::cast(timing),
            generation: words[13] as u32,
            is_explicit: words[14] != 0,
        }
    }
}

/// `Words::reading` and `Reading::of`. Under the lock, only packets change what is read here, and they change single words.
pub(crate) fn reading(run: &Run<'_>) -> Option<Reading> {
    let [words @ .., now] = run.step(|shared| {
        let memory = &shared.memory;
        let mut all = [0; 15];
        all[0] = memory.word;
        all[1..5].copy_from_slice(memory.terms.as_flattened());
        all[5..14].copy_from_slice(&memory.timing[memory.live().terms_slot()]);
        all[14] = shared.clock();
        Some(all)
    })?;
    let stored = LiveWord(words[0]);
    let terms: [SwitchTerms; 2] = bytemuck::cast::<[u64; 4], _>(words[1..5].try_into().expect("two"));
    let timing: Timing = bytemuck::cast::<[u64; 9], _>(words[5..14].try_into().expect("one"));
    let generation = stored.generation();
    let unknown = Timing { generation, hold_until: timing.hold_until, ..Timing::default() };
    let timing = if timing.generation == generation { timing } else { unknown };
    let mut reading =
        Reading { stored, word: stored, terms: terms[stored.terms_slot()], timing, generation, is_explicit: true };
    for _ in 0..2 {
        if !reading.word.flags().has(LiveFlags::TIMED) {
            break;
        }
        match due(reading.word, &reading.timing, |_| now) {
            Due::Nothing(word) => {
                if word != reading.word {
                    (reading.word, reading.terms) = (word, terms[word.terms_slot()]);
                }
                break;
            }
            Due::Activation(late) => {
                reading.is_explicit = false;
                let activation = activation(reading.word, &reading.timing, late, TICK, now);
                reading.word = activation.word;
                (reading.timing.activate_at, reading.timing.revert_at) = (0, activation.revert_at);
            }
            Due::Expiry => {
                reading.is_explicit = false;
                let why = Return::expired(&reading.timing);
                let (word, terms, timing) = taken_back(reading.word, &reading.terms, &reading.timing, TICK, why)?;
                (reading.word, reading.terms, reading.timing) = (word, terms, timing);
                reading.generation = word.generation();
            }
        }
    }
    Some(reading)
}

pub(crate) fn settled(run: &Run<'_>) -> Option<Reading> {
    run.once(|| {
        loop {
            let word = run.word()?;
            if word.flags().has(LiveFlags::TIMED) {
                settle(0, word, true, run);
            }
            let reading = reading(run)?;
            if reading.is_explicit || run.is(Mutation::ImplicitState) {
                return Some(reading);
            }
        }
    })
}
