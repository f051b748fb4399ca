//! Every change is in the history once, also if nobody could record it when it was made.

use std::fs::File;

use bg_common::{FULL_SHARE, LiveFlags, LiveWord};
use bg_userspace::{
    AttachMode, Instance, SwitchRequest,
    config::{Config, OnSwitch},
    history::{Action, History, Moment, Record},
};

use crate::{
    flow_map::array,
    lab::Lab,
    state::{BROKEN, running, two},
};

const ROUNDS: u32 = 12;

fn records(lab: &Lab) -> Vec<Record> {
    History::new(&lab.paths.state_dir).read(None).unwrap().records
}

/// The state directory is a file; what makes it a directory again.
fn without_state_directory(lab: &Lab) -> Box<dyn FnOnce()> {
    BROKEN[0].1(&lab.paths.state_dir)
}

fn with_weight(weight: u32) -> Config {
    let mut config = two();
    config.deployments[1].services[0].backends[0][0].weight = weight;
    config
}

fn write(lab: &Lab, name: &str, config: &Config) -> String {
    lab.file(name, &config.to_toml()).display().to_string()
}

fn assert_whole(lab: &Lab) {
    let (code, text, _) = lab.run(&["history", "--verify"]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn what_could_not_be_recorded_is_recorded_by_the_next_command_as_it_was() {
    let lab = running();
    let heavier = write(&lab, "heavier.toml", &with_weight(7));
    let mend = without_state_directory(&lab);
    let since = jiff::Timestamp::now();
    for words in
        [&["attach", "v1", "--mode", "tc"][..], &["apply", "-c", &heavier, "--reason", "more"], &["detach", "v1"]]
    {
        let (code, _, stderr) = lab.run(words);
        assert!(code == 1 && stderr.contains("could not be recorded"), "{code}: {stderr}");
    }
    let until = jiff::Timestamp::now();
    mend();
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();

    let late: Vec<_> = records(&lab).into_iter().filter(|record| record.time > since).collect();
    let told: Vec<_> = late.iter().map(|it| (it.action, it.deployment.as_str(), it.interfaces.join(","))).collect();
    let (v1, none) = ("v1".to_owned(), String::new());
    assert_eq!(
        told,
        [
            (Action::Attach, "", v1.clone()),
            (Action::Apply, "shop", none.clone()),
            (Action::Detach, "", v1),
            (Action::Switch, "shop", none)
        ]
    );
    assert!(late[..3].iter().all(|record| record.time < until), "the time of the change");
    assert!(late[1].command.contains("heavier.toml") && late[1].reason.as_deref() == Some("more"), "{:?}", late[1]);
    assert_eq!((late[1].from, late[1].to), (late[3].from, late[3].from));
    assert!(!lab.paths.pin_root.join("changes").exists());
    assert_whole(&lab);
}

#[test]
fn a_killed_apply_is_recorded_if_it_has_changed_anything() {
    let lab = running();
    let configs = [with_weight(1), with_weight(7)];
    let files = ["light.toml", "heavy.toml"];
    let files: Vec<_> = std::iter::zip(files, &configs).map(|(name, config)| write(&lab, name, config)).collect();
    let takes = lab.time(&["apply", "-c", &files[1]]);
    let mut changed = 0;
    for round in 0..ROUNDS {
        let (wanted, file) = (&configs[round as usize % 2], &files[round as usize % 2]);
        let before = lab.instance().plan(wanted).unwrap();
        assert!(!before.is_empty());
        let reason = format!("round {round}.");
        lab.kill_after(takes * round / (ROUNDS - 2), &["apply", "-c", file, "--reason", &reason]);
        let has_changed = lab.instance().plan(wanted).unwrap() != before;
        changed += u32::from(has_changed);
        // Of another deployment.
        lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
        let of_this_round = || {
            let has_reason = |record: &Record| record.reason.as_ref().is_some_and(|it| it.starts_with(&reason));
            records(&lab).into_iter().filter(has_reason).collect::<Vec<_>>()
        };
        let told = of_this_round();
        assert!(told.len() <= 1 && (!has_changed || told.len() == 1), "round {round}: {has_changed}: {told:?}");
        let is_right = |record: &Record| record.action == Action::Apply && record.deployment == "shop";
        assert!(told.iter().all(is_right), "{told:?}");
        lab.instance().apply(wanted).unwrap();
        assert_eq!(of_this_round(), told, "once");
    }
    println!("{changed} of {ROUNDS} had changed something");
    assert!(changed > 0);
    assert_whole(&lab);
}

/// Holds the lock of the live words, for which an apply waits that has written down what it is about to do.
fn lock_live_words(lab: &Lab) -> File {
    let maps = File::open(lab.paths.pin_root.join("maps")).unwrap();
    rustix::fs::flock(&maps, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    maps
}

/// Whether an apply has written down what it is about to do.
fn has_begun(lab: &Lab) -> bool {
    let links = std::fs::read_dir(lab.paths.pin_root.join("changes"));
    links.is_ok_and(|mut links| links.any(|link| !link.unwrap().file_name().to_string_lossy().contains(':')))
}

/// Makes green live in a deployment at generation 1, as a program does that does not lock.
fn flip(lab: &Lab, deployment: u32) {
    let green = LiveWord::new(2, LiveFlags::NONE, 0, FULL_SHARE);
    array::<LiveWord>(lab, "live").set(deployment, green, 0).unwrap();
}

/// The last records of a deployment: action, and generations before and after.
fn told(lab: &Lab, deployment: &str, count: usize) -> Vec<(Action, Option<u32>, Option<u32>)> {
    let records = History::new(&lab.paths.state_dir).read(Some(deployment)).unwrap().records;
    let generation = |moment: Option<Moment>| moment.map(|moment| moment.generation);
    let told = records.iter().map(|record| (record.action, generation(record.from), generation(record.to)));
    told.skip(records.len() - count).collect()
}

#[test]
fn an_apply_claims_no_change_that_was_made_beside_it() {
    let lab = running();
    let mut next = two();
    next.deployments.remove(0);
    next.deployments[0].on_switch = OnSwitch::Cut;
    let lock = lock_live_words(&lab);
    std::thread::scope(|scope| {
        let applies = scope.spawn(|| lab.instance().apply(&next));
        while !has_begun(&lab) && !applies.is_finished() {}
        [0, 1].into_iter().for_each(|deployment| flip(&lab, deployment));
        drop(lock);
        applies.join().unwrap().unwrap();
    });
    assert_eq!(told(&lab, "shop", 2), [(Action::Recovered, Some(1), Some(2)), (Action::Apply, Some(2), Some(2))]);
    assert_eq!(told(&lab, "mail", 1), [(Action::Apply, Some(2), None)]);

    // A deployment that it adds.
    let next = two();
    std::thread::scope(|scope| {
        let applies = scope.spawn(|| lab.instance().apply(&next));
        let live = array::<LiveWord>(&lab, "live");
        while live.get(&0, 0).unwrap().generation() == 0 && !applies.is_finished() {}
        flip(&lab, 0);
        applies.join().unwrap().unwrap();
    });
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(told(&lab, "mail", 2), [(Action::Apply, None, Some(1)), (Action::Recovered, Some(1), Some(2))]);
    assert_whole(&lab);
}

#[test]
fn a_killed_apply_claims_no_change_that_was_made_after_it() {
    let lab = running();
    let mut next = two();
    next.deployments[1].on_switch = OnSwitch::Cut;
    let file = write(&lab, "next.toml", &next);
    let lock = lock_live_words(&lab);
    lab.kill_when(|| has_begun(&lab), &["apply", "-c", &file]);
    flip(&lab, 1);
    drop(lock);
    lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
    assert_eq!(told(&lab, "shop", 2), [(Action::Apply, Some(1), Some(1)), (Action::Recovered, Some(1), Some(2))]);
    assert_whole(&lab);
}

/// Whether a pin of the instance exists.
fn has(lab: &Lab, pin: &str) -> bool {
    lab.paths.pin_root.join(pin).exists()
}

#[test]
fn a_killed_attach_or_detach_is_recorded() {
    let lab = running();
    for round in 0..6 {
        for (action, words, attaches) in
            [(Action::Attach, &["attach", "v1", "--mode", "tc"][..], true), (Action::Detach, &["detach", "v1"], false)]
        {
            let before = records(&lab).len();
            let last_pin = if attaches { "links/v1:tc_egress" } else { "links/v1:tc_ingress" };
            lab.kill_when(|| has(&lab, last_pin) == attaches, words);
            assert_eq!(has(&lab, last_pin), attaches, "round {round}: it was killed after it took effect");
            if round % 2 == 0 {
                assert_eq!(lab.run(&["status"]).0, 0);
            } else {
                lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
            }
            let new = records(&lab).split_off(before);
            let told: Vec<_> = new.iter().filter(|record| record.action == action).collect();
            assert!(matches!(told[..], [only] if only.interfaces == ["v1"]), "round {round}: {new:?}");
        }
    }
    assert_whole(&lab);
}

#[test]
fn a_detach_of_everything_is_recorded_by_the_next_attach_if_it_was_killed() {
    let lab = running();
    for round in 0..4 {
        let before = records(&lab).len();
        lab.kill_when(|| !has(&lab, "maps/meta"), &["detach", "--all"]);
        assert!(Instance::open(&lab.paths).is_err(), "round {round}: it was killed after it took effect");
        lab.attach("v0", AttachMode::Tc).unwrap();
        let actions: Vec<_> = records(&lab).split_off(before).into_iter().map(|record| record.action).collect();
        assert_eq!(actions, [Action::Detach, Action::Attach], "round {round}");
    }
    assert_whole(&lab);
}
