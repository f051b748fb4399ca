//! The filter that spares most packets the look-up in the `services` map: a bit that is set says that no key there has
//! this hash. So a bit too few costs time, and a bit too many a service.
//!
//! A bit is cleared before the first row that needs it is written, and bits are set only at the end, from the rows that
//! the map holds then: whenever a call is killed, what stands is right. Both happen under the lock of an apply.

use std::{collections::HashMap, sync::atomic::Ordering};

use bg_common::{ServiceKey, ServiceRow};
use bg_ebpf::choice::filter_hash;

use crate::{Error, maps::Services, sys::Mapped};

/// Word and bit of a key.
fn place(key: &ServiceKey) -> (usize, u64) {
    let hash = filter_hash(key);
    (hash as usize / 64, 1 << (hash % 64))
}

/// Lets packets for this key through.
pub(super) fn admit(filter: &Mapped<u64>, key: &ServiceKey) {
    let (word, bit) = place(key);
    filter.words(word)[0].fetch_and(!bit, Ordering::SeqCst);
}

/// Lets packets for all keys of the map through, and no others but for hashes that are the same.
pub(super) fn settle(services: &Services) -> Result<(), Error> {
    for (row, word) in words(&services.published()?, services.filter.rows()).into_iter().enumerate() {
        let words = services.filter.words(row);
        if words[0].load(Ordering::Relaxed) != word {
            words[0].store(word, Ordering::SeqCst);
        }
    }
    Ok(())
}

fn words(published: &HashMap<ServiceKey, ServiceRow>, rows: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; rows];
    for (word, bit) in published.keys().map(place) {
        words[word] &= !bit;
    }
    words
}
