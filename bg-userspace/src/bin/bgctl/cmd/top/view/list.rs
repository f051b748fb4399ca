//! The list of deployments.

use bg_userspace::{Colour, DeploymentStatus};
use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Row, Table, TableState},
};

use super::words::{alarm, colour_of, down, named, phase, rate, safe};
use crate::cmd::top::model::Model;

/// Below this width, numbers are left out.
const ROOM_FOR_NUMBERS: u16 = 72;

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let is_wide = area.width >= ROOM_FOR_NUMBERS;
    let rows = model.deployments().iter().map(|deployment| row(model, deployment, is_wide));
    let longest = model.deployments().iter().map(|deployment| deployment.name.chars().count()).max().unwrap_or(0);
    let name = u16::try_from(longest.max(10)).unwrap_or(u16::MAX).min((area.width / 3).max(4));
    let few = [Constraint::Length(name), Constraint::Length(8), Constraint::Fill(1)];
    let numbers = [16, 16, 12].map(Constraint::Length);
    let widths = few.iter().chain(numbers.iter().filter(|_| is_wide)).copied();
    let mut table = Table::new(rows, widths)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol("▶ ");
    if area.height >= 3 {
        let heads = ["DEPLOYMENT", "LIVE", "PHASE", "OPEN blue/green", "NEW/S blue/green", "BACKENDS"];
        let heads = heads.into_iter().take(if is_wide { 6 } else { 3 });
        table = table.header(Row::new(heads).style(Style::new().add_modifier(Modifier::UNDERLINED)));
    }
    let mut state = TableState::new().with_selected(model.chosen());
    frame.render_stateful_widget(table, area, &mut state);
}

fn row(model: &Model, deployment: &DeploymentStatus, is_wide: bool) -> Row<'static> {
    let phase_style = match deployment.phase {
        "confirming" | "frozen" => alarm(model),
        _ => Style::new(),
    };
    let mut cells = vec![
        Cell::from(safe(&deployment.name)),
        Cell::from(Line::from(named(model, colour_of(deployment.live), true))),
        Cell::from(Span::styled(phase(deployment), phase_style)),
    ];
    if is_wide {
        let series = model.rates.of(&deployment.name);
        let (down, all) = down(deployment);
        let health = if down > 0 {
            Span::styled(format!("{down} of {all} DOWN"), alarm(model))
        } else {
            Span::raw(all.to_string())
        };
        cells.extend([
            Cell::from(format!("{} / {}", deployment.flows.blue, deployment.flows.green)),
            Cell::from(format!("{} / {}", rate(series.now(Colour::Blue)), rate(series.now(Colour::Green)))),
            Cell::from(health),
        ]);
    }
    Row::new(cells)
}
