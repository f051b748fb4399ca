//! Maglev consistent hashing over weighted backends (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of the table's entries that depends only on its address. The
//! backends take turns to claim their next free entry, as often as their weight says. So
//! shares are exact to about one entry, and removing a backend changes few entries of
//! the others.

use std::net::SocketAddr;

/// The lengths that a table can have. They are primes, so that every step width visits every entry. There are only a few,
/// because a table of another length has nothing in common with the one before, and
/// changes of the number of backends should rarely change the length.
const LENGTHS: [u32; 9] = [251, 503, 1009, 2003, 4001, 8009, 16_001, 32_003, 65_537];

/// Entries that the smallest positive weight should get.
const ENTRIES_PER_BACKEND: u64 = 40;

/// The number of entries for backends with these weights. It is 0 if no weight is positive and 1 if only one is. Otherwise it is
/// a prime that gives the smallest positive weight 30 to 60 entries if the longest table
/// allows that, and more if there are few backends.
pub fn table_len(weights: &[u32]) -> u32 {
    let positive = || weights.iter().filter(|weight| **weight > 0);
    match positive().count() {
        0 => 0,
        1 => 1,
        _ => {
            let smallest = u64::from(*positive().min().unwrap_or(&1));
            let sum: u64 = positive().map(|weight| u64::from(*weight)).sum();
            let wanted = sum.saturating_mul(ENTRIES_PER_BACKEND).div_ceil(smallest);
            let enough = wanted / 4 * 3;
            let longest = LENGTHS[LENGTHS.len() - 1];
            LENGTHS.into_iter().find(|len| u64::from(*len) >= enough).unwrap_or(longest)
        }
    }
}

