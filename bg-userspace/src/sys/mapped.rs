//! Array maps that are mapped into this process (`BPF_F_MMAPABLE`). Rows are read and written without system calls,
//! as atomic words, because the programs in the kernel read and write them at the same time.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// All rows of an array map. A row is a whole number of 8-byte words, to which the kernel pads it.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    memory: MmapRaw,
    rows: usize,
    row: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// The number of words in a row.
    const WORDS: usize = size_of::<T>().div_ceil(8);

    /// Maps `map`, which has `rows` rows of type `T`. The caller has checked its specification.
    pub(crate) fn new(map: &MapData, rows: u32) -> io::Result<Self> {
        let rows = rows as usize;
        let memory = MmapOptions::new().len(rows * Self::WORDS * 8).map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self { memory, rows, row: PhantomData })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The words of all rows.
    pub(crate) fn all(&self) -> &[AtomicU64] {
        let words = self.rows * Self::WORDS;
        // SAFETY: the mapping is that long, aligned to a page, and lives as long as `self`. Everybody
        // in this process sees it as atomics only; other writers are outside of Rust's memory model,
        // and write aligned words as well.
        unsafe { std::slice::from_raw_parts(self.memory.as_mut_ptr().cast::<AtomicU64>(), words) }
    }

    /// The words of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub(crate) fn words(&self, row: usize) -> &[AtomicU64] {
        &self.all()[row * Self::WORDS..][..Self::WORDS]
    }

    /// Reads a row word by word.
    pub(crate) fn read(&self, row: usize) -> T {
        let mut value = T::zeroed();
        // Whole words first, then the rest, so that one instruction copies a word.
        let mut octets = bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8);
        let mut words = self.words(row).iter().map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        for (to, word) in octets.by_ref().zip(words.by_ref()) {
            to.copy_from_slice(&word);
        }
        let rest = octets.into_remainder();
        if let Some(word) = words.next() {
            rest.copy_from_slice(&word[..rest.len()]);
        }
        value
    }

    /// Writes a row, its last word first and its first word last. So whoever sees the new first word also sees
    /// the other words.
    pub(crate) fn write(&self, row: usize, value: &T) {
        for (from, to) in bytemuck::bytes_of(value).chunks(8).zip(self.words(row)).rev() {
            to.store(word(from), Ordering::Release);
        }
    }

    /// Changes a row. `change` gets the present row, and only the words that it has changed are written,
    /// the last one first. The other words keep what other writers, such as the programs in the kernel, write
    /// to them meanwhile.
    ///
    /// There is no other way to write a part of a row, so no word is ever completed from a made-up row.
    pub(crate) fn update(&self, row: usize, change: impl FnOnce(&mut T)) {
        let before = self.read(row);
        let mut after = before;
        change(&mut after);
        let words = |value| bytemuck::bytes_of(value).chunks(8);
        for ((before, after), to) in words(&before).zip(words(&after)).zip(self.words(row)).rev() {
            if before != after {
                to.store(word(after), Ordering::Release);
            }
        }
    }
}

/// A word of a row, padded with zeros like in the kernel.
fn word(octets: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..octets.len()].copy_from_slice(octets);
    u64::from_ne_bytes(word)
}

impl Mapped<[u32; 2]> {
    /// All rows, as halves.
    pub(crate) fn halves(&self) -> &[AtomicU32] {
        // SAFETY: as for `words`; a row is two halves, and nobody looks at these rows as whole words.
        unsafe { std::slice::from_raw_parts(self.memory.as_mut_ptr().cast::<AtomicU32>(), 2 * self.rows) }
    }
}

#[cfg(test)]
impl<T: Pod> Mapped<T> {
    /// Of no map: memory of this process.
    pub(crate) fn anonymous(rows: usize) -> Self {
        let memory = memmap2::MmapMut::map_anon(rows * Self::WORDS * 8).unwrap();
        Self { memory: MmapRaw::from(memory), rows, row: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use bg_common::{Backend, Identity, NextHop};

    use super::*;

    fn backend() -> Backend {
        Backend {
            identity: Identity { epoch: 3, in_use: 1 },
            service: 5,
            colour: 1,
            next_hop: NextHop::pack(7, 1500, 1, 2, 99),
            next: 10,
            deployment: 9,
            ..Backend::default()
        }
    }

    #[test]
    fn a_changed_field_leaves_its_word_and_all_others_as_they_are() {
        let rows = Mapped::anonymous(2);
        rows.write(1, &backend());
        rows.update(1, |backend| backend.next = 20);
        assert_eq!(rows.read(1), Backend { next: 20, ..backend() });
        assert_eq!(rows.read(0), Backend::default());
    }

    #[test]
    fn what_others_write_meanwhile_stays_but_for_the_words_that_change() {
        let rows = Mapped::anonymous(1);
        rows.write(0, &backend());
        let learned = NextHop::pack(8, 1400, 3, 4, 100);
        rows.update(0, |row| {
            // A program in the kernel learns a next hop just now.
            rows.write(0, &Backend { next_hop: learned, ..backend() });
            row.identity.in_use = 0;
        });
        let identity = Identity { epoch: 3, in_use: 0 };
        assert_eq!(rows.read(0), Backend { identity, next_hop: learned, ..backend() });
    }
}
