//! The output of the demo: a line with the loads' counts once per second, in colour on a terminal.

use bg_common::Colour;
use bg_tests::load::{Counts, Load};
use std::{
    io::IsTerminal,
    thread,
    time::{Duration, Instant},
};

/// The watched loads, and their counts at the last look.
pub(super) struct View {
    start: Instant,
    loads: Vec<(&'static str, Load, Counts)>,
    paint: bool,
}

impl View {
    pub(super) fn new(loads: Vec<(&'static str, Load)>) -> Self {
        let paint = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let loads = loads.into_iter().map(|(name, load)| (name, load, Counts::default())).collect();
        Self { start: Instant::now(), loads, paint }
    }

    /// Tells all loads whether connections may be cut.
    pub(super) fn expect_cut(&self, expected: bool) {
        self.loads.iter().for_each(|(_, load, _)| load.tally().expect_cut(expected));
    }

    /// Shows `seconds` lines, one per second.
    pub(super) fn watch(&mut self, seconds: u32) {
        for _ in 0..seconds {
            let (since, at) = (Instant::now(), self.start.elapsed().as_secs() + 1);
            thread::sleep(Duration::from_secs(1));
            let line = self.line(at, since);
            println!("{line}");
        }
    }

    /// Ends the loads and returns their counts.
    pub(super) fn finish(self) -> anyhow::Result<Vec<(&'static str, Counts)>> {
        self.loads.into_iter().map(|(name, load, _)| Ok((name, load.finish()?))).collect()
    }

    fn line(&mut self, at: u64, since: Instant) -> String {
        let (paint, seconds) = (self.paint, since.elapsed().as_secs_f64());
        let (mut line, mut failures, mut all, mut open) = (format!("{at:>4} s"), 0, [0.0; 2], [0; 2]);
        for (name, load, before) in &mut self.loads {
            let now = load.tally().counts();
            line += &format!(" | {name}");
            for colour in Colour::ALL {
                let index = colour as usize;
                let rate = (now.answers[index] - before.answers[index]) as f64 / seconds;
                all[index] += rate;
                open[index] += now.connections[index];
                line += &painted(paint, colour, &format!(" {} {rate:>4.0}", colour.name()));
            }
            failures += now.failures;
            *before = now;
        }
        let open = format!("kept open: {} blue {} green", open[0], open[1]);
        format!("{line} | {open} | {} | failures {failures}", bar(paint, all))
    }
}

/// A bar that is divided in proportion to the requests.
fn bar(paint: bool, rates: [f64; 2]) -> String {
    const WIDTH: usize = 16;
    let total = rates[0] + rates[1];
    if total == 0.0 {
        return " ".repeat(WIDTH);
    }
    let mut blue = (rates[0] / total * WIDTH as f64).round() as usize;
    // A colour that has any requests is seen.
    if rates[0] > 0.0 && rates[1] > 0.0 {
        blue = blue.clamp(1, WIDTH - 1);
    }
    painted(paint, Colour::Blue, &"#".repeat(blue)) + &painted(paint, Colour::Green, &"=".repeat(WIDTH - blue))
}

fn painted(paint: bool, colour: Colour, text: &str) -> String {
    let code = match colour {
        Colour::Blue => 34,
        Colour::Green => 32,
    };
    if paint { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn the_bar_shows_the_smallest_share_and_no_share_that_is_not_there() {
        assert_eq!(bar(false, [1.0, 0.0]), "################");
        assert_eq!(bar(false, [0.0, 5.0]), "================");
        assert_eq!(bar(false, [1.0, 999.0]), "#===============");
        assert_eq!(bar(false, [1.0, 1.0]), "########========");
        assert_eq!(bar(false, [0.0, 0.0]), " ".repeat(16));
    }
}
