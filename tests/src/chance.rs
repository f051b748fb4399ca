//! Random numbers whose seed is printed, so that a failure can be reproduced.

use std::time::Duration;

/// A generator (xorshift64*). It is only good for spreading tests over instants.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// Seeded by `BG_TEST_SEED`, else by the clock; prints the seed.
    pub fn new() -> Self {
        let given = std::env::var("BG_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(crate::monotonic_ns);
        println!("BG_TEST_SEED={seed}");
        Self(seed.max(1))
    }

    /// Seeded by this number, for a sequence that is always the same.
    pub fn seeded(seed: u64) -> Self {
        // Small seeds differ in few bits; the golden ratio spreads them.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// A random number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A random time below this one.
    pub fn below(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.number() % (limit.as_nanos() as u64).max(1))
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
