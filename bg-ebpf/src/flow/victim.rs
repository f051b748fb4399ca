//! Which row of a bucket a new flow takes.
//!
//! Rows of flows that have ended or timed out are free. If there are none, the new flow evicts an open one: first one in which
//! not both ends have taken part, so that a flood of SYNs, of forged segments or of single datagrams evicts itself; among
//! these and among the others first one of the new flow's own generation, which would be opened at the same backend
//! again if it were lost; and of these the one whose silence is the greatest part of the silence that it may keep.

use super::{
    bucket::{WAYS, row, unrolled_row},
    key::Key,
    memory::Words,
};
use crate::hint::{opaque, rolled};
use bg_common::FlowState;

/// How much a place suits a new flow: class, then silence, then the place's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Rank(u64);

impl Rank {
    /// Above the silence, and below what [`Survey::to_u64`] needs.
    const CLASS_SHIFT: u32 = 52;
    const TURN_BITS: u32 = WAYS.ilog2();
    const OPEN: u64 = 1;
    const SAME_GENERATION: u64 = 2;
    const NOT_ASSURED: u64 = 4;
    const OVER: u64 = 8;
    const EMPTY: u64 = 16;

    /// An empty place.
    pub(super) const fn empty(turn: u32) -> Self {
        Self(Self::EMPTY << Self::CLASS_SHIFT | Self::of_turn(turn))
    }

    const fn of_turn(turn: u32) -> u64 {
        (WAYS - 1 - turn) as u64
    }

    /// The place's turn in its bucket.
    pub(super) const fn turn(self) -> u32 {
        WAYS - 1 - (self.0 as u32 & (WAYS - 1))
    }

    /// Whether the place is empty.
    pub(super) const fn is_empty(self) -> bool {
        self.0 >> Self::CLASS_SHIFT == Self::EMPTY
    }

    /// Whether anybody can have the place: no flow is being written there.
    pub(super) const fn is_to_be_had(self) -> bool {
        self.0 >> Self::TURN_BITS != 0
    }

    /// Whether an open flow in which both ends have taken part stands there.
    pub(super) const fn is_assured(self) -> bool {
        self.0 >> Self::CLASS_SHIFT < Self::NOT_ASSURED
    }

    /// Whether this place suits better than the other, whatever their turns.
    pub(super) const fn suits_better_than(self, other: Self) -> bool {
        self.0 >> Self::TURN_BITS > other.0 >> Self::TURN_BITS
    }
}

/// `65,536 / (4 + mantissa)` for the four mantissas of [`FlowState::limit_code`].
const RECIPROCALS: u64 = 0x2492_2aaa_3333_4000;

/// Rank of a place, and 1 if it is free.
///
/// There is no branch here: of eight places the verifier would follow each way through each. Bits are moved to where they
/// are wanted, and `opaque` keeps the compiler from seeing a condition in them.
#[inline(always)]
pub(super) fn rank(head: u64, origin: u64, times: u64, turn: u32, now: u32, generation: u32) -> (Rank, u64) {
    use FlowState as S;
    let bits = opaque(head & 0xffff_ffff);
    let at = |mask: u32| bits >> mask.trailing_zeros();
    let is_live = at(S::LIVE) & 1;
    let is_empty = opaque(bits & u64::from(S::STATUS)).wrapping_sub(1) >> 63;
    // Another CPU may have seen a later tick than this one had read: that is no silence.
    let silence = now.wrapping_sub(times as u32);
    let silence = u64::from(silence) & opaque(u64::from(silence >> 31).wrapping_sub(1));
    let code = u64::from(S(bits as u32).limit_code());
    let is_silent = opaque(u64::from(S(bits as u32).limit()).wrapping_sub(silence)) >> 63;
    // In 65,536ths of the silence that it may keep.
    let relative = silence.wrapping_mul(RECIPROCALS >> (16 * (code & 3)) & 0xffff) >> (code >> 2 & 0x1f);
    let has_ended = at(S::CLIENT_RESET) | at(S::BACKEND_RESET) | (at(S::CLIENT_FIN) & at(S::BACKEND_FIN));
    let is_over = has_ended & 1 | is_silent;
    let is_assured = at(S::CONFIRMED) & at(S::ANSWERED) & 1;
    let differs = opaque(u64::from(generation) ^ origin >> 32);
    let is_same_generation = differs.wrapping_sub(1) >> 63;
    let class = Rank::OPEN
        | (Rank::SAME_GENERATION * is_same_generation)
        | (Rank::NOT_ASSURED * (is_assured ^ 1))
        | (Rank::OVER * is_over);
    let if_live = 0_u64.wrapping_sub(opaque(is_live));
    let rank = if_live & (class << Rank::CLASS_SHIFT | relative << Rank::TURN_BITS)
        | (Rank::EMPTY * is_empty) << Rank::CLASS_SHIFT;
    (Rank(rank | Rank::of_turn(turn)), is_empty | opaque(is_live & is_over))
}

