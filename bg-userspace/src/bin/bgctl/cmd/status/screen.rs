//! The terminal of `status --watch`. It uses the alternate screen, so that the previous content is not lost.

use std::io::{self, IsTerminal as _};

use terminal_size::{Height, Width, terminal_size};

use super::picture::Picture;
use crate::output;

/// Enters the alternate screen, without automatic line wrap and without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?7l\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?7h\x1b[?1049l";
const HOME: &str = "\x1b[H";
/// Also ends a style within which a row was cut off.
const END_OF_LINE: &str = "\x1b[0m\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// The alternate screen. It is entered with the first picture. When it is left, the last picture is printed on the normal screen.
#[derive(Debug, Default)]
pub(super) struct Screen {
    last: Option<Picture>,
    /// The message that is shown instead of a picture.
    said: Option<String>,
}

impl Screen {
    /// Shows a picture in place of the previous one. If stdout is not a terminal, prints it below.
    pub(super) fn show(&mut self, picture: Picture) -> io::Result<()> {
        self.said = None;
        if !io::stdout().is_terminal() {
            return output::print_styled(&picture.text());
        }
        let (width, height) =
            terminal_size().map_or((80, 24), |(Width(width), Height(height))| (width.into(), height.into()));
        let lines: Vec<_> = picture.fit(width, height).into_iter().map(|line| output::painted(&line)).collect();
        let frame = lines.join(&format!("{END_OF_LINE}\n"));
        let enter = if self.last.is_none() { ENTER } else { "" };
        output::print(&format!("{enter}{HOME}{frame}{END_OF_LINE}{CLEAR_REST}"))?;
        self.last = Some(picture);
        Ok(())
    }

    /// Shows a message instead of a picture. The same message is not repeated.
    pub(super) fn say(&mut self, why: &str) -> io::Result<()> {
        if self.said.as_deref() != Some(why) {
            if io::stdout().is_terminal() && self.last.is_some() {
                let why = output::printable(why);
                output::print(&format!("{HOME}{why}{END_OF_LINE}{CLEAR_REST}"))?;
            } else {
                output::message(why);
            }
            self.said = Some(why.to_owned());
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(picture) = &self.last {
            // If the terminal was closed, errors do not matter.
            let _ = output::print(LEAVE);
            let _ = output::print_styled(&picture.text());
        }
    }
}
