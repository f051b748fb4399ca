//! The terminal of `status --watch`: a screen of its own, so that nothing of what stood there before is lost.

use std::io::{self, IsTerminal as _};

use terminal_size::{Height, Width, terminal_size};

use super::picture::Picture;
use crate::output;

/// The alternate screen, where the terminal itself breaks no lines, and without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?7l\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?7h\x1b[?1049l";
const HOME: &str = "\x1b[H";
/// Ends a style that a row was cut in, too.
const END_OF_LINE: &str = "\x1b[0m\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Entered with the first picture. When it is left, the last picture is printed where the command was typed.
#[derive(Debug, Default)]
pub(super) struct Screen {
    last: Option<Picture>,
    /// What was said in place of a picture.
    said: Option<String>,
}

impl Screen {
    /// Shows a picture in the place of the one before; in a pipe, below it.
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

    /// Says in place of a picture why there is none; not again for as long as that lasts.
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
            // Whoever closed the terminal needs neither.
            let _ = output::print(LEAVE);
            let _ = output::print_styled(&picture.text());
        }
    }
}
