//! A status as lines for people. If there is not room for all lines, the most important ones are shown.

use std::time::Duration;

use bg_common::Colour;
use bg_userspace::{BackendStatus, ColourStatus, DeploymentStatus, Health, InterfaceState, Status, config::OnSwitch};
use unicode_width::UnicodeWidthChar as _;

use crate::{
    output,
    table::{
        ALARM,
        Align::{Left, Right},
        Cell, LIVE, Table, style_of, styled,
    },
};

/// The importance of a line. Smaller values are more important.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The live colours, and whether packets are switched.
    Live,
    /// Deadlines.
    Deadline,
    /// The terms of the next switch, and who always reaches the idle colour.
    Terms,
    /// Services, counters.
    Detail,
}

/// The lines of a status, in their order.
#[derive(Debug, Default)]
pub(super) struct Picture {
    lines: Vec<(Rank, String)>,
}

impl Picture {
    pub(super) fn new(status: &Status, all: bool) -> Self {
        let mut picture = Self::default();
        for deployment in &status.deployments {
            picture.deployment(deployment, all);
        }
        if status.deployments.is_empty() {
            let line = "no deployments: write a configuration, then `bgctl apply -c FILE`";
            picture.add(Rank::Live, output::advice(line).into_owned());
        }
        picture.interfaces(status);
        for (what, counters) in [("drops", &status.drops), ("events", &status.events)] {
            let shown = counters.iter().filter(|(_, count)| all || **count > 0);
            let shown: Vec<_> = shown.map(|(name, count)| format!("{name} {count}")).collect();
            picture.add(Rank::Detail, format!("{what}: {}", or_none(&shown)));
        }
        picture
    }

    /// The whole status.
    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// The most important lines, as rows of a window. The last row says how many lines are missing, if any.
    pub(super) fn fit(&self, width: usize, height: usize) -> Vec<String> {
        let rows = |rank: Rank, line: &str| {
            let mut rows = rows(line, width.max(1));
            // A row of a table is not wrapped, because it would no longer be recognisable as a row.
            rows.truncate(if rank == Rank::Detail { 1 } else { usize::MAX });
            rows
        };
        let lines: Vec<_> = self.lines.iter().map(|(rank, line)| (*rank, rows(*rank, line))).collect();
        if lines.iter().map(|(_, rows)| rows.len()).sum::<usize>() <= height {
            return lines.into_iter().flat_map(|(_, rows)| rows).collect();
        }
        let mut by_rank: Vec<_> = lines.into_iter().enumerate().collect();
        by_rank.sort_by_key(|(position, (rank, _))| (*rank, *position));
        let mut room = height.saturating_sub(1);
        by_rank.retain(|(_, (_, rows))| {
            let fits = rows.len() <= room;
            room -= if fits { rows.len() } else { 0 };
            fits
        });
        by_rank.sort_by_key(|(position, _)| *position);
        let missing = output::count(self.lines.len() - by_rank.len(), "more line");
        let last = rows(Rank::Detail, &format!("({missing}: enlarge the window, or name a deployment)"));
        by_rank.into_iter().flat_map(|(_, (_, rows))| rows).chain(last).collect()
    }

    fn add(&mut self, rank: Rank, line: String) {
        self.lines.push((rank, line));
    }

    fn interfaces(&mut self, status: &Status) {
        let (attached, lost): (Vec<_>, Vec<_>) =
            status.interfaces.iter().partition(|interface| interface.state == InterfaceState::Attached);
        if attached.is_empty() {
            let line = "interfaces: none, so no packet is switched; `bgctl attach IFACE...` is the next step";
            self.add(Rank::Live, styled(ALARM, &output::advice(line)));
        } else {
            let names = attached.iter().map(|interface| format!("{} ({})", interface.name, interface.mode.name()));
            self.add(Rank::Detail, format!("interfaces: {}", names.collect::<Vec<_>>().join(", ")));
        }
        for interface in lost {
            if let (Some(problem), Some(remedy)) = (interface.problem(), &interface.remedy) {
                self.add(Rank::Live, styled(ALARM, &format!("  {problem}: {remedy}")));
            }
        }
        for interface in attached {
            for other in &interface.in_front {
                self.add(Rank::Live, styled(ALARM, &format!("  {}", other.warning(&interface.name))));
            }
        }
    }

