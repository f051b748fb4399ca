//! The chosen deployment: what waits, flows per second, the drain, backends, and the last changes.

use bg_userspace::{BackendStatus, Colour, DeploymentStatus, history::Record};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{LineGauge, Paragraph, Sparkline},
};

use super::words::{alarm, colour_of, in_percent, left_until, named, rate, safe, style_of};
use crate::cmd::top::model::Model;

/// The columns before a sparkline.
const LABEL: u16 = 26;

/// From this width on, the history is beside the backends.
const ROOM_FOR_TWO: u16 = 120;

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let Some(deployment) = model.deployments().get(model.chosen()) else { return };
    let lines = state(model, deployment);
    let drain = drain(model, deployment);
    let height_of_lines = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(area.height);
    let spark = if area.height >= 20 { 3 } else { 1 };
    let rows = [
        Constraint::Length(height_of_lines),
        Constraint::Length(spark),
        Constraint::Length(spark),
        Constraint::Length(u16::from(drain.is_some())),
        Constraint::Fill(1),
    ];
    let [top, blue, green, gauge, rest] = Layout::vertical(rows).areas(area);
    frame.render_widget(Paragraph::new(lines), top);
    draw_rates(frame, model, deployment, [blue, green]);
    if let Some(drain) = drain {
        frame.render_widget(drain, gauge);
    }
    let parts = [Constraint::Fill(1), Constraint::Fill(1)];
    let [backends, history] = if rest.width >= ROOM_FOR_TWO {
        Layout::horizontal(parts).spacing(2).areas(rest)
    } else {
        let wanted = u16::try_from(deployment.services.len() + count(deployment) + 1).unwrap_or(u16::MAX);
        let most = rest.height - (rest.height / 3).min(rest.height);
        Layout::vertical([Constraint::Length(wanted.min(most)), Constraint::Fill(1)]).areas(rest)
    };
    draw_backends(frame, model, deployment, backends);
    draw_history(frame, model, deployment, history);
}

/// What is live, and what waits.
fn state(model: &Model, deployment: &DeploymentStatus) -> Vec<Line<'static>> {
    let DeploymentStatus { name, live, idle, previous, generation, .. } = deployment;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("{}: ", safe(name)), bold),
        named(model, colour_of(live), true),
        Span::styled(" is LIVE", bold),
        Span::raw(format!(", generation {generation}, previous {previous}, phase {}", deployment.phase)),
    ])];
    let mut add = |text: String, style| lines.push(Line::styled(text, style));
    if let Some(until) = deployment.frozen_until {
        add(
            format!("frozen for {} at most, {} packets held (t thaws)", left_until(until), deployment.held),
            alarm(model),
        );
    }
    let back = if deployment.pending.is_some() { live } else { previous };
    if let Some(deadline) = deployment.confirm_deadline {
        add(format!("goes back to {back} in {} unless confirmed (c)", left_until(deadline)), alarm(model));
    }
    if !deployment.revert_if.is_empty() {
        add(format!("goes back to {back} if {}", safe(&deployment.revert_if.join(" or "))), alarm(model));
    }
    if let Some(because) = &deployment.taken_back {
        add(format!("taken back to {live} {}", safe(because)), alarm(model));
    }
    if let Some(pending) = &deployment.pending {
        let when = match (pending.ramp_until, pending.at) {
            (Some(until), _) => format!("ramp until {until}, in {}", left_until(until)),
            (None, Some(at)) => format!("scheduled at {at}, in {}", left_until(at)),
            (None, None) => "scheduled".to_owned(),
        };
        add(format!("{when}: {}", in_percent(pending.green_share)), Style::new());
    }
    if matches!(deployment.phase, "split" | "ramping") {
        let measured = deployment.green_share_measured.map_or_else(|| "no flow yet".to_owned(), in_percent);
        add(format!("new flows: {}; measured {measured}", in_percent(deployment.green_share)), Style::new());
    }
    if let Some(deadline) = deployment.drain_deadline {
        add(format!("open flows on {idle} end in {}", left_until(deadline)), Style::new());
    }
    lines
}

