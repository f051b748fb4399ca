//! A bounded number of inputs, chosen by a generator whose seed is told: random ones, and mutations of those that are kept. It knows nothing of what
//! an input reaches, as libFuzzer does, but needs no other compiler.

use crate::Target;
use bg_tests::Chance;

/// Pieces of text that mean something to some target.
const PIECES: [&str; 24] = [
    "\"",
    "'",
    "\n",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ":",
    "-1",
    "0",
    "4294967295",
    "18446744073709551616",
    "1e308",
    "\\u0000",
    "é",
    "null",
    "true",
    "[deployments.x]",
    "{\"generation\":4294967295,\"live\":\"green\"}",
    "\"\"\"",
    "#",
    "9999999999d",
];

/// Chooses inputs for a target, from these that are kept.
pub struct Chosen<'a> {
    target: &'a Target,
    kept: &'a [Vec<u8>],
    chance: Chance,
    input: Vec<u8>,
}

impl<'a> Chosen<'a> {
    /// With a seed for each sequence.
    pub fn new(target: &'a Target, kept: &'a [Vec<u8>], seed: u64) -> Self {
        Self { target, kept, chance: Chance::seeded(seed), input: Vec::new() }
    }

    /// The next input.
    pub fn choose(&mut self) -> &[u8] {
        self.input.clear();
        if self.kept.is_empty() || (!self.target.is_text && self.chance.number().is_multiple_of(4)) {
            let len = self.below(self.target.longest.min(1024));
            self.random(len);
        } else {
            let start = self.kept_one();
            self.input.extend_from_slice(start);
            for _ in 0..=self.below(6) {
                self.mutate();
            }
        }
        self.input.truncate(self.target.longest);
        &self.input
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.chance.number() % limit.max(1) as u64) as usize
    }

    fn kept_one(&mut self) -> &'a [u8] {
        let kept = self.kept;
        &kept[self.below(kept.len())]
    }

    fn random(&mut self, len: usize) {
        for _ in 0..len.div_ceil(8) {
            self.input.extend_from_slice(&self.chance.number().to_ne_bytes());
        }
    }

    fn mutate(&mut self) {
        let len = self.input.len();
        let at = self.below(len + 1);
        match self.chance.number() % 8 {
            0 if len > 0 => self.input[at % len] ^= 1 << (self.chance.number() % 8),
            1 if len > 0 => self.input[at % len] = self.chance.number() as u8,
            2 if len > 0 => {
                let [low, high] = [at, self.below(len + 1)].map(|at| at.min(len));
                self.input.drain(low.min(high)..low.max(high).min(low.min(high) + 64));
            }
            3 => self.input.truncate(at),
            4 => {
                let [a, b] = [self.below(len + 1), self.below(len + 1)];
                let piece = self.input[a.min(b)..a.max(b)].to_vec();
                self.input.splice(at..at, piece);
            }
            5 => {
                let other = self.kept_one();
                let from = self.below(other.len() + 1);
                let to = from + self.below(other.len() - from + 1);
                self.input.splice(at..at, other[from..to].iter().copied());
            }
            6 if self.target.is_text => {
                let piece = PIECES[self.below(PIECES.len())];
                self.input.splice(at..at, piece.bytes());
            }
            _ => {
                let number = self.chance.number();
                let more = 1 + (number >> 32) as usize % 8;
                self.input.splice(at..at, number.to_ne_bytes().into_iter().take(more));
            }
        }
    }
}
