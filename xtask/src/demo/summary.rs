//! The summary at the end of the demo.

use anyhow::{Result, bail};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Lab, SwitchInstant, address,
    config::{DEPLOYMENT, PREVIEW_PORT},
    load::Counts,
};
use std::{fmt, time::Duration};

/// The events of the demo.
#[derive(Default)]
pub(super) struct Summary {
    /// The counts of the loads.
    pub(super) accounts: Vec<(&'static str, Counts)>,
    instants: Vec<String>,
    probes: usize,
    lost: usize,
    late: usize,
    strayed_streams: usize,
}

impl Summary {
    /// Adds a switch or a rollback to `colour`.
    pub(super) fn instant(&mut self, verb: &str, colour: Colour, measured: &SwitchInstant) {
        self.lost += measured.lost();
        self.line(verb, colour, measured);
    }

    /// Adds a cut to green. The answer to a probe that was on its way then is dropped, as requested.
    pub(super) fn cut(&mut self, measured: &SwitchInstant) {
        self.lost += measured.lost_outside(Duration::from_millis(5));
        self.line("cut", Colour::Green, measured);
    }

    fn line(&mut self, verb: &str, colour: Colour, measured: &SwitchInstant) {
        let arrival = match measured.first_arrival(colour) {
            Some(Duration::ZERO) => "under 1µs".to_owned(),
            Some(time) => format!("{time:.0?}"),
            None => "never".to_owned(),
        };
        self.instants.push(format!(
            "{verb:<9} {arrival:>9} from the store to the first packet on {}; the command took {:.0?} in all",
            colour.name(),
            measured.command,
        ));
        self.probes += measured.probes.len();
        self.late += measured.late(colour);
    }

    /// Adds whether an open UDP flow was on the expected colour.
    pub(super) fn stream(&mut self, right: bool) {
        self.strayed_streams += usize::from(!right);
    }

    /// Returns an error unless everything went as promised.
    pub(super) fn verdict(&self) -> Result<()> {
        let of_loads = |count: fn(&Counts) -> u64| self.accounts.iter().map(|(_, counts)| count(counts)).sum::<u64>();
        let (failures, strayed) = (of_loads(|counts| counts.failures), of_loads(|counts| counts.strayed));
        if failures > 0 || strayed > 0 || self.lost > 0 || self.late > 0 || self.strayed_streams > 0 {
            bail!(
                "expected no failure, got {failures} failed requests, {strayed} answers of another colour than their \
                 connection's, {} lost probes, {} new flows on the old colour after a switch had returned, {} times \
                 an open UDP flow on the wrong colour",
                self.lost,
                self.late,
                self.strayed_streams,
            );
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nSummary")?;
        for (name, counts) in &self.accounts {
            writeln!(
                f,
                "  {name:<10} {:>6} requests: {} blue, {} green; {} failures, {} resets; {} ended by the cut, as asked",
                counts.total(),
                counts.answers[0],
                counts.answers[1],
                counts.failures,
                counts.resets,
                counts.cut,
            )?;
            for failure in &counts.first_failures {
                writeln!(f, "    {failure}")?;
            }
        }
        writeln!(
            f,
            "  {:<10} {:>6} flows of one datagram around the switches: {} lost, {} late on the old colour",
            "UDP probes", self.probes, self.lost, self.late
        )?;
        self.instants.iter().try_for_each(|instant| writeln!(f, "  {instant}"))
    }
}

/// Commands to try in a lab that was kept.
pub(super) fn how_to_play_on(lab: &Lab, bgctl: &Bgctl) -> String {
    let at = |machine: &bg_tests::Namespace| format!("nsenter --net=/run/netns/{}", machine.name());
    let (client, edge) = (at(&lab.client), at(&lab.edge));
    let program = bgctl.program().display();
    format!(
        "\nThe lab is up. As root:\n\
         \n  export BGCTL_PIN_ROOT={pins} BGCTL_STATE_DIR={state}\
         \n  edge='{edge}'; client='{client}'; bgctl=\"$edge {program}\"\
         \n  $client curl http://{v4}/                # the live colour\
         \n  $client curl http://[{v6}]/\
         \n  $client curl http://{v4}:{PREVIEW_PORT}/           # the idle colour, by the preview address\
         \n  $client curl --interface {tester} http://{v4}/   # the idle colour, as a tester\
         \n  $bgctl switch {DEPLOYMENT}; $bgctl status; $bgctl flows; $bgctl history\
         \n  $client wrk -d 10 -c 8 -t 1 http://{v4}/ & for i in $(seq 50); do $bgctl switch {DEPLOYMENT}; sleep 0.1; done; wait\
         \n  cargo xtask demo --remove                # ends it\n",
        pins = lab.sandbox.pin_root().display(),
        state = lab.sandbox.state_dir().display(),
        v4 = address::VIP_V4,
        v6 = address::VIP_V6,
        tester = address::TESTER_V4,
    )
}
