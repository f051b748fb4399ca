//! Both directions of many flows, with packets in turns.

use super::{
    super::report::Table,
    RoundsTable, Setup,
    case::{Case, Direction, Way},
    edge::{Edge, Packets, Rounds, Sample},
    frame::{Flows, Order, Segment},
};
use anyhow::Result;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut table = RoundsTable::new(&["packets", "flows"]);
    for case in Case::both_families()? {
        // A test run's packets come in by one interface, so this edge has one.
        let case = case.by(Way::OneArmed);
        for count in setup.args.flows(524_288) {
            let flows = Flows::first(count);
            let mut edge = Edge::load(setup, count.max(65_536), &case)?;
            edge.establish(&case, flows)?;
            let forward = edge.packets(&case, Direction::Forward, Segment::Data, flows, Order::Random)?;
            let reply = edge.packets(&case, Direction::Reply, Segment::Data, flows, Order::OtherRandom)?;
            let in_turn = Packets {
                templates: [&*forward.templates, &*reply.templates].concat(),
                ..edge.packets(&case, Direction::Reply, Segment::Data, flows, Order::Random)?
            };
            // Twice as many, since each direction has every other one.
            let contenders = [("forward", &forward, 1), ("reply", &reply, 1), ("both in turn", &in_turn, 2)];
            let mut samples: [Vec<Sample>; 3] = Default::default();
            for _ in 0..setup.args.rounds() {
                for ((_, packets, times), samples) in contenders.iter().zip(&mut samples) {
                    samples.push(edge.sample_anew(packets, flows, times * setup.args.packets())?);
                }
            }
            for ((name, ..), samples) in contenders.iter().zip(samples) {
                let name = format!("{}, {name}", case.name());
                table.push([name.into(), f64::from(count).into()], &Rounds(samples));
            }
        }
    }
    Ok(table.finish(
        "Both directions",
        "Each packet of one flow is followed by the reply of another flow. All packets arrive at the backends' interface, because \
         a test run has only one interface.",
    ))
}
