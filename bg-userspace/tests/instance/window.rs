//! Switches in a frozen window: out of a split, while another operator ends the freeze, and without a state directory.

use std::time::Duration;

use bg_userspace::{
    Colour, DeploymentStatus, Error, FreezeWindow, Refusal, SplitRequest, SwitchRequest, config::DivideBy,
    history::History,
};

use crate::{
    lab::Lab,
    state::{BROKEN, running},
};

fn shop(lab: &Lab) -> DeploymentStatus {
    lab.instance().status(Some("shop")).unwrap().deployments.remove(0)
}

/// A window with these commands. There is no flow, so nothing is waited for.
fn window(before: &str, after: &str) -> FreezeWindow {
    FreezeWindow { max: Duration::from_secs(60), before: Some(before.to_owned()), after: Some(after.to_owned()) }
}

#[test]
fn a_switch_out_of_a_split_runs_the_commands_also_if_most_flows_have_gone_there_already() {
    let lab = running();
    let share = |green, by| lab.instance().split("shop", &SplitRequest { green, by, ..SplitRequest::default() });
    share(6000, Some(DivideBy::Client)).unwrap();
    let told = lab.file("told", "");
    let tell = format!("echo $BGCTL_FROM $BGCTL_TO $BGCTL_GENERATION >> {}", told.display());
    let green = SwitchRequest { to: Some(Colour::Green), ..SwitchRequest::default() };
    let rehearsed = lab.instance().dry_run_in_window("shop", &green, &window(&tell, "true")).unwrap();
    assert!(rehearsed.freeze.is_some(), "{rehearsed:?}");

    for (window, generation) in [(window("exit 7", "true"), 2), (window(&tell, "exit 7"), 4)] {
        let error = lab.instance().switch_in_window("shop", &green, &window).unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::HookFailed { live: "green", .. })), "{error}");
        let back = shop(&lab);
        assert_eq!((back.green_share, back.phase, back.divide_by), (0.6, "split", DivideBy::Client));
        assert_eq!(back.generation, generation);
    }
    let done = lab.instance().switch_in_window("shop", &green, &window(&tell, &tell)).unwrap();
    assert!(done.switched.changed && done.frozen > Duration::ZERO, "{done:?}");
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "blue green 2\nblue green 4\nblue green 5\n");
    let done = shop(&lab);
    assert_eq!((done.green_share, done.confirm_deadline, done.frozen_until), (1.0, None, None));
    assert_eq!(lab.instance().status(Some("mail")).unwrap().deployments[0].generation, 1);

    // Nothing is left to move.
    let again = lab.instance().switch_in_window("shop", &green, &window("exit 7", "exit 7")).unwrap();
    assert!(!again.switched.changed);
    assert_eq!(lab.instance().dry_run_in_window("shop", &green, &window(&tell, "true")).unwrap().freeze, None);
}

#[test]
fn nothing_is_switched_if_another_operator_has_ended_the_freeze_or_set_its_end() {
    let lab = running();
    for meanwhile in ["thaw shop", "freeze shop --max 1h"] {
        let (pins, state) = (lab.paths.pin_root.display(), lab.paths.state_dir.display());
        let bgctl = format!("{} --pin-root {pins} --state-dir {state}", env!("CARGO_BIN_EXE_bgctl"));
        let marker = lab.file("after", "").with_file_name("marker");
        let window = window(&format!("{bgctl} {meanwhile}"), &format!("touch {}", marker.display()));
        let error = lab.instance().switch_in_window("shop", &SwitchRequest::default(), &window).unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::FreezeTakenOver { live: "blue", .. })), "{error}");
        let shop = shop(&lab);
        assert_eq!((shop.live, shop.generation, marker.exists()), ("blue", 1, false));
        assert_eq!(shop.frozen_until.is_some(), meanwhile.starts_with("freeze"), "the other operator's freeze stays");
    }
    lab.instance().thaw("shop", None).unwrap();
    assert_eq!(shop(&lab).phase, "steady");
}

#[test]
fn without_a_state_directory_the_old_colour_stays_live_and_the_error_says_what_to_do() {
    for (what, breakage) in BROKEN {
        let lab = running();
        let told = lab.file("told", "");
        let tell = format!("echo run >> {}", told.display());
        let switch = || lab.instance().switch_in_window("shop", &SwitchRequest::default(), &window(&tell, &tell));
        let mend = breakage(&lab.paths.state_dir);
        let error = switch().unwrap_err();
        assert!(matches!(error, Error::WindowNotRecorded { live: "blue", .. }), "{what}: {error}");
        assert!(error.to_string().contains("or switch without --freeze"), "{error}");
        let shop = shop(&lab);
        assert_eq!((shop.live, shop.phase, shop.confirm_deadline), ("blue", "steady", None), "{what}");
        // A disk that is full may have room for the first records.
        if what != "it is full" {
            assert_eq!((shop.generation, std::fs::read_to_string(&told).unwrap().as_str()), (1, ""), "{what}");
        }
        mend();
        let switched = switch().unwrap().switched;
        assert_eq!((switched.changed, switched.to.live), (true, Colour::Green), "{what}");
    }
}

#[test]
fn a_switch_that_cannot_be_recorded_any_more_goes_back_before_new_flows_go_on() {
    let lab = running();
    let (state, aside) = (&lab.paths.state_dir, lab.paths.state_dir.with_file_name("aside"));
    let breaks = format!("mv {} {} && touch {}", state.display(), aside.display(), state.display());
    let marker = aside.with_file_name("marker");
    let ends = format!("touch {}", marker.display());
    for (window, is_ended, generation) in [(window(&breaks, &ends), false, 3), (window(&ends, &breaks), true, 5)] {
        let error = lab.instance().switch_in_window("shop", &SwitchRequest::default(), &window).unwrap_err();
        assert!(matches!(error, Error::WindowNotRecorded { live: "blue", .. }), "{error}");
        let shop = shop(&lab);
        assert_eq!((shop.live, shop.generation, shop.phase), ("blue", generation, "steady"));
        assert_eq!((shop.confirm_deadline, marker.exists()), (None, is_ended));
        std::fs::remove_file(state).unwrap();
        std::fs::rename(&aside, state).unwrap();
    }
    lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
    let records = History::new(state).read(Some("shop")).unwrap().records;
    assert_eq!(records.last().and_then(|record| record.to).map(|to| to.generation), Some(5));
    assert_eq!(lab.run(&["history", "--verify"]).0, 0);
}
