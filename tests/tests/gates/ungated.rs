//! Splits and rollbacks ask no gates, so they do not go round them.

use crate::{Gated, PATIENCE, Said, shell};
use anyhow::{Result, ensure};
use bg_tests::config::DEPLOYMENT;
use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

impl Gated {
    fn change(&self, command: &str, arguments: &[&str]) -> Result<Said> {
        self.run(&[&[command, DEPLOYMENT], arguments].concat())
    }

    /// Asserts that a command would make this colour live without gates, and so is refused, and has changed nothing.
    #[track_caller]
    fn is_no_way_round(&self, command: &str, arguments: &[&str], to: &str) {
        let before = self.state(DEPLOYMENT).unwrap();
        let dry_run = self.change(command, &[arguments, &["--dry-run"]].concat()).unwrap();
        let says = format!("a {command} asks none, so it does not make {to} live");
        for said in [self.change(command, arguments).unwrap(), dry_run] {
            assert!(said.code == Some(3) && (said.err + &said.out).contains(&says), "{:?} {}", said.code, said.out);
        }
        assert_eq!(self.state(DEPLOYMENT).unwrap(), before, "nothing was changed");
    }

    #[track_caller]
    fn goes(&self, command: &str, arguments: &[&str], live: &str) {
        let said = self.change(command, arguments).unwrap();
        assert_eq!(said.code, Some(0), "{command} {arguments:?}: {}", said.err);
        assert_eq!(self.state(DEPLOYMENT).unwrap().0, live, "{command} {arguments:?}");
    }
}

#[test]
fn no_other_colour_becomes_live_by_a_split_or_a_rollback() -> Result<()> {
    let lab = Gated::new()?;
    // Without gates, all of them do.
    lab.goes("split", &["--green", "100"], "green");
    lab.goes("split", &["--green", "40"], "blue");
    lab.goes("rollback", &["green"], "green");
    lab.goes("rollback", &["blue"], "blue");
    let log = lab.file("log").display().to_string();
    lab.apply(&[shell(DEPLOYMENT, "before", &format!("echo asked >> {log}; test ! -e {log}.fails"))])?;

    // A part for a trial, and back from it. Not more, and not in two steps.
    lab.goes("split", &["--green", "10"], "blue");
    lab.is_no_way_round("split", &["--green", "100"], "green");
    lab.is_no_way_round("split", &["--green", "60"], "green");
    lab.is_no_way_round("rollback", &["green"], "green");
    lab.goes("split", &["--green", "50"], "blue");
    lab.is_no_way_round("split", &["--green", "100"], "green");
    lab.goes("split", &["--green", "0"], "blue");
    assert!(lab.lines("log").is_empty(), "nobody asks here");

    // The gates let it, and then the way back is free, also when the disk is gone.
    lab.goes("switch", &[], "green");
    assert_eq!(lab.lines("log").len(), 1);
    lab.is_no_way_round("split", &["--green", "0"], "blue");
    lab.goes("split", &["--green", "100"], "green");
    let state = lab.ready.lab.sandbox.state_dir();
    let aside = state.with_extension("aside");
    fs::rename(&state, &aside)?;
    let unknown = lab.change("split", &["--green", "0"])?;
    assert!(
        unknown.code == Some(1) && unknown.err.contains("the gates of the last apply cannot be read"),
        "{}",
        unknown.err
    );
    let generation = lab.state(DEPLOYMENT)?.1.to_string();
    lab.change("rollback", &["--if-generation", &generation])?;
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    let _ = fs::remove_dir_all(&state);
    fs::rename(&aside, &state)?;

    // What was taken back was taken back for a reason.
    let generation = lab.state(DEPLOYMENT)?.1.to_string();
    lab.is_no_way_round("rollback", &["green"], "green");
    lab.is_no_way_round("rollback", &["--if-generation", &generation], "green");
    fs::write(format!("{log}.fails"), "")?;
    lab.refused(&["green"], &["exit status: 1"]);

    // Who has to goes without, and the history tells.
    lab.goes("rollback", &["green", "--skip-gates", "--reason", "night"], "green");
    assert_eq!(lab.last_record(DEPLOYMENT)?, ("rollback".to_owned(), "night (gates skipped)".to_owned()));
    lab.goes("split", &["--green", "0", "--skip-gates"], "blue");
    assert_eq!(lab.last_record(DEPLOYMENT)?, ("split".to_owned(), "gates skipped".to_owned()));
    lab.ready.neighbour_is_undisturbed()
}

