//! Questions and help, over the picture.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Clear, Paragraph, Wrap},
};

use super::words::safe;
use crate::cmd::top::{
    change::Change,
    model::{Dialog, Model},
};

const HELP: [&str; 12] = [
    "↑ ↓ (k j), PgUp PgDn, Home End   choose a deployment",
    "s   switch: make the idle colour live",
    "r   roll back to the state before the last change",
    "c   confirm the switch that waits for it",
    "f   freeze: hold new flows, for 10 s at most",
    "t   thaw: let held flows go on",
    "q   quit (also Ctrl-C)",
    "",
    "Each change shows first what it would do. It is made only if you say yes,",
    "and only if the deployment is still at the generation that was shown.",
    "NEW/S and the plots are flows opened per second, by colour:",
    "● blue, ◆ green.",
];

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let of = |change: &Change| format!("{} {}", change.verb.name(), safe(&change.deployment));
    let (title, keys, lines): (String, &str, Vec<String>) = match &model.dialog {
        Dialog::None => return,
        Dialog::Help => ("help".to_owned(), "any key closes this", HELP.map(str::to_owned).to_vec()),
        Dialog::Rehearsing(change) => (
            of(change),
            "Esc leaves",
            vec!["Finding out what this would do, and whether the backends are there.".to_owned()],
        ),
        Dialog::Asking(question) => {
            let lines = question.lines.iter().map(|line| safe(line)).collect();
            (format!("{}?", of(&question.change)), "y yes   n no (Esc)", lines)
        }
        Dialog::Making(change) => (of(change), "", vec!["Being done.".to_owned()]),
    };
    let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).max(title.chars().count() + 2);
    let width = u16::try_from(widest.max(keys.chars().count() + 2) + 4).unwrap_or(u16::MAX).min(area.width);
    let inner = usize::from(width.saturating_sub(4)).max(1);
    let rows: usize = lines.iter().map(|line| line.chars().count().div_ceil(inner).max(1)).sum();
    let height = u16::try_from(rows + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    if height < 3 {
        // No room for a frame: the question and the keys.
        let text = Line::styled(format!("{keys}: {title}"), bold);
        frame.render_widget(Paragraph::new(text), place);
        return;
    }
    let block = Block::bordered()
        .title(Line::styled(format!(" {title} "), bold))
        .title_bottom(Line::styled(format!(" {keys} "), bold))
        .padding(ratatui::widgets::Padding::horizontal(1));
    let lines: Vec<_> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), place);
}
