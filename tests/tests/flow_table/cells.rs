//! A table in plain cells, for one thread, of any size and for any keys.

use bg_common::{Flow, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::Key,
    memory::{Memory, Words},
};
use std::{cell::Cell, marker::PhantomData};

/// A table of so many buckets.
pub(crate) struct Cells<K> {
    words: Vec<Cell<u64>>,
    keys: [u64; 7],
    of: PhantomData<K>,
}

impl<K: Key> Cells<K> {
    /// Empty. `keys` are those of the hash.
    pub(crate) fn new(buckets: usize, keys: [u64; 7]) -> Self {
        assert!(buckets.is_power_of_two() && buckets > 1);
        Self { words: vec![Cell::new(0); buckets * WAYS as usize * K::ROW], keys, of: PhantomData }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.words.len() / K::ROW
    }

    /// Words of a row.
    pub(crate) fn row(&self, index: usize) -> &[Cell<u64>] {
        &self.words[index * K::ROW..][..K::ROW]
    }

    /// The flow in a row, whatever its status.
    pub(crate) fn flow(&self, index: usize) -> Flow {
        let words = &self.row(index)[K::HEAD..];
        Flow::from_words([words[0].get(), words[1].get(), words[2].get()])
    }

    /// Writes a row.
    pub(crate) fn put(&self, index: usize, key: &K, flow: &Flow) {
        let words = (0..K::HEAD).map(|word| key.word(word)).chain(flow.words());
        self.row(index).iter().zip(words).for_each(|(cell, word)| cell.set(word));
    }

    /// How many flows there are.
    pub(crate) fn count(&self) -> usize {
        (0..self.rows()).filter(|&index| self.flow(index).state.has(FlowState::LIVE)).count()
    }

    /// A copy of all words.
    pub(crate) fn all(&self) -> Vec<u64> {
        self.words.iter().map(Cell::get).collect()
    }
}

impl<'a, K: Key> Memory<K> for &'a Cells<K> {
    type Words = Row<'a>;

    fn bucket(&self, index: u32) -> Option<Row<'a>> {
        Some(Row { words: &self.words, at: index as usize * WAYS as usize * K::ROW })
    }

    fn mask(&self) -> u32 {
        (self.rows() / WAYS as usize - 1) as u32
    }

    fn hash_key(&self, index: usize) -> u64 {
        self.keys[index]
    }

    fn order(&self) {}
}

/// Words of [`Cells`] from one on.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    words: &'a [Cell<u64>],
    at: usize,
}

impl Words for Row<'_> {
    fn from(self, words: usize) -> Self {
        Self { at: self.at + words, ..self }
    }

    fn load(self, word: usize) -> u64 {
        self.words[self.at + word].get()
    }

    fn store(self, word: usize, value: u64) {
        self.words[self.at + word].set(value);
    }

    fn store_low(self, word: usize, value: u32) {
        self.store(word, self.load(word) & !0xffff_ffff | u64::from(value));
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        let is_same = self.load(word) == old;
        if is_same {
            self.store(word, new);
        }
        is_same
    }
}