/// A place in the two buckets of a hash.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Place(u64);

impl Place {
    /// None.
    pub const NONE: Self = Self(0);

    const SECOND_SHIFT: u32 = 63;

    #[inline(always)]
    pub(super) const fn new(is_second: bool, rank: Rank) -> Self {
        Self(rank.0 | (is_second as u64) << Self::SECOND_SHIFT)
    }

    /// Whether it is in the second bucket.
    #[inline(always)]
    pub(super) const fn is_second(self) -> bool {
        self.0 >> Self::SECOND_SHIFT != 0
    }

    /// Its rank.
    #[inline(always)]
    pub(super) const fn rank(self) -> Rank {
        Rank(self.0 & !(1 << Self::SECOND_SHIFT))
    }
}

/// What a bucket has for a new flow.
#[derive(Clone, Copy)]
pub struct Survey {
    /// Its best place.
    pub(super) best: Rank,
    /// Places that are free.
    pub(super) free: u64,
}

impl Survey {
    /// Of a bucket that is not there.
    pub(super) const NOTHING: Self = Self { best: Rank(0), free: 0 };

    const FREE_SHIFT: u32 = 60;

    /// For a global function to return.
    #[inline(always)]
    pub const fn to_u64(self) -> u64 {
        const {
            assert!(
                Rank::EMPTY << 1 <= 1 << (Self::FREE_SHIFT - Rank::CLASS_SHIFT) && WAYS < 1 << (64 - Self::FREE_SHIFT)
            )
        };
        self.best.0 | self.free << Self::FREE_SHIFT
    }

    /// From what a global function has returned.
    #[inline(always)]
    pub const fn from_u64(survey: u64) -> Self {
        Self { best: Rank(survey & ((1 << Self::FREE_SHIFT) - 1)), free: survey >> Self::FREE_SHIFT }
    }

    /// Whether the other bucket is the better choice: it has more free places, or neither has one and its best place is better.
    pub(super) fn yields_to(self, other: Self) -> bool {
        other.free > self.free || (self.free == 0 && other.best.suits_better_than(self.best))
    }
}

/// Looks at all places of a bucket.
#[inline(always)]
pub(super) fn survey<K: Key, W: Words>(bucket: W, hash: u32, now: u32, generation: u32) -> Survey {
    let (mut best, mut free) = (0_u64, 0);
    for turn in rolled(WAYS) {
        let row = row::<K, _>(bucket, hash, turn).from(K::HEAD);
        let (Rank(rank), is_free) = rank(row.load(0), row.load(1), row.load(2), turn, now, generation);
        // The greater one, without a branch.
        let is_less = opaque((best.wrapping_sub(rank) as i64 >> 63) as u64);
        best ^= (best ^ rank) & is_less;
        free += is_free;
    }
    Survey { best: Rank(best), free }
}

/// The empty places of a bucket: whether there are two, and the turn of the first. Much shorter than [`survey`].
#[inline(always)]
pub(super) fn two_empty<K: Key, W: Words>(bucket: W, hash: u32) -> Option<u32> {
    // Turn of the lowest bit of a set of eight, by a de Bruijn sequence.
    const TURNS: u64 = turns();
    let mut set = 0;
    for turn in 0..WAYS {
        let status = opaque(unrolled_row::<K, _>(bucket, hash, turn).load(K::HEAD) & u64::from(FlowState::STATUS));
        set |= (status.wrapping_sub(1) >> 63) << turn;
    }
    let lowest = set & 0_u64.wrapping_sub(set);
    let turn = TURNS >> (4 * ((lowest * DE_BRUIJN) >> 5 & 7)) & 7;
    (set != lowest).then_some(turn as u32)
}

/// Its eight windows of three bits are all different.
const DE_BRUIJN: u64 = 0b0001_0111;

const fn turns() -> u64 {
    let (mut turns, mut bit) = (0, 0);
    while bit < 8 {
        turns |= bit << (4 * (((1 << bit) * DE_BRUIJN) >> 5 & 7));
        bit += 1;
    }
    turns
}

const _: () = assert!(WAYS == 8);
