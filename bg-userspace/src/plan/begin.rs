//! The live colour with which a deployment starts, and virtual addresses that move between deployments.
//!
//! A virtual address keeps its live colour, because its clients know nothing of deployments. So a new deployment that takes over
//! services of running deployments starts with the colour that is live there. If that is not possible, because the colours
//! differ or the deployment already runs with the other colour, an apply is refused unless it is forced.

use std::collections::BTreeSet;

use bg_common::{Colour, LiveFlags, LiveWord};

use super::beginning::{Because, Beginning, ColourChange};
use crate::{
    config::{Deployment, protocol_name},
    history::Moment,
    live::{Reading, colour_of},
    running::{Running, service_key},
};

/// A virtual address that belongs to another deployment at present.
struct TakenOver<'a> {
    service: usize,
    from: &'a str,
    reading: Reading,
}

impl Beginning {
    /// How `wanted` starts, if it does not run yet. `reading` returns the live state of a running deployment by its index,
    /// and `last` is the entry of this name in the state directory.
    pub(crate) fn of(
        wanted: &Deployment,
        running: &Running,
        reading: impl Fn(u16) -> Option<Reading>,
        last: Option<Moment>,
    ) -> Self {
        // Every generation except the first was preceded by the other colour. If that is none to go back to, the generation will say so.
        let previous = |Moment { generation, live }| if generation > 1 { live.other() } else { live };
        let taken_over = taken_over(wanted, running, reading);
        let newest = taken_over.iter().map(|taken| taken.reading.lasting()).max_by_key(|then| then.generation);
        let same = |then: Moment| taken_over.iter().all(|taken| taken.reading.lasting().live == then.live);
        if let Some(then) = newest.filter(|then| same(*then)) {
            // Later than the entry of this name in the state directory, so that it replaces the entry.
            let after = last.map_or(1, |last| last.generation.saturating_add(1));
            let from: BTreeSet<&str> = taken_over.iter().map(|taken| taken.from).collect();
            return Self {
                live: then.live,
                generation: then.generation.max(after),
                because: Because::TakenOver { from: from.into_iter().map(str::to_owned).collect() },
                previous: previous(then),
            };
        }
        match last {
            Some(then) => Self {
                live: then.live,
                generation: then.generation.max(1),
                because: Because::LastLive,
                previous: previous(then),
            },
            None => {
                let live = wanted.initial;
                Self { live, generation: 1, because: Because::Initial, previous: live }
            }
        }
    }

    /// The state for the journal.
    pub(crate) const fn moment(&self) -> Moment {
        Moment { generation: self.generation, live: self.live }
    }

    /// The live word.
    pub(crate) fn word(&self) -> LiveWord {
        LiveWord::new(self.generation, LiveFlags::NONE, self.previous.full_share(), self.live.full_share())
    }
}

/// The virtual addresses that change their live colour if `wanted` starts or continues with `becomes`.
pub(crate) fn colour_changes(wanted: &Deployment, running: &Running, becomes: Colour) -> Vec<ColourChange> {
    let taken_over = taken_over(wanted, running, |index| running.reading(index));
    // A share of one half is no colour that could change.
    let live = |taken: &TakenOver<'_>| colour_of(taken.reading.word.target_share());
    let changes = taken_over.into_iter().filter_map(|taken| Some((live(&taken)?, taken)));
    changes
        .filter(|(live, _)| *live != becomes)
        .map(|(live, taken)| {
            let service = &wanted.services[taken.service];
            ColourChange {
                deployment: wanted.name.clone(),
                service: service.name.clone(),
                vip: service.vip,
                protocol: protocol_name(service.protocol),
                from: taken.from.to_owned(),
                live,
                becomes,
            }
        })
        .collect()
}

/// A deployment whose switch waits for its confirmation or its time, and from which `wanted` takes a virtual address over.
pub(crate) fn interrupted<'a>(wanted: &'a Deployment, running: &'a Running) -> Option<&'a str> {
    let taken_over = taken_over(wanted, running, |index| running.reading(index));
    let waits = |taken: &TakenOver<'_>| taken.reading.is_guarded() || taken.reading.is_pending();
    taken_over.into_iter().find(waits).map(|taken| taken.from)
}

fn taken_over<'a>(
    wanted: &Deployment,
    running: &'a Running,
    reading: impl Fn(u16) -> Option<Reading>,
) -> Vec<TakenOver<'a>> {
    let mut taken_over = Vec::new();
    for (service, spec) in wanted.services.iter().enumerate() {
        let Some(now) = running.by_vip(&service_key(spec.vip, spec.protocol)) else { continue };
        let Some(from) = running.name_of(now.deployment) else { continue };
        let Some(reading) = reading(now.deployment) else { continue };
        // A deployment that a killed apply has not started has no live colour.
        if from != wanted.name && reading.generation != 0 {
            taken_over.push(TakenOver { service, from, reading });
        }
    }
    taken_over
}
