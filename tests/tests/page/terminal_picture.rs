//! A picture of a terminal, for the documentation: what tmux has captured, as a page.

use std::fmt::Write as _;

/// The colours of a terminal: black, red, green, yellow, blue, magenta, cyan, white.
const COLOURS: [&str; 8] = ["#0e1116", "#ff7b80", "#6fdd8b", "#e3b341", "#79b0ff", "#d2a8ff", "#76e3ea", "#e8ebef"];

/// How text looks.
#[derive(Clone, Copy, Default)]
struct Look {
    colour: Option<usize>,
    is_bold: bool,
    is_dim: bool,
    is_underlined: bool,
    is_reversed: bool,
}

impl Look {
    /// Takes the numbers of an escape sequence.
    fn take(&mut self, sequence: &str) {
        let mut numbers = sequence.split(';').map(|number| number.parse().unwrap_or(0_usize));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                2 => self.is_dim = true,
                4 => self.is_underlined = true,
                7 => self.is_reversed = true,
                22 => (self.is_bold, self.is_dim) = (false, false),
                24 => self.is_underlined = false,
                27 => self.is_reversed = false,
                colour @ 30..=37 => self.colour = Some(colour - 30),
                // 38;5;N: one of 256 colours, of which top uses the first.
                38 => self.colour = numbers.nth(1).filter(|colour| *colour < COLOURS.len()),
                39 => self.colour = None,
                _ => {}
            }
        }
    }

    fn style(self) -> String {
        let ink = COLOURS[self.colour.unwrap_or(7)];
        let (ink, paper) = if self.is_reversed { (COLOURS[0], ink) } else { (ink, "transparent") };
        let weight = if self.is_bold { "bold" } else { "normal" };
        let (line, opacity) =
            (if self.is_underlined { "underline" } else { "none" }, if self.is_dim { "0.7" } else { "1" });
        format!("color:{ink};background:{paper};font-weight:{weight};text-decoration:{line};opacity:{opacity}")
    }
}

/// A page that looks like the terminal.
pub(crate) fn page(styled: &str) -> String {
    let mut html = format!(
        "<!doctype html><meta charset=utf-8><body style='margin:0;background:{}'><pre style='margin:12px;font:15px/18px DejaVu Sans Mono'>",
        COLOURS[0]
    );
    let mut look = Look::default();
    for (nth, part) in styled.split("\u{1b}[").enumerate() {
        let text = match part.split_once('m').filter(|_| nth > 0) {
            Some((sequence, text)) => {
                look.take(sequence);
                text
            }
            None => part,
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(html, "<span style='{}'>{text}</span>", look.style());
    }
    html + "</pre>"
}
