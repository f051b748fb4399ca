//! Words, shapes and styles that all parts of the picture use. A colour always has a word and a shape too.

use std::borrow::Cow;

use bg_userspace::{Colour, DeploymentStatus, text};
use ratatui::{
    style::{Color, Modifier, Style},
    text::Span,
};

use crate::cmd::top::model::Model;

/// Text from elsewhere, with control characters escaped.
pub(super) fn safe(text: &str) -> String {
    match text::one_line(text) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    }
}

/// The shape of a colour.
pub(super) const fn shape(colour: Colour) -> &'static str {
    match colour {
        Colour::Blue => "●",
        Colour::Green => "◆",
    }
}

/// The style of a colour.
pub(super) fn style_of(model: &Model, colour: Colour) -> Style {
    let style = match colour {
        Colour::Blue => Style::new().fg(Color::Blue),
        Colour::Green => Style::new().fg(Color::Green),
    };
    if model.is_coloured { style } else { Style::new() }
}

/// The style of what needs attention.
pub(super) fn alarm(model: &Model) -> Style {
    let style = Style::new().add_modifier(Modifier::BOLD);
    if model.is_coloured { style.fg(Color::Red) } else { style.add_modifier(Modifier::REVERSED) }
}

/// The colour of this name.
pub(super) fn colour_of(name: &str) -> Colour {
    if name == Colour::Blue.name() { Colour::Blue } else { Colour::Green }
}

/// Shape and name of a colour, bold if it is live.
pub(super) fn named(model: &Model, colour: Colour, is_live: bool) -> Span<'static> {
    let style = style_of(model, colour);
    let style = if is_live { style.add_modifier(Modifier::BOLD) } else { style };
    Span::styled(format!("{} {}", shape(colour), colour.name()), style)
}

/// A phase, with the time until it ends by itself.
pub(super) fn phase(deployment: &DeploymentStatus) -> String {
    let DeploymentStatus { phase, .. } = deployment;
    let pending = deployment.pending.as_ref();
    let end = match *phase {
        "frozen" => deployment.frozen_until,
        "confirming" => deployment.confirm_deadline,
        "scheduled" => pending.and_then(|pending| pending.at),
        "ramping" => pending.and_then(|pending| pending.ramp_until),
        "draining" => deployment.drain_deadline,
        _ => None,
    };
    let share = if matches!(*phase, "split" | "ramping") {
        format!(" {}", in_percent(deployment.green_share))
    } else {
        String::new()
    };
    format!("{phase}{share}{}", end.map_or_else(String::new, |end| format!(" {}", left_until(end))))
}

/// The time until a moment, for example `1:05` or `2:00:00`.
pub(super) fn left_until(moment: jiff::Timestamp) -> String {
    let seconds = moment.duration_since(jiff::Timestamp::now()).as_secs().max(0);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A share in percent of green.
pub(super) fn in_percent(share: f64) -> String {
    format!("{} % green", (share * 1000.0).round() / 10.0)
}

/// A rate, with decimals only if it is small.
pub(super) fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

/// How many backends of a deployment are down, and how many there are.
pub(super) fn down(deployment: &DeploymentStatus) -> (usize, usize) {
    let colours = deployment.services.iter().flat_map(|service| Colour::ALL.map(|colour| service.colours.of(colour)));
    let backends: Vec<_> = colours.flat_map(|colour| &colour.backends).collect();
    (backends.iter().filter(|backend| backend.health == "down").count(), backends.len())
}
