//! What a switch has done to the flows that were open.

use std::time::Duration;

use bg_common::{Flow, FlowKey4, FlowKey6, FlowState, Protocol};
use bg_ebpf::policy::lifetime::{ended_by, is_open};

use super::{receipt::Noted, store::Stored};
use crate::{
    Error, Instance,
    config::OnSwitch,
    fates::Fates,
    flow_table::{FlowKey, FlowTable},
    flows::{Scan, Target},
    history::Receipt,
    maps::{backends, flows4, flows6},
};

impl Instance {
    /// The receipt of a switch, once it is done. `None` if the flows cannot be counted.
    pub(super) fn receipt(&self, deployment: u16, stored: &Stored, noted: Noted) -> Option<Receipt> {
        let Fates { stay: kept, moved, reset } = self.fates(deployment, stored).ok()?;
        let micros = |time: Duration| time.as_micros() as u64;
        Some(Receipt {
            first_new_us: noted.first_new.map(micros),
            last_old_us: noted.last_old.map(micros),
            kept,
            moved,
            reset,
            dropped: noted.dropped,
        })
    }

    /// Counts the flows of a deployment that were open at a switch, by what has become of them.
    fn fates(&self, deployment: u16, stored: &Stored) -> Result<Fates, Error> {
        let scan = Scan::new(self, &backends(&self.paths)?)?;
        let judge = Judge { stored, deployment, scan: &scan };
        let mut fates = Fates::default();
        if scan.has_flows4() {
            fates += judge.count(&FlowTable::<FlowKey4>::new(flows4(&self.paths)?.all()));
        }
        if scan.has_flows6() {
            fates += judge.count(&FlowTable::<FlowKey6>::new(flows6(&self.paths)?.all()));
        }
        Ok(fates)
    }
}

struct Judge<'a> {
    stored: &'a Stored,
    deployment: u16,
    scan: &'a Scan,
}

impl Judge<'_> {
    fn count<K: FlowKey + Sync>(&self, table: &FlowTable<'_, K>) -> Fates {
        let threads = table.fold(Fates::default, |fates, entry| {
            let Some(entry) = entry else { return };
            let Some(target) = self.scan.target(entry.flow.backend.slot()) else { return };
            if target.deployment == self.deployment && target.is_of(&entry.flow) {
                *fates += self.fate(&entry.flow, target);
            }
        });
        threads.into_iter().fold(Fates::default(), |mut sum, fates| {
            sum += fates;
            sum
        })
    }

    fn fate(&self, flow: &Flow, target: &Target) -> Fates {
        let (Stored { from, to, .. }, now) = (self.stored, self.scan.now);
        let is_tcp = target.protocol == Protocol::Tcp;
        if flow.generation > from.generation {
            // It has its row since the switch. A packet may have moved it already.
            let is_ended = self.stored.on_switch == OnSwitch::Cut || flow.state.has(FlowState::IDLE_ONLY);
            return match flow.generation == to.generation && is_ended {
                true if flow.state.has(FlowState::REUSED) => Fates::MOVE,
                // Picked up in mid-stream: the new backend does not know it.
                true if is_tcp && flow.note == 0 => Fates::RESET,
                _ => Fates::default(),
            };
        }
        let was_open = self.scan.row(self.deployment).is_some_and(|row| is_open(flow, target.protocol, row, now))
            && !ended_by(flow, target.colour, from.word, &from.terms, now);
        if !was_open {
            return Fates::default();
        }
        Fates::of(flow, target, to.word, &to.terms, now)
    }
}