/// Fills `table` with indexes into `ids`, whose weights are `weights`.
///
/// `ids` are the backends' [`identity`]. Their order does not affect which backend gets which
/// entry. Every positive weight gets an entry as long as the table has at least as many entries as there are backends.
/// A zero weight gets none. The table's length must be [`table_len`] of the weights.
///
/// # Panics
/// If `ids` and `weights` differ in length, or if the table has entries but no weight is positive.
pub fn fill(ids: &[u64], weights: &[u32], table: &mut [u32]) {
    const FREE: u32 = u32::MAX;
    assert_eq!(ids.len(), weights.len(), "each backend has one identity and one weight");
    let len = table.len() as u32;
    let mut turns: Vec<Turn> =
        (0..).zip(ids.iter().zip(weights)).filter_map(|(i, (id, w))| Turn::new(i, *id, *w, len)).collect();
    if table.is_empty() {
        return;
    }
    assert!(!turns.is_empty(), "a table needs a backend with a positive weight");
    turns.sort_unstable_by_key(|turn| (turn.id, turn.index));

    let heaviest = turns.iter().map(|turn| turn.weight).max().unwrap_or(1);
    for turn in &mut turns {
        turn.credit = heaviest - turn.weight;
    }
    table.fill(FREE);
    let mut free = table.len();
    while free > 0 {
        for turn in &mut turns {
            turn.credit += turn.weight;
            if turn.credit < heaviest {
                continue;
            }
            turn.credit -= heaviest;
            while table[turn.next as usize] != FREE {
                turn.step(len);
            }
            table[turn.next as usize] = turn.index;
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
}

/// A whole share: what [`thin`] leaves a backend that is well.
const WHOLE: u16 = bg_common::FULL_SHARE;

/// Gives entries of backends that may not have all of them to the others.
///
/// `table` is as [`fill`] has left it, and `shares` says which part of its entries each backend keeps, in basis points. Only entries that
/// a backend does not keep change, and they change back when it keeps them again, whatever happened to others meanwhile. If the share of
/// a backend grows, it only gains entries. Other backends get the entries in proportion to what they keep.
///
/// The backend with the largest share keeps all of its entries, because somebody has to have them. If all shares are zero, or no
/// entry is left to any backend, the table stays as it is.
///
/// # Panics
/// If `ids` and `shares` differ in length, or if an entry is no index into them.
pub fn thin(ids: &[u64], shares: &[u16], table: &mut [u32]) {
    /// How often an entry looks for a backend to go to, before it takes any. Of a hundred entries that are looked at, at least
    /// one is kept, except if hardly any backend is left.
    const TRIES: u64 = 100;
    assert_eq!(ids.len(), shares.len(), "each backend has one identity and one share");
    let mut has_entries = vec![false; ids.len()];
    table.iter().for_each(|backend| has_entries[*backend as usize] = true);
    let of_those = shares.iter().zip(&has_entries).filter(|(_, has_entries)| **has_entries);
    let largest = of_those.map(|(share, _)| *share).max().unwrap_or(0).min(WHOLE);
    let is_kept = |entry: usize, backend: u32| {
        let share = u64::from(shares[backend as usize]);
        // The same entries each time, and all of them if it has the largest share.
        share != 0 && mix(ids[backend as usize] ^ mix(entry as u64)) % u64::from(largest) < share
    };
    if largest == 0 {
        return;
    }
    let kept: Vec<Option<u32>> =
        table.iter().enumerate().map(|(entry, backend)| is_kept(entry, *backend).then_some(*backend)).collect();
    let mut rest = Vec::new();
    for entry in 0..table.len() {
        if kept[entry].is_some() {
            continue;
        }
        // Other entries in an order of its own: the first one that is kept by another backend says to whom it goes.
        let owner = table[entry];
        let hash = |attempt: u64| mix(mix(entry as u64) ^ ids[owner as usize] ^ attempt) % table.len() as u64;
        let found = (1..=TRIES).find_map(|attempt| kept[hash(attempt) as usize].filter(|other| *other != owner));
        table[entry] = found.unwrap_or_else(|| {
            if rest.is_empty() {
                rest = kept.iter().flatten().copied().collect();
            }
            rest[(hash(0) % rest.len() as u64) as usize]
        });
    }
}

/// The hash of a backend's address and port. It is the same in every run, on every machine.
pub fn identity(address: SocketAddr) -> u64 {
    let octets = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    };
    let (upper, lower) = octets.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0, |word, octet| word << 8 | u64::from(*octet));
    mix(mix(mix(word(upper)) ^ word(lower)) ^ u64::from(address.port()))
}

/// A backend's position in its permutation, and how far it is from its next turn.
struct Turn {
    index: u32,
    id: u64,
    next: u32,
    skip: u32,
    weight: u64,
    credit: u64,
}

impl Turn {
    fn new(index: u32, id: u64, weight: u32, len: u32) -> Option<Self> {
        if weight == 0 || len == 0 {
            return None;
        }
        let next = (id % u64::from(len)) as u32;
        let skip = if len == 1 { 0 } else { (mix(id) % u64::from(len - 1)) as u32 + 1 };
        Some(Self { index, id, next, skip, weight: u64::from(weight), credit: 0 })
    }

    fn step(&mut self, len: u32) {
        self.next += self.skip;
        if self.next >= len {
            self.next -= len;
        }
    }
}

