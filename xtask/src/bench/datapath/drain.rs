//! Open flows after a switch: while flows of the previous colour drain, and after the drain.

use super::{
    super::report::Table,
    RoundsTable, Setup,
    case::{Case, Direction},
    edge::{Edge, Rounds, Sample},
    frame::{Flows, Order, Segment},
};
use anyhow::{Result, ensure};
use bg_common::{Colour, FULL_SHARE, LiveFlags, LiveWord, SwitchTerms};
use bg_tests::twin::{Scenario, TICKS_LONG};

/// The stage of the deployment.
#[derive(Clone, Copy)]
enum Stage {
    /// There was no switch. Blue is live.
    Steady,
    /// Green is live, and flows of blue drain.
    Draining,
    /// Green is live, and the drain is over.
    Drained,
}

impl Stage {
    /// The case's scenario at this stage. `now` is the data path's tick.
    fn scenario(self, case: &Case, now: u32) -> Scenario {
        let mut scenario = case.scenario();
        let end = match self {
            Self::Steady => return scenario,
            Self::Draining => now.wrapping_add(TICKS_LONG),
            Self::Drained => now.wrapping_sub(1),
        };
        let (_, word, terms) = &mut scenario.deployments[0];
        *word = LiveWord::new(word.generation() + 1, LiveFlags::DRAINING, 0, FULL_SHARE);
        terms[word.terms_slot()] = SwitchTerms { drain_deadline: end, ..SwitchTerms::default() };
        scenario
    }
}

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut table = RoundsTable::new(&["flow", "flows"]);
    for case in Case::both_families()? {
        for count in setup.args.flows(524_288) {
            let mut edge = Edge::load(setup, (2 * count).max(65_536), &case)?;
            let before = Flows::first(count);
            let since = before.next();
            for (stage, flows) in [(Stage::Steady, before), (Stage::Draining, since)] {
                enter(&mut edge, stage, &case)?;
                edge.establish(&case, flows)?;
            }
            let contenders = [
                ("no switch", Stage::Steady, before, Colour::Blue),
                ("during the drain, opened before it", Stage::Draining, before, Colour::Blue),
                ("during the drain, opened since", Stage::Draining, since, Colour::Green),
                ("after the drain", Stage::Drained, since, Colour::Green),
            ];
            let mut samples: [Vec<Sample>; 4] = Default::default();
            for _ in 0..setup.args.rounds() {
                for (&(name, stage, flows, colour), samples) in contenders.iter().zip(&mut samples) {
                    enter(&mut edge, stage, &case)?;
                    let packets = edge.packets(&case, Direction::Forward, Segment::Data, flows, Order::Random)?;
                    let before = edge.traffic_of(colour.other())?;
                    samples.push(edge.sample_anew(&packets, flows, setup.args.packets())?);
                    let other = edge.traffic_of(colour.other())?.packets - before.packets;
                    // Those that the table had no room for are opened again, by the word.
                    let most = u64::from(setup.args.packets()) / 1000;
                    ensure!(other <= most, "{name}: {other} packets went to {}", colour.other().name());
                }
            }
            for ((name, ..), samples) in contenders.iter().zip(samples) {
                let name = format!("{}, {name}", case.name());
                table.push([name.into(), f64::from(count).into()], &Rounds(samples));
            }
        }
    }
    Ok(table.finish("A packet of an open flow, after a switch", "Client to backend, after a switch with drain."))
}

/// Publishes the stage's live word and terms.
fn enter(edge: &mut Edge<'_>, stage: Stage, case: &Case) -> Result<()> {
    let now = edge.kernel().tick()?;
    edge.kernel().set_deployments(&stage.scenario(case, now))
}