/// A sparkline for each colour, both with the same scale.
fn draw_rates(frame: &mut Frame<'_>, model: &Model, deployment: &DeploymentStatus, areas: [Rect; 2]) {
    let series = model.rates.of(&deployment.name);
    let width = usize::from(areas[0].width.saturating_sub(LABEL));
    let shown = Colour::ALL.map(|colour| series.newest(colour, width));
    let most = shown.iter().flatten().copied().max().unwrap_or(0).max(10);
    for ((colour, area), values) in Colour::ALL.into_iter().zip(areas).zip(shown) {
        let [label, plot] = Layout::horizontal([Constraint::Length(LABEL), Constraint::Fill(1)]).areas(area);
        let is_live = colour.name() == deployment.live;
        let line = Line::from(vec![
            named(model, colour, is_live),
            Span::raw(format!(
                "{} {} {}/s",
                if colour == Colour::Blue { " " } else { "" },
                if is_live { "LIVE" } else { "idle" },
                rate(series.now(colour))
            )),
        ]);
        let open = Line::raw(format!("  {} open", deployment.flows.of(colour)));
        let peak = Line::raw(format!("  peak {}/s", rate(values.iter().copied().max().unwrap_or(0) as f64 / 10.0)));
        frame.render_widget(Paragraph::new(vec![line, open, peak]), label);
        frame.render_widget(Sparkline::default().data(values).max(most).style(style_of(model, colour)), plot);
    }
}

/// How many flows are left of those that a switch has left on the idle colour.
fn drain(model: &Model, deployment: &DeploymentStatus) -> Option<LineGauge<'static>> {
    let idle = colour_of(deployment.idle);
    let (left, most) = (*deployment.flows.of(idle), model.most(&deployment.name));
    if !matches!(deployment.phase, "draining" | "confirming") || most == 0 {
        return None;
    }
    let done = 1.0 - (left as f64 / most as f64).clamp(0.0, 1.0);
    let gauge = LineGauge::default().ratio(done).filled_symbol("█").unfilled_symbol("░");
    let gauge = gauge.label(format!("drain: {left} of {most} left on {}", idle.name()));
    Some(gauge.filled_style(style_of(model, idle)))
}

fn count(deployment: &DeploymentStatus) -> usize {
    let of = |colour| deployment.services.iter().map(move |service| service.colours.of(colour).backends.len());
    Colour::ALL.into_iter().flat_map(of).sum()
}

/// The backends. If there is not room for all, those that are down come first.
fn draw_backends(frame: &mut Frame<'_>, model: &Model, deployment: &DeploymentStatus, area: Rect) {
    let mut lines: Vec<(bool, Line<'static>)> = Vec::new();
    for service in &deployment.services {
        let address = format!("  {}/{} {}", service.vip, service.protocol, service.mode);
        lines.push((false, Line::raw(safe(&service.name) + &address)));
        for colour in Colour::ALL {
            for backend in &service.colours.of(colour).backends {
                lines.push((backend.health == "down", backend_line(model, colour, backend)));
            }
        }
    }
    let room = usize::from(area.height.saturating_sub(1));
    let missing = lines.len().saturating_sub(room);
    if missing > 0 {
        lines.sort_by_key(|(is_down, _)| !is_down);
    }
    let more = if missing > 0 { format!(" ({missing} more lines)") } else { String::new() };
    let head = Line::styled(format!("BACKENDS{more}"), Style::new().add_modifier(Modifier::UNDERLINED));
    let lines = std::iter::once(head).chain(lines.into_iter().map(|(_, line)| line).take(room));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

fn backend_line(model: &Model, colour: Colour, backend: &BackendStatus) -> Line<'static> {
    let health = match backend.health {
        "up" => Span::raw("✓ up"),
        "down" => Span::styled("✗ DOWN", alarm(model)),
        _ => Span::raw("? not checked"),
    };
    Line::from(vec![
        Span::raw("  "),
        named(model, colour, false),
        Span::raw(format!(
            "{} {}  weight {}  ",
            if colour == Colour::Blue { " " } else { "" },
            backend.address,
            backend.weight
        )),
        health,
    ])
}

fn draw_history(frame: &mut Frame<'_>, model: &Model, deployment: &DeploymentStatus, area: Rect) {
    let mut lines = vec![Line::styled("HISTORY", Style::new().add_modifier(Modifier::UNDERLINED))];
    match &model.memory {
        Err(why) => lines.push(Line::styled(safe(why), alarm(model))),
        Ok(memory) => {
            let records = memory.get(&deployment.name).into_iter().flatten();
            lines.extend(records.take(area.height.saturating_sub(1).into()).map(|record| Line::raw(sentence(record))));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn sentence(record: &Record) -> String {
    let moment = |moment: Option<bg_userspace::history::Moment>| {
        moment.map_or_else(|| "-".to_owned(), |moment| format!("{}@{}", moment.live.name(), moment.generation))
    };
    let time = record.time.strftime("%m-%d %H:%M:%S");
    let why = record.reason.as_deref().map_or_else(String::new, |why| format!(": {}", safe(why)));
    let (from, to) = (moment(record.from), moment(record.to));
    format!("{time} {} {from} -> {to} {}{why}", record.action.name(), safe(&record.who.to_string()))
}
