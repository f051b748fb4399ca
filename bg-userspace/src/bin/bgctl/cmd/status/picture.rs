//! A status as lines for people, the most important first where there is not room for all.

use std::time::Duration;

use bg_common::Colour;
use bg_userspace::{ColourStatus, DeploymentStatus, Status, config::OnSwitch};

use crate::{
    output,
    table::{
        ALARM,
        Align::{Left, Right},
        Cell, LIVE, Table, style_of, styled,
    },
};

/// How much a line matters: the smaller, the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// What is live, and whether anything reaches it.
    Live,
    /// What ends by itself.
    Deadline,
    /// What the next switch would do, and who is treated otherwise.
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
            picture.add(Rank::Live, "no deployments: write a configuration, then `bgctl apply -c FILE`".to_owned());
        }
        picture.interfaces(status);
        for (what, counters) in [("drops", &status.drops), ("events", &status.events)] {
            let shown = counters.iter().filter(|(_, count)| all || **count > 0);
            let shown: Vec<_> = shown.map(|(name, count)| format!("{name} {count}")).collect();
            picture.add(Rank::Detail, format!("{what}: {}", or_none(&shown)));
        }
        picture
    }

    /// All of it.
    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// What matters most of it, in at most `height` lines. The last one says how many are missing, if any are.
    pub(super) fn fit(&self, height: usize) -> Vec<String> {
        let height = height.max(1);
        if self.lines.len() <= height {
            return self.lines.iter().map(|(_, line)| line.clone()).collect();
        }
        let mut kept: Vec<_> = self.lines.iter().enumerate().collect();
        kept.sort_by_key(|(position, (rank, _))| (*rank, *position));
        kept.truncate(height - 1);
        kept.sort_by_key(|(position, _)| *position);
        let missing = output::count(self.lines.len() - kept.len(), "more line");
        let last = format!("({missing}: make the window higher, or name a deployment)");
        kept.into_iter().map(|(_, (_, line))| line.clone()).chain([last]).collect()
    }

    fn add(&mut self, rank: Rank, line: String) {
        self.lines.push((rank, line));
    }

    fn interfaces(&mut self, status: &Status) {
        let interfaces = status.interfaces.iter();
        let names: Vec<_> =
            interfaces.map(|interface| format!("{} ({})", interface.name, interface.mode.name())).collect();
        if names.is_empty() {
            let line = "interfaces: none, so no packet is switched; `bgctl attach IFACE...` is the next step";
            self.add(Rank::Live, styled(ALARM, line));
        } else {
            self.add(Rank::Detail, format!("interfaces: {}", names.join(", ")));
        }
    }

    fn deployment(&mut self, deployment: &DeploymentStatus, all: bool) {
        let DeploymentStatus { name, live, idle, phase, generation, previous, flows, .. } = deployment;
        let is_live = styled(LIVE, &format!("{} is live", painted(live)));
        self.add(
            Rank::Live,
            format!(
                "{name}: {is_live}, {phase}, generation {generation}, previous {previous}; open flows: blue {}, green {}",
                flows.blue, flows.green
            ),
        );
        if let Some(deadline) = deployment.drain_deadline {
            let left = deadline.duration_since(jiff::Timestamp::now()).as_secs().max(0).unsigned_abs();
            let left = humantime::format_duration(Duration::from_secs(left));
            self.add(Rank::Deadline, format!("  drain: what is left on {idle} ends at {deadline}, in {left}"));
        }
        let fate = match (deployment.on_switch, deployment.drain_timeout) {
            (OnSwitch::Cut, _) => "open flows are cut".to_owned(),
            (OnSwitch::Drain, None) => "open flows drain, without a time limit".to_owned(),
            (OnSwitch::Drain, Some(timeout)) => {
                format!("open flows drain, for {} at most", humantime::format_duration(timeout))
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
        for line in services(deployment) {
            self.add(Rank::Detail, line);
        }
    }
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
            let ColourStatus { backends, packets, bytes, flows_opened } = service.colours.of(colour);
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
                backends.len().to_string().into(),
                packets.to_string().into(),
                output::bytes(*bytes).into(),
                flows_opened.to_string().into(),
            ]);
        }
    }
    table.lines("  ")
}

/// A colour's name in its own style.
fn painted(name: &str) -> String {
    let colour = Colour::ALL.into_iter().find(|colour| colour.name() == name);
    colour.map_or_else(|| name.to_owned(), |colour| styled(style_of(colour).bold(), name))
}

/// The first few, unless all are asked for.
fn some_of(items: &[String], all: bool) -> String {
    const SHOWN: usize = 8;
    match items.len().checked_sub(SHOWN) {
        Some(more @ 1..) if !all => format!("{} and {more} more (-v tells them)", items[..SHOWN].join(", ")),
        _ => items.join(", "),
    }
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(ranks: &[Rank]) -> Picture {
        Picture { lines: ranks.iter().enumerate().map(|(line, rank)| (*rank, line.to_string())).collect() }
    }

    #[test]
    fn what_matters_most_is_shown_in_a_small_window() {
        use Rank::{Deadline, Detail, Live, Terms};
        let picture = picture(&[Live, Terms, Detail, Detail, Live, Deadline, Detail, Detail]);
        assert_eq!(picture.fit(8).len(), 8);
        let small = picture.fit(6);
        assert_eq!(small[..5], ["0", "1", "2", "4", "5"]);
        assert!(small[5].starts_with("(3 more lines"), "{}", small[5]);
        assert_eq!(picture.fit(3)[..2], ["0", "4"]);
        assert_eq!(picture.fit(0).len(), 1);
    }
}
