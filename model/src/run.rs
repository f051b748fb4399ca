//! Programs, step by step. A program is a function that reads and writes what all share by [`Run::step`] only. To make a step, the
//! function is called again from its beginning: it gets the answers that it got before, makes one new step, and goes on until the next.
//! There it is left. So the code of the data path itself can be a part of the model, and can be interrupted wherever it touches memory
//! or a clock.
//!
//! Many ways lead to the same result, so of a part of a program that has ended only the result is kept ([`Run::once`]).

use crate::{memory::Shared, mutation::Mutation};
use bg_common::{Cause, LiveWord};
use std::cell::{Cell, RefCell};

/// What does not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) mutation: Option<Mutation>,
    /// The colours of which flows may be reset.
    pub(crate) fails: [bool; 2],
    /// Whether any switch has conditions. Otherwise no packet counts.
    pub(crate) watches: bool,
}

/// One call of a program.
pub(crate) struct Run<'a> {
    shared: RefCell<&'a mut Shared>,
    past: &'a [u64],
    at: Cell<usize>,
    /// How many of them are kept, before those that are new.
    kept: Cell<usize>,
    new: RefCell<Vec<u64>>,
    at_end: Cell<End>,
    /// What has made the generation that this has prepared last.
    pub(crate) prepared: Cell<Cause>,
    pub(crate) setting: Setting,
}

/// What a part of a program results in.
pub(crate) trait Result {
    const WORDS: usize;
    /// Stands before it. No answer is the same. Parts that begin at the same answer have results of different lengths.
    const ENDED: u64 = u64::MAX / 2 - Self::WORDS as u64;

    fn words(&self) -> Vec<u64>;

    /// The inverse of [`words`](Self::words).
    fn from_words(words: &[u64]) -> Self;
}

impl Result for LiveWord {
    const WORDS: usize = 1;

    fn words(&self) -> Vec<u64> {
        vec![self.0]
    }

    fn from_words(words: &[u64]) -> Self {
        Self(words[0])
    }
}

impl<T: Result> Result for Option<T> {
    const WORDS: usize = 1 + T::WORDS;

    fn words(&self) -> Vec<u64> {
        self.as_ref().map_or_else(|| vec![0; Self::WORDS], |some| [vec![1], some.words()].concat())
    }

    fn from_words(words: &[u64]) -> Self {
        (words[0] != 0).then(|| T::from_words(&words[1..]))
    }
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
        setting: Setting,
        program: impl FnOnce(&Run<'a>) -> Option<T>,
    ) -> Came<T> {
        let run = Run {
            shared: RefCell::new(shared),
            past,
            at: Cell::new(0),
            kept: Cell::new(past.len()),
            new: RefCell::default(),
            at_end: Cell::new(End::None),
            prepared: Cell::new(Cause::Unknown),
            setting,
        };
        let result = program(&run);
        match (run.at_end.get(), result) {
            (End::Blocked, _) => Came::Blocked,
            (End::None, Some(result)) => Came::Ended(result),
            (End::None, None) => unreachable!("the program has given up"),
            (End::Left, _) => Came::On([&past[..run.kept.get()], &run.new.into_inner()].concat()),
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

    /// A part of a program, of which its result takes the place of its answers as soon as it has ended.
    pub(crate) fn once<T: Result>(&self, part: impl FnOnce() -> Option<T>) -> Option<T> {
        let begin = self.at.get();
        if let Some(words) = self.past[begin..].strip_prefix(&[T::ENDED]) {
            self.at.set(begin + 1 + T::WORDS);
            return Some(T::from_words(&words[..T::WORDS]));
        }
        let result = part()?;
        let mut new = self.new.borrow_mut();
        if self.at_end.get() == End::None && !new.is_empty() {
            new.clear();
            new.push(T::ENDED);
            new.extend(result.words());
            self.kept.set(begin);
        }
        Some(result)
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
        let is_store = store_for.is_some() && self.setting.mutation == store_for;
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
        self.setting.mutation == Some(mutation)
    }
}