    fn deployment(&mut self, deployment: &DeploymentStatus, all: bool) {
        let DeploymentStatus { name, live, idle, phase, generation, previous, flows, .. } = deployment;
        let is_live = painted(live) + &styled(LIVE, " is live");
        self.add(
            Rank::Live,
            format!(
                "{name}: {is_live}, {phase}, generation {generation}, previous {previous}; open flows: blue {}, green {}",
                flows.blue, flows.green
            ),
        );
        if let Some(until) = deployment.frozen_until {
            let held = deployment.held;
            self.add(
                Rank::Deadline,
                format!("  frozen until {until} at most: {held} packets that would open a flow wait"),
            );
        }
        if let Some(deadline) = deployment.confirm_deadline {
            let left = left_until(deadline);
            self.add(
                Rank::Deadline,
                format!("  confirm: goes back to {previous} at {deadline}, in {left}, unless confirmed"),
            );
        }
        if !deployment.revert_if.is_empty() {
            let conditions = deployment.revert_if.join(" or ");
            // Until it takes effect, it is the live colour that it would go back to.
            let back = if deployment.pending.is_some() { live } else { previous };
            self.add(Rank::Deadline, format!("  confirm: goes back to {back} if {conditions}, unless confirmed"));
        }
        if let Some(because) = &deployment.taken_back {
            self.add(Rank::Deadline, format!("  taken back to {live} {because}"));
        }
        if let Some(pending) = &deployment.pending {
            let share = format!("{} of new flows to green", in_percent(pending.green_share));
            let at = pending.at.map_or_else(String::new, |at| format!(" at {at}, in {}", left_until(at)));
            let line = match pending.ramp_until {
                Some(until) => format!("  ramp: {share} at {until}, in {}", left_until(until)),
                None => format!("  scheduled: {share}{at}"),
            };
            self.add(Rank::Deadline, line);
        }
        if matches!(*phase, "split" | "ramping") {
            let measured = deployment.green_share_measured.map_or_else(|| "no flow yet".to_owned(), in_percent);
            let by = deployment.divide_by.name();
            let share = in_percent(deployment.green_share);
            self.add(
                Rank::Deadline,
                format!("  share: {share} of new flows go to green, by {by}; measured: {measured}"),
            );
        }
        if let Some(deadline) = deployment.drain_deadline {
            let left = left_until(deadline);
            self.add(Rank::Deadline, format!("  drain: open flows on {idle} end at {deadline}, in {left}"));
        }
        let fate = match (deployment.on_switch, deployment.drain_timeout) {
            (OnSwitch::Cut, _) => "open flows are cut".to_owned(),
            (OnSwitch::Drain, None) => "open flows drain, without a time limit".to_owned(),
            (OnSwitch::Drain, Some(timeout)) => {
                format!("open flows drain, for at most {}", humantime::format_duration(timeout))
            }
        };
        self.add(Rank::Terms, format!("  switch: {idle} would become live; {fate}"));
        let testers: Vec<_> = deployment.testers.iter().map(ToString::to_string).collect();
        if !testers.is_empty() {
            self.add(Rank::Terms, format!("  testers, always on {idle}: {}", some_of(&testers, all)));
        }
        let previews = deployment.services.iter().filter_map(|service| {
            service.preview.map(|preview| format!("{} {preview}/{}", service.name, service.protocol))
        });
        let previews: Vec<_> = previews.collect();
        if !previews.is_empty() {
            self.add(Rank::Terms, format!("  preview, always on {idle}: {}", some_of(&previews, all)));
        }
        for service in deployment.services.iter().filter(|service| service.mirror.is_some()) {
            let colours =
                Colour::ALL.map(|colour| format!("{} {}", service.colours.of(colour).mirrored, colour.name()));
            let copies = colours.join(", ");
            self.add(
                Rank::Detail,
                format!("  mirror: {} copies datagrams to {idle}; copies so far: {copies}", service.name),
            );
        }
        for line in services(deployment) {
            self.add(Rank::Detail, line);
        }
    }
}

/// The time until a moment, in whole seconds.
fn left_until(moment: jiff::Timestamp) -> humantime::FormattedDuration {
    let left = moment.duration_since(jiff::Timestamp::now()).as_secs().max(0).unsigned_abs();
    humantime::format_duration(Duration::from_secs(left))
}

/// A share in percent, with as many decimals as it has.
fn in_percent(share: f64) -> String {
    format!("{} %", (share * 10_000.0).round() / 100.0)
}