#[test]
fn a_switch_whose_gates_are_being_asked_is_not_completed_by_a_split() -> Result<()> {
    let lab = Gated::new()?;
    lab.apply(&[shell(DEPLOYMENT, "after", "true")])?;
    for times in [&["--ramp", "12s"][..], &[]] {
        let arguments = [times, &["--confirm-within", "1m"]].concat();
        thread::scope(|scope| {
            let switch = scope.spawn(|| lab.change("switch", &arguments));
            let began = Instant::now();
            // Also when most new flows go there already.
            while lab.state(DEPLOYMENT)?.0 != "green" {
                ensure!(began.elapsed() < PATIENCE && !switch.is_finished(), "it was not switched");
            }
            if times.is_empty() {
                // It is there already, so this changes nothing, and the switch goes on waiting.
                lab.goes("split", &["--green", "100"], "green");
                ensure!(lab.state(DEPLOYMENT)?.2 == "confirming");
            } else {
                lab.is_no_way_round("split", &["--green", "100"], "green");
            }
            lab.goes("rollback", &[], "blue");
            let said = switch.join().expect("it runs")?;
            ensure!(said.code == Some(3), "{}", said.err);
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}

#[test]
fn neither_a_tie_nor_what_was_never_kept_is_a_way_round() -> Result<()> {
    let lab = Gated::new()?;
    lab.apply(&[shell(DEPLOYMENT, "before", "true")])?;
    lab.goes("switch", &[], "green");
    // Two generations with the same share.
    for by in ["flow", "client"] {
        lab.change("split", &["--green", "50", "--by", by])?;
    }
    lab.is_no_way_round("split", &["--green", "0"], "blue");
    lab.goes("split", &["--green", "70"], "green");
    lab.change("rollback", &[])?;
    assert_eq!(lab.ready.bgctl.deployment(DEPLOYMENT)?["green_share"], 0.5);
    // Blue was kept before green, and nobody has gone back from it.
    lab.goes("rollback", &["blue"], "blue");
    lab.is_no_way_round("rollback", &["green"], "green");
    lab.goes("switch", &["green"], "green");

    // It waits for its confirmation, and then for nothing any more, but is not kept.
    let guard = &["blue", "--confirm-within", "1h"][..];
    lab.goes("switch", guard, "blue");
    let back = lab.change("switch", &["green", "--confirm-within", "1h"])?;
    assert!(back.code == Some(3) && back.err.contains("to which this one would go back"), "{}", back.err);
    lab.change("split", &["--green", "50"])?;
    lab.is_no_way_round("split", &["--green", "0"], "blue");
    lab.is_no_way_round("rollback", &["blue"], "blue");
    let back = lab.change("rollback", &[])?;
    assert!(back.code == Some(3) && back.err.contains("went away from what was not kept"), "{}", back.err);
    lab.goes("rollback", &["green"], "green");

    // A ramp that is cancelled when most new flows go there.
    lab.change("switch", &["blue", "--ramp", "20s"])?;
    // It would leave new flows where the ramp has come to, with nobody watching.
    let hour = SystemTime::now() + Duration::from_secs(3600);
    let later = lab.change("switch", &["blue", "--at", &humantime::format_rfc3339_millis(hour).to_string()])?;
    assert!(later.code == Some(3) && later.err.contains("to which this one would go back"), "{}", later.err);
    let began = Instant::now();
    while lab.state(DEPLOYMENT)?.0 != "blue" {
        ensure!(began.elapsed() < PATIENCE, "the ramp does not go on");
    }
    lab.change("split", &["--green", "50"])?;
    lab.is_no_way_round("split", &["--green", "0"], "blue");
    // What was taken back by the data path.
    let began = Instant::now();
    lab.change("switch", &["green"])?;
    lab.goes("split", &["--green", "100"], "green");
    lab.change("switch", &["blue", "--confirm-within", "200ms"])?;
    while lab.state(DEPLOYMENT)?.0 != "green" {
        ensure!(began.elapsed() < PATIENCE, "nobody has confirmed it");
    }
    lab.is_no_way_round("split", &["--green", "20"], "blue");
    lab.goes("split", &["--green", "80"], "green");
    lab.ready.neighbour_is_undisturbed()
}
