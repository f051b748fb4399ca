//! Which backends get new connections, and how that changes.

use super::{
    arena::{BACKENDS, backend},
    judge::Change,
};
use bg_common::Colour;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// The live colour.
    Switches,
    /// One backend of the live colour, which is taken out, and put back by the next change.
    Backends,
}

/// The backends that get new connections: those of a colour, except perhaps one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) live: Colour,
    /// The backend of the live colour that is out.
    pub(super) out: Option<usize>,
    /// The backend that was out last.
    last: usize,
}

impl Serving {
    pub(super) fn first() -> Self {
        Self { live: Colour::Blue, out: None, last: 0 }
    }

    /// After the next change.
    pub(super) fn next(self, kind: Kind) -> Self {
        match (kind, self.out) {
            (Kind::Switches, _) => Self { live: self.live.other(), ..self },
            (Kind::Backends, Some(_)) => Self { out: None, ..self },
            (Kind::Backends, None) => {
                let last = (self.last + 1) % BACKENDS;
                Self { out: Some(last), last, ..self }
            }
        }
    }

    /// The numbers of the backends of a colour that get new connections when it is live.
    pub(super) fn numbers(self, colour: Colour) -> impl Iterator<Item = usize> {
        (0..BACKENDS).filter(move |number| colour != self.live || Some(*number) != self.out)
    }

    pub(super) fn addresses(self) -> Vec<Ipv4Addr> {
        self.numbers(self.live).map(|number| backend(self.live, number)).collect()
    }

    /// The change to another state, made in this time.
    pub(super) fn change(self, to: Self, issued_ns: u64, returned_ns: u64) -> Change {
        let (before, after) = (self.addresses(), to.addresses());
        let without = |some: &[Ipv4Addr], others: &[Ipv4Addr]| {
            some.iter().copied().filter(|address| !others.contains(address)).collect()
        };
        Change { issued_ns, returned_ns, old: without(&before, &after), new: without(&after, &before) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_replaces_all_backends_and_a_backend_goes_and_returns() {
        let first = Serving::first();
        let switched = first.next(Kind::Switches);
        let change = first.change(switched, 1, 2);
        assert_eq!((change.old.len(), change.new.len()), (BACKENDS, BACKENDS));
        assert!(change.old.contains(&Ipv4Addr::new(10, 0, 1, 11)) && change.new.contains(&Ipv4Addr::new(10, 0, 2, 26)));

        let without = switched.next(Kind::Backends);
        let gone = switched.change(without, 1, 2);
        assert_eq!((gone.old, gone.new), (vec![Ipv4Addr::new(10, 0, 2, 12)], vec![]));
        let returned = without.change(without.next(Kind::Backends), 1, 2);
        assert_eq!((returned.old, returned.new), (vec![], vec![Ipv4Addr::new(10, 0, 2, 12)]));
        let other = without.next(Kind::Backends).next(Kind::Backends);
        assert_ne!(other.out, without.out);
        assert_eq!(other.numbers(Colour::Blue).count(), BACKENDS, "only a backend of the live colour is out");
    }
}
