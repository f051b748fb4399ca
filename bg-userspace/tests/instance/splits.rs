//! What a share divides, from one change to the next.

use std::time::Duration;

use bg_userspace::{
    ConfirmRequest, DeploymentStatus, Error, Refusal, SplitRequest, SwitchRequest, Switched, config::DivideBy,
};

use crate::{lab::Lab, state::running};

fn split(lab: &Lab, green: u16, by: Option<DivideBy>) -> Switched {
    lab.instance().split("shop", &SplitRequest { green, by, ..SplitRequest::default() }).unwrap()
}

fn switch(lab: &Lab, to: bg_userspace::Colour, with: SwitchRequest) {
    lab.instance().switch("shop", &SwitchRequest { to: Some(to), ..with }).unwrap();
}

fn shop(lab: &Lab) -> DeploymentStatus {
    lab.instance().status(Some("shop")).unwrap().deployments.remove(0)
}

/// The configuration says flows. If a share by client changed to one by flow, clients would meet both colours.
#[test]
fn a_share_that_changes_or_comes_back_divides_the_same_as_before() {
    use bg_userspace::Colour::{Blue, Green};
    let lab = running();
    let hour = Duration::from_secs(3600);
    let is_by = |by: DivideBy, share: f64| {
        let shop = shop(&lab);
        assert_eq!(shop.divide_by, by);
        assert!((shop.green_share - share).abs() < 0.01, "{shop:?}");
    };
    assert!(split(&lab, 500, Some(DivideBy::Client)).changed);
    assert!(!split(&lab, 500, None).changed, "it is there");
    assert!(split(&lab, 2500, None).changed);
    is_by(DivideBy::Client, 0.25);

    switch(&lab, Green, SwitchRequest { ramp: Some(hour), ..SwitchRequest::default() });
    is_by(DivideBy::Client, 0.25);
    switch(&lab, Green, SwitchRequest { at: Some(jiff::Timestamp::now() + hour), ..SwitchRequest::default() });
    is_by(DivideBy::Client, 0.25);
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    is_by(DivideBy::Client, 0.25);

    let soon = Duration::from_millis(50);
    switch(&lab, Green, SwitchRequest { confirm_within: Some(soon), ..SwitchRequest::default() });
    std::thread::sleep(2 * soon);
    is_by(DivideBy::Client, 0.25);
    split(&lab, 0, None);
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    is_by(DivideBy::Client, 0.25);

    // A share that begins anew is as configured.
    for anew in [false, true] {
        switch(&lab, Green, SwitchRequest::default());
        is_by(DivideBy::Flow, 1.0);
        if anew {
            split(&lab, 9000, None);
        } else {
            switch(&lab, Blue, SwitchRequest { ramp: Some(hour), ..SwitchRequest::default() });
        }
        is_by(DivideBy::Flow, if anew { 0.9 } else { 1.0 });
        switch(&lab, Blue, SwitchRequest::default());
        split(&lab, 500, Some(DivideBy::Client));
    }
}

/// A canary in steps, one of which gives both colours the same. No gates are configured.
#[test]
fn a_rollback_after_a_canary_of_one_half_leaves_nothing_on_the_new_colour() {
    use bg_userspace::Colour::{Blue, Green};
    let lab = running();
    for (old, new) in [(Blue, Green), (Green, Blue)] {
        switch(&lab, old, SwitchRequest::default());
        split(&lab, 5000, None);
        switch(&lab, new, SwitchRequest::default());
        lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
        let shop = shop(&lab);
        assert_eq!((shop.live, shop.green_share), (old.name(), if old == Green { 1.0 } else { 0.0 }));
    }
}

/// Whoever rolls a switch back because it has failed must not undo what somebody has kept.
#[test]
fn a_ramp_that_was_confirmed_on_its_way_waits_for_nothing() {
    let lab = running();
    let (hour, back) = (Duration::from_secs(3600), SwitchRequest { only_if_waiting: true, ..SwitchRequest::default() });
    let ramp = SwitchRequest { ramp: Some(hour), confirm_within: Some(hour), ..SwitchRequest::default() };
    switch(&lab, bg_userspace::Colour::Green, ramp.clone());
    lab.instance().rollback("shop", &back).unwrap();
    switch(&lab, bg_userspace::Colour::Green, ramp);
    lab.instance().confirm("shop", &ConfirmRequest::default()).unwrap();
    let refused = lab.instance().rollback("shop", &back).unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::NothingToConfirm { .. })), "{refused:?}");
}
