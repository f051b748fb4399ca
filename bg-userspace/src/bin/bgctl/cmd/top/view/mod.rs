//! The picture: a list of deployments, the chosen one in detail, the last result and the keys. If the window is small, what matters least
//! is left out.

mod detail;
mod dialog;
mod list;
mod words;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Wrap},
};

use self::words::{alarm, safe};
use super::model::Model;

/// Below this height, only the list is shown.
const ROOM_FOR_DETAIL: u16 = 12;

const KEYS: &str = "↑↓ choose  s switch  r rollback  c confirm  f freeze  t thaw  ? help  q quit";

/// Draws the model.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let area = frame.area();
    let is_tall = area.height >= 4;
    let said_rows = said_rows(model, area);
    let rows = [
        Constraint::Length(u16::from(is_tall)),
        Constraint::Fill(1),
        Constraint::Length(said_rows),
        Constraint::Length(u16::from(area.height >= 6)),
    ];
    let [head, body, said, keys] = Layout::vertical(rows).areas(area);
    frame.render_widget(Paragraph::new(headline(model, head.width)), head);
    draw_body(frame, model, body);
    if let Some(text) = &model.said {
        let style = if text.is_bad { alarm(model) } else { Style::new().add_modifier(Modifier::BOLD) };
        let text = Paragraph::new(safe(&text.text)).style(style).wrap(Wrap { trim: true });
        frame.render_widget(text, said);
    }
    frame.render_widget(Paragraph::new(KEYS).style(Style::new().add_modifier(Modifier::DIM)), keys);
    dialog::draw(frame, model, area);
}

/// How many rows the last result gets.
fn said_rows(model: &Model, area: Rect) -> u16 {
    let Some(said) = model.said.as_ref().filter(|_| area.height >= 3) else { return 0 };
    let width = usize::from(area.width.max(1));
    let rows = u16::try_from(said.text.chars().count().div_ceil(width)).unwrap_or(u16::MAX);
    rows.clamp(1, (area.height / 3).max(1))
}

fn headline(model: &Model, width: u16) -> Line<'static> {
    let title = format!("bgctl top  {}", safe(&model.paths.pin_root.to_string_lossy()));
    let clock = jiff::Timestamp::now().strftime("%H:%M:%S UTC").to_string();
    let (age, style) = match model.age() {
        Some(age) => (format!("NO ANSWER for {} s  ", age.as_secs()), alarm(model)),
        None => (String::new(), Style::new()),
    };
    let used = title.chars().count() + age.chars().count() + clock.chars().count();
    let gap = " ".repeat(usize::from(width).saturating_sub(used).max(2));
    // In a narrow window, the warning is what must be seen.
    let parts = if used + 2 > usize::from(width) && !age.is_empty() {
        vec![Span::styled(age, style), Span::raw(title)]
    } else {
        vec![
            Span::styled(title, Style::new().add_modifier(Modifier::BOLD)),
            Span::raw(gap),
            Span::styled(age, style),
            Span::raw(clock),
        ]
    };
    Line::from(parts)
}

fn draw_body(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    if let Some(why) = &model.waits {
        let text = format!("{}\n\nThis waits, and shows the instance as soon as there is one.", safe(why));
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    if model.deployments().is_empty() {
        let text = "no deployments: write a configuration, then `bgctl apply -c FILE`";
        frame.render_widget(Paragraph::new(crate::output::advice(text).into_owned()).wrap(Wrap { trim: true }), area);
        return;
    }
    let names = u16::try_from(model.deployments().len()).unwrap_or(u16::MAX);
    if area.height < ROOM_FOR_DETAIL {
        return list::draw(frame, model, area);
    }
    let most = (area.height / 3).max(3);
    let rows = [Constraint::Length(names.saturating_add(1).min(most)), Constraint::Length(1), Constraint::Fill(1)];
    let [list, _, detail] = Layout::vertical(rows).areas(area);
    list::draw(frame, model, list);
    detail::draw(frame, model, detail);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::*;
    use crate::cmd::top::{
        Event,
        change::{Change, Question, Verb},
        model::{
            Said,
            tests::{model_of, press},
        },
    };

    fn text_of(model: &mut Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_window_of_any_size_holds_a_picture() {
        let names: Vec<_> = (0..50).map(|nth| format!("deployment-{nth}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        for width in [1, 2, 5, 19, 40, 80, 200] {
            for height in [1, 2, 3, 5, 8, 12, 24, 70] {
                let mut model = model_of(&names);
                press(&mut model, KeyCode::End);
                model.said = Some(Said { text: "long ".repeat(100), is_bad: true });
                let said = text_of(&mut model, width, height);
                if width >= 40 {
                    assert!(said.contains("deployment-49"), "{width}x{height}: what is chosen can be seen\n{said}");
                }
                press(&mut model, KeyCode::Char('?'));
                text_of(&mut model, width, height);
                press(&mut model, KeyCode::Esc);
                press(&mut model, KeyCode::Char('s'));
                text_of(&mut model, width, height);
                let change = Change { verb: Verb::Switch, deployment: "deployment-49".to_owned(), generation: 4 };
                model.take(Event::Rehearsed(1, Ok(Question::of(change.clone()))));
                model.take(Event::Rehearsed(2, Ok(Question::of(change))));
                let asked = text_of(&mut model, width, height);
                if width >= 40 {
                    assert!(asked.contains("y yes"), "{width}x{height}: the way out can be seen\n{asked}");
                }
            }
        }
    }

    #[test]
    fn the_live_colour_is_told_by_words_and_shapes() {
        let mut model = model_of(&["shop"]);
        model.is_coloured = false;
        let text = text_of(&mut model, 100, 30);
        assert!(text.contains("● blue") && text.contains("LIVE") && text.contains("◆ green"), "{text}");
    }

    #[test]
    fn text_of_others_moves_no_cursor() {
        let mut model = model_of(&["shop"]);
        model.said = Some(Said { text: "\u{1b}[2Jgone".to_owned(), is_bad: false });
        assert!(text_of(&mut model, 100, 30).contains("\\u{1b}[2Jgone"));
    }
}
