//! Open flows that the table loses although it is only half full.

use super::{
    super::{report::Table, stats::Summary},
    Setup,
    case::Case,
    columns,
    edge::Edge,
    frame::Flows,
};
use anyhow::Result;
use bg_common::Event;

/// The number of flows at which the table is half full.
const FLOWS: u32 = 1 << 17;
/// The number of parts in which flows are replaced by others, and how often all flows are replaced.
const PARTS: u32 = 32;
const TURNS: u32 = 2;
/// The most rounds. More are not needed, because the counts hardly differ.
const ROUNDS: u32 = 3;

pub(super) fn measure(setup: &Setup<'_>) -> Result<Table> {
    let mut rows = Vec::new();
    for case in Case::both_families()? {
        let (mut filled, mut turned) = (Vec::new(), Vec::new());
        for _ in 0..setup.args.rounds().min(ROUNDS) {
            let mut edge = Edge::load(setup, FLOWS, &case)?;
            edge.establish(&case, Flows::first(FLOWS))?;
            let lost = lost(&mut edge)?;
            filled.push(lost * 1e5 / f64::from(FLOWS));
            for part in 0..TURNS * PARTS {
                let ending = Flows { first: part * (FLOWS / PARTS), count: FLOWS / PARTS };
                edge.reset(&case, ending)?;
                edge.establish(&case, Flows { first: ending.first + FLOWS, ..ending })?;
            }
            turned.push((self::lost(&mut edge)? - lost) * 1e5 / f64::from(TURNS * FLOWS));
        }
        rows.push(vec![case.name().into(), Summary::of(filled).into(), Summary::of(turned).into()]);
    }
    Ok(Table {
        title: "Open flows that the table loses at half load".into(),
        about: format!(
            "How many of 100,000 new flows evict another open flow or get no row, by the counters `pushed_out` \
             and `unpinned`. `Filled`: until {FLOWS} flows are open. `Turnover`: while the oldest flows end by RST and others \
             replace them, until all were replaced {TURNS} times."
        ),
        columns: columns(&["flows", "filled, of 100,000", "turnover, of 100,000"]),
        rows,
    })
}

fn lost(edge: &mut Edge<'_>) -> Result<f64> {
    Ok((edge.events(Event::PushedOut)? + edge.events(Event::Unpinned)?) as f64)
}