fn services(deployment: &DeploymentStatus) -> Vec<String> {
    let mut table = Table::new([
        ("SERVICE", Left),
        ("VIP", Left),
        ("MODE", Left),
        ("COLOUR", Left),
        ("BACKENDS", Right),
        ("PACKETS", Right),
        ("BYTES", Right),
        ("FLOWS OPENED", Right),
    ]);
    for service in &deployment.services {
        for colour in Colour::ALL {
            let ColourStatus { backends, packets, bytes, flows_opened, .. } = service.colours.of(colour);
            let (mark, style) = if colour.name() == deployment.live {
                (" (live)", style_of(colour).bold())
            } else {
                ("", style_of(colour))
            };
            table.row([
                service.name.clone().into(),
                format!("{}/{}", service.vip, service.protocol).into(),
                service.mode.into(),
                Cell::new(format!("{}{mark}", colour.name()), style),
                well(backends).into(),
                packets.to_string().into(),
                output::bytes(*bytes).into(),
                flows_opened.to_string().into(),
            ]);
        }
    }
    table.lines("  ")
}

/// The number of backends, and how many are not down if some are.
fn well(backends: &[BackendStatus]) -> String {
    let all = backends.len();
    match backends.iter().filter(|backend| backend.health == Health::Down.name()).count() {
        0 => all.to_string(),
        down => format!("{} of {all}", all - down),
    }
}

/// A styled line in rows of at most `width` columns.
fn rows(line: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    let (mut column, mut is_escape) = (0, false);
    for character in line.chars() {
        is_escape |= character == '\x1b';
        let columns = if is_escape { 0 } else { character.width().unwrap_or(0) };
        if column + columns > width && column > 0 {
            rows.push(String::new());
            column = 0;
        }
        column += columns;
        rows.last_mut().expect("there is one from the beginning").push(character);
        // Styles are the only escape sequences that are written, and end with this.
        is_escape &= character != 'm';
    }
    rows
}

/// A colour's name in its own style.
fn painted(name: &str) -> String {
    let colour = Colour::ALL.into_iter().find(|colour| colour.name() == name);
    colour.map_or_else(|| name.to_owned(), |colour| styled(style_of(colour).bold(), name))
}

/// The first few items, or all of them if `all`.
fn some_of(items: &[String], all: bool) -> String {
    const SHOWN: usize = 8;
    match items.len().checked_sub(SHOWN) {
        Some(more @ 1..) if !all => format!("{} and {more} more (-v lists them)", items[..SHOWN].join(", ")),
        _ => items.join(", "),
    }
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Rank::{Deadline, Detail, Live, Terms};

    fn picture(lines: &[(Rank, &str)]) -> Picture {
        Picture { lines: lines.iter().map(|(rank, line)| (*rank, (*line).to_owned())).collect() }
    }

    #[test]
    fn what_matters_most_is_shown_in_a_small_window() {
        let ranks = [Live, Terms, Detail, Detail, Live, Deadline, Detail, Detail];
        let lines: Vec<_> = ranks.into_iter().zip(["0", "1", "2", "3", "4", "5", "6", "7"]).collect();
        let picture = picture(&lines);
        assert_eq!(picture.fit(60, 8).len(), 8);
        let small = picture.fit(60, 6);
        assert_eq!(small[..5], ["0", "1", "2", "4", "5"]);
        assert!(small[5].starts_with("(3 more lines"), "{}", small[5]);
        assert_eq!(picture.fit(60, 3)[..2], ["0", "4"]);
        assert_eq!(picture.fit(60, 0).len(), 1);
    }

    #[test]
    fn in_a_narrow_window_what_matters_goes_on_in_the_next_row() {
        let picture = picture(&[(Live, "abcdefgh"), (Detail, "ABCDEFGH"), (Deadline, "12345"), (Terms, "xy")]);
        assert_eq!(picture.fit(5, 9), ["abcde", "fgh", "ABCDE", "12345", "xy"]);
        assert_eq!(picture.fit(5, 4)[..3], ["abcde", "fgh", "12345"]);
        // What has no room makes room for what has.
        assert_eq!(picture.fit(3, 4)[..3], ["abc", "def", "gh"]);
        assert_eq!(picture.fit(3, 3)[..2], ["123", "45"]);
    }

    #[test]
    fn styles_take_no_room_and_wide_characters_two() {
        assert_eq!(rows(&format!("a{}ef", styled(LIVE, "bcd")), 4), ["a\x1b[1mbcd\x1b[0m", "ef"]);
        assert_eq!(rows("店店店", 5), ["店店", "店"]);
        assert_eq!(rows("", 5), [""]);
        assert_eq!(rows("店", 1), ["店"], "wider than the window");
    }
}
