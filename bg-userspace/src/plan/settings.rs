//! The actions for a deployment's settings and testers.

use std::time::Duration;

use bg_common::DeploymentRow;

use super::{beginning::Beginning, change::Action};
use crate::{
    config::{Deployment, DivideBy, OnSwitch, StickyPrefix},
    running::{RunningDeployment, padded},
    time::TickLength,
};

/// The actions for a deployment's settings and testers. `beginning` is how it starts if it does not run yet.
pub(super) fn deployment_actions(
    wanted: &Deployment,
    current: Option<&RunningDeployment>,
    length: TickLength,
    beginning: Beginning,
) -> Vec<Action> {
    let mut actions = match current {
        None => vec![Action::AddDeployment(beginning)],
        Some(current) => settings_actions(wanted, &current.row, length),
    };
    if current.is_some_and(|current| current.word.generation() == 0 || current.is_unsettled) {
        actions.push(Action::Finish);
    }
    let testers = current.map_or(&[][..], |current| &current.testers);
    let added = wanted.testers.iter().filter(|prefix| !testers.contains(prefix));
    actions.extend(added.map(|prefix| Action::AddTester { prefix: *prefix }));
    let removed = testers.iter().filter(|prefix| !wanted.testers.contains(prefix));
    actions.extend(removed.map(|prefix| Action::RemoveTester { prefix: *prefix }));
    actions
}

fn settings_actions(wanted: &Deployment, row: &DeploymentRow, length: TickLength) -> Vec<Action> {
    let new = deployment_row(wanted, length);
    let on_switch = |row: &DeploymentRow| if row.on_switch == 0 { OnSwitch::Drain } else { OnSwitch::Cut };
    let idle = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
    let drain = |ms| if ms == 0 { "never".to_owned() } else { idle(ms) };
    let mut actions = Vec::new();
    let mut set = |setting, from: String, to: String| {
        if from != to {
            actions.push(Action::Set { setting, from, to });
        }
    };
    set("on_switch", on_switch(row).name().to_owned(), on_switch(&new).name().to_owned());
    set("drain_timeout", drain(row.drain_timeout_ms), drain(new.drain_timeout_ms));
    set("tcp_idle_timeout", idle(row.tcp_idle_ms), idle(new.tcp_idle_ms));
    set("udp_idle_timeout", idle(row.udp_idle_ms), idle(new.udp_idle_ms));
    let sticky = |row: &DeploymentRow| if row.sticky == 1 { DivideBy::Client } else { DivideBy::Flow };
    set("sticky", sticky(row).name().to_owned(), sticky(&new).name().to_owned());
    let prefix = |row: &DeploymentRow| StickyPrefix { ipv4: row.client_prefix[0], ipv6: row.client_prefix[1] };
    set("sticky_prefix", prefix(row).to_string(), prefix(&new).to_string());
    if actions.is_empty() && (DeploymentRow { split_by: row.split_by, receipt: row.receipt, ..new }) != *row {
        // The times are the same, but take another number of ticks.
        actions.push(Action::Finish);
    }
    actions
}

/// The row of a deployment according to the configuration.
pub(crate) fn deployment_row(wanted: &Deployment, length: TickLength) -> DeploymentRow {
    /// How long a handshake may take: as long as Linux retransmits a SYN by default.
    const TCP_OPENING: Duration = Duration::from_secs(127);
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    // Computed from the values in the row, so that reading it back gives the same ticks.
    let [tcp_idle, udp_idle] = [wanted.tcp_idle_timeout, wanted.udp_idle_timeout].map(millis);
    let ticks = |millis| length.ticks(Duration::from_millis(millis));
    DeploymentRow {
        name: padded(&wanted.name),
        tcp_idle: ticks(tcp_idle),
        tcp_opening: length.ticks(TCP_OPENING.min(Duration::from_millis(tcp_idle))),
        udp_idle: ticks(udp_idle),
        in_use: 1,
        on_switch: wanted.on_switch as u8,
        sticky: wanted.sticky as u8,
        split_by: 0,
        drain_timeout_ms: wanted.drain_timeout.map_or(0, millis),
        tcp_idle_ms: tcp_idle,
        udp_idle_ms: udp_idle,
        client_prefix: [wanted.sticky_prefix.ipv4, wanted.sticky_prefix.ipv6],
        receipt: 0,
        reserved: [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;
    use crate::{config::Failover, plan::Change};

    fn deployment(tcp_idle: &str, drain: Option<&str>) -> Deployment {
        let time = |text: &str| humantime::parse_duration(text).unwrap();
        Deployment {
            name: "shop".into(),
            initial: Colour::Blue,
            on_switch: OnSwitch::Drain,
            drain_timeout: drain.map(time),
            tcp_idle_timeout: time(tcp_idle),
            udp_idle_timeout: time("90s"),
            sticky: DivideBy::Flow,
            sticky_prefix: StickyPrefix::default(),
            testers: Vec::new(),
            health: None,
            failover: Failover::default(),
            gates: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn times_are_told_as_they_were_configured_and_an_apply_settles_them() {
        for hz in [100, 250, 300, 1000] {
            let length = TickLength::new(bg_common::Meta { hz, ..bytemuck::Zeroable::zeroed() });
            let told = |from: &Deployment, to: &Deployment| {
                let actions = settings_actions(to, &deployment_row(from, length), length);
                let change = |action| Change { deployment: "shop".into(), service: None, action };
                actions.into_iter().map(|action| change(action).to_string()).collect::<Vec<_>>()
            };
            let (before, after) = (deployment("2h", None), deployment("1500ms", Some("10m")));
            let expected =
                ["~ shop: drain_timeout never -> 10m", "~ shop: tcp_idle_timeout 2h -> 1s 500ms"].map(str::to_owned);
            assert_eq!(told(&before, &after), expected, "{hz}");
            assert_eq!(told(&after, &after), [""; 0]);
        }
    }
}
