//! How many connections or copies there may be, and how many of them of one service.
//!
//! Half of the places are divided among the services: so many are always left for each of them, whatever the others do. The other half is for whoever comes first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The places for all services.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    used: Mutex<Used>,
}

/// How many places each share uses.
#[derive(Debug, Default)]
struct Used {
    last: u64,
    shares: HashMap<u64, usize>,
}

/// The places of a service.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<Room>,
    number: u64,
}

/// A place. Dropping it leaves it.
#[derive(Debug)]
pub(super) struct Place(Arc<Share>);

impl Room {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: Mutex::default() })
    }

    /// The share of another service.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        let number = {
            let mut used = self.lock();
            used.last += 1;
            let number = used.last;
            used.shares.insert(number, 0);
            number
        };
        Arc::new(Share { room: self.clone(), number })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// A place, if one is left for this service.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let Used { shares, .. } = &mut *self.room.lock();
        let own = self.room.most / (2 * shares.len());
        let common = self.room.most - own * shares.len();
        let here = shares.get(&self.number).copied().unwrap_or_default();
        // More than all of them are asked for only while services that are new wait for their places.
        let is_left = if here < own {
            shares.values().sum::<usize>() < self.room.most
        } else {
            shares.values().map(|used| used.saturating_sub(own)).sum::<usize>() < common
        };
        if !is_left {
            return None;
        }
        shares.insert(self.number, here + 1);
        Some(Place(self.clone()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.lock().shares.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(used) = self.0.room.lock().shares.get_mut(&self.0.number) {
            *used -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many places as there are.
    fn all(share: &Arc<Share>) -> Vec<Place> {
        std::iter::from_fn(|| share.take()).collect()
    }

    #[test]
    fn a_service_alone_has_all_places() {
        let room = Room::new(7);
        let share = room.share();
        let places = all(&share);
        assert_eq!(places.len(), 7);
        drop(places);
        assert_eq!(all(&share).len(), 7);
    }

    #[test]
    fn no_service_uses_up_the_places_of_another() {
        let room = Room::new(120);
        let [greedy, modest, late] = [(); 3].map(|()| room.share());
        let taken = all(&greedy);
        assert_eq!(taken.len(), 60 + 20);
        let second = all(&modest);
        assert_eq!(second.len(), 20, "its own");
        assert_eq!(all(&late).len(), 20);
        drop(taken);
        let more = all(&modest);
        assert_eq!(more.len(), 60, "what nobody else wants");
        assert_eq!(all(&greedy).len(), 20);
        // A share ends with its last place.
        drop((second, more, modest, late));
        assert_eq!(all(&greedy).len(), 120);
    }

    #[test]
    fn a_new_service_gets_its_places_as_soon_as_they_are_left() {
        let room = Room::new(8);
        let first = room.share();
        let mut taken = all(&first);
        let second = room.share();
        assert!(second.take().is_none(), "there are no more than eight");
        taken.pop();
        assert!(first.take().is_none(), "it has more than its own");
        assert!(second.take().is_some());
    }
}