/// The finaliser of SplitMix64, with its increment so that zero does not stay zero.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(count: usize) -> Vec<u64> {
        (0..count).map(|i| identity(SocketAddr::from(([10, 0, (i >> 8) as u8, i as u8], 8080)))).collect()
    }

    fn table(ids: &[u64], weights: &[u32]) -> Vec<u32> {
        let mut table = vec![0; table_len(weights) as usize];
        fill(ids, weights, &mut table);
        table
    }

    fn shares(table: &[u32], backends: usize) -> Vec<u32> {
        let mut shares = vec![0; backends];
        table.iter().for_each(|index| shares[*index as usize] += 1);
        shares
    }

    #[test]
    fn a_table_is_as_long_as_its_backends_need() {
        assert_eq!(table_len(&[]), 0);
        assert_eq!(table_len(&[0, 0]), 0);
        assert_eq!(table_len(&[7]), 1);
        assert_eq!(table_len(&[0, 7, 0]), 1);
        assert_eq!(table_len(&[1, 1]), 251);
        assert_eq!(table_len(&[1; 100]), 4001);
        assert_eq!(table_len(&[5; 100]), 4001);
        assert_eq!(table_len(&[u32::MAX, 1]), 65_537);
    }

    #[test]
    fn every_length_is_prime() {
        for len in LENGTHS {
            assert!((2..).take_while(|d| d * d <= len).all(|d| len % d != 0), "{len}");
        }
    }

    #[test]
    fn a_single_backend_fills_its_single_entry() {
        assert_eq!(table(&addresses(3), &[0, 4, 0]), [1]);
    }

    #[test]
    fn equal_weights_share_equally() {
        let shares = shares(&table(&addresses(100), &[1; 100]), 100);
        assert!(shares.iter().all(|share| (40..=41).contains(share)), "{shares:?}");
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let ids = addresses(9);
        let weights: Vec<u32> = (1..=9).collect();
        let (mut back_ids, mut back_weights) = (ids.clone(), weights.clone());
        back_ids.reverse();
        back_weights.reverse();
        let by_id = |ids: &[u64], table: Vec<u32>| table.iter().map(|i| ids[*i as usize]).collect::<Vec<_>>();
        assert_eq!(by_id(&ids, table(&ids, &weights)), by_id(&back_ids, table(&back_ids, &back_weights)));
    }

    #[test]
    fn an_address_hashes_the_same_on_every_machine() {
        assert_eq!(identity("10.0.1.11:8443".parse().unwrap()), identity("10.0.1.11:8443".parse().unwrap()));
        assert_ne!(identity("10.0.1.11:8443".parse().unwrap()), identity("10.0.1.11:8444".parse().unwrap()));
        assert_ne!(identity("[::1]:1".parse().unwrap()), identity("[::2]:1".parse().unwrap()));
    }

    #[test]
    fn a_thousand_services_of_a_hundred_backends_are_no_wait() {
        let weights = [1; 100];
        let ids = addresses(100);
        let mut table = vec![0; table_len(&weights) as usize];
        let start = std::time::Instant::now();
        for salt in 0..2000 {
            let ids: Vec<u64> = ids.iter().map(|id| mix(id ^ salt)).collect();
            fill(&ids, &weights, &mut table);
        }
        // Unoptimised and on a busy machine; a release build takes a fifth of a second.
        assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(0u32..=20, 2..40)) {
            let ids = addresses(weights.len());
            let table = table(&ids, &weights);
            let sum: u32 = weights.iter().sum();
            for (share, weight) in shares(&table, weights.len()).into_iter().zip(&weights) {
                let exact = if sum == 0 { 0.0 } else { f64::from(*weight) * table.len() as f64 / f64::from(sum) };
                if *weight == 0 {
                    prop_assert_eq!(share, 0);
                } else {
                    prop_assert!(share >= 1 && (f64::from(share) - exact).abs() <= 2.0 + exact * 0.1, "{} for {}", share, exact);
                }
            }
        }

        #[test]
        fn taking_one_away_moves_few_others(count in 3usize..60, gone in 0usize..60) {
            let gone = gone % count;
            let ids = addresses(count);
            let mut weights = vec![1; count];
            let before = table(&ids, &weights);
            let mut after = vec![0; before.len()];
            weights[gone] = 0;
            fill(&ids, &weights, &mut after);
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone as u32 && a != b).count();
            prop_assert!(!after.contains(&(gone as u32)));
            prop_assert!(moved * 8 <= before.len(), "{} of {} entries moved", moved, before.len());
        }

        #[test]
        fn only_entries_of_those_whose_health_changes_move(
            weights in prop::collection::vec(1u32..=4, 2..30),
            before in prop::collection::vec(prop::sample::select(vec![0u16, 3000, WHOLE]), 30),
            changed in 0usize..30,
            to in prop::sample::select(vec![0u16, 100, 5000, WHOLE]),
        ) {
            let ids = addresses(weights.len());
            let mut before = before[..weights.len()].to_vec();
            // One that is always well, so that the largest share stays the same.
            before[0] = WHOLE;
            let changed = 1 + changed % (weights.len() - 1);
            let mut after = before.clone();
            after[changed] = to;
            let (_, old) = thinned(&ids, &weights, &before);
            let (_, new) = thinned(&ids, &weights, &after);
            for (entry, (old, new)) in old.iter().zip(&new).enumerate() {
                let is_concerned = [*old, *new].contains(&(changed as u32));
                prop_assert!(old == new || is_concerned, "{} moved from {} to {}", entry, old, new);
                if to > before[changed] && old != new {
                    prop_assert_eq!(*new, changed as u32, "it only gains entries");
                }
            }
            if to == 0 {
                prop_assert!(!new.contains(&(changed as u32)));
            }
        }
    }

    /// The table of these weights, before and after it was thinned.
    fn thinned(ids: &[u64], weights: &[u32], shares: &[u16]) -> (Vec<u32>, Vec<u32>) {
        let before = table(ids, weights);
        let mut after = before.clone();
        thin(ids, shares, &mut after);
        (before, after)
    }

    #[test]
    fn one_of_ten_that_is_down_moves_its_own_tenth_and_nothing_else() {
        let ids = addresses(10);
        let mut down = vec![WHOLE; 10];
        down[3] = 0;
        let (base, table) = thinned(&ids, &[1; 10], &down);
        let moved = base.iter().zip(&table).filter(|(before, after)| before != after).count();
        let others = base.iter().zip(&table).filter(|(before, after)| **before != 3 && before != after).count();
        let shares = shares(&table, 10);
        println!("{moved} of {} entries moved, {others} of others; entries afterwards {shares:?}", base.len());
        assert_eq!((moved, others), (base.iter().filter(|backend| **backend == 3).count(), 0));
        let mean = base.len() as f64 / 9.0;
        assert!(
            shares.iter().enumerate().all(|(i, n)| i == 3 || (f64::from(*n) / mean - 1.0).abs() < 0.15),
            "{shares:?}"
        );
    }

    #[test]
    fn those_that_are_left_share_by_weight_however_few_they_are() {
        let ids = addresses(100);
        let weights: Vec<u32> = (0..100).map(|i| 1 + i % 2).collect();
        let health: Vec<u16> = (0..100).map(|i| if i < 4 { WHOLE } else { 0 }).collect();
        let shares = shares(&thinned(&ids, &weights, &health).1, 100);
        assert_eq!(shares[4..].iter().sum::<u32>(), 0);
        let [light, heavy] = [shares[0] + shares[2], shares[1] + shares[3]].map(f64::from);
        assert!((1.6..2.4).contains(&(heavy / light)), "{:?}", &shares[..4]);
    }

    #[test]
    fn if_all_are_down_or_start_slowly_together_nothing_moves() {
        let ids = addresses(7);
        for share in [0, 1, 2500, WHOLE] {
            let (base, table) = thinned(&ids, &[1; 7], &[share; 7]);
            assert_eq!(base, table, "{share}");
        }
        let (base, table) = thinned(&ids[..1], &[1], &[0]);
        assert_eq!(base, table);
    }

    #[test]
    fn a_slow_start_gets_its_part() {
        let ids = addresses(4);
        for share in [1000, 5000] {
            let table = thinned(&ids, &[1; 4], &[WHOLE, WHOLE, share, WHOLE]).1;
            let part = f64::from(shares(&table, 4)[2]) / (table.len() as f64 / 4.0);
            let wanted = f64::from(share) / f64::from(WHOLE);
            assert!((part - wanted).abs() < 0.15, "{part} instead of {wanted}");
        }
    }
}
