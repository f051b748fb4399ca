//! Switches in a frozen window: out of a split, and while another operator ends the freeze.

use std::time::Duration;

use bg_userspace::{
    Colour, DeploymentStatus, Error, FreezeWindow, Refusal, SplitRequest, SwitchRequest, config::DivideBy,
};

use crate::{lab::Lab, state::running};

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
