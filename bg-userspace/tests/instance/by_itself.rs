//! What the data path does by itself is in the history: once, with the time at which it took effect, before whatever noticed it.

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use bg_userspace::{
    AttachMode, Colour, ConfirmRequest, FreezeRequest, SplitRequest, SwitchRequest, Target, detach,
    history::{Action, History, LastLive, Moment, Record},
};
use jiff::Timestamp;

use crate::{
    lab::Lab,
    state::{BROKEN, live, running, two},
};

const SOON: Duration = Duration::from_millis(400);
/// Instants of deadlines are rounded to milliseconds, and what is derived from another clock is less exact.
const ROUNDING: Duration = Duration::from_millis(10);

fn guarded(to: Colour, within: Duration) -> SwitchRequest {
    SwitchRequest { to: Some(to), confirm_within: Some(within), ..SwitchRequest::default() }
}

fn scheduled(to: Colour, ahead: Duration) -> SwitchRequest {
    SwitchRequest { to: Some(to), at: Some(Timestamp::now() + ahead), ..SwitchRequest::default() }
}

fn records(lab: &Lab) -> Vec<Record> {
    History::new(&lab.paths.state_dir).read(Some("shop")).unwrap().records
}

fn actions(lab: &Lab) -> Vec<(Action, u32, Colour)> {
    let told = |record: Record| (record.action, record.to.unwrap().generation, record.to.unwrap().live);
    records(lab).into_iter().map(told).collect()
}

/// Each record of the data path has its time, and no user.
fn assert_by_kernel(record: &Record, at: Timestamp) {
    let apart =
        Duration::try_from((record.time - at).abs().to_duration(jiff::SpanRelativeTo::days_are_24_hours()).unwrap())
            .unwrap();
    assert!(apart < ROUNDING, "{apart:?} from {at}: {record:?}");
    assert_eq!((record.who.to_string().as_str(), record.who.uid, record.command.as_str()), ("kernel", 0, ""));
}

/// In the file itself, whose order is that of the chain.
fn assert_whole(lab: &Lab) {
    let (code, text, _) = lab.run(&["history", "--verify"]);
    assert_eq!(code, 0, "{text}");
    let text = fs::read_to_string(lab.paths.state_dir.join(History::FILE)).unwrap();
    let all: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in ["mail", "shop"] {
        let of_one: Vec<_> = all.iter().filter(|record| record.deployment == name).collect();
        assert!(of_one.is_sorted_by_key(|record| record.time), "{of_one:#?}");
        for pair in of_one.windows(2) {
            assert_eq!(pair[0].to, pair[1].from, "{:?} {:?}", pair[0], pair[1]);
        }
    }
}

fn moment(generation: u32, live: Colour) -> Option<Moment> {
    Some(Moment { generation, live })
}

const BLUE: Colour = Colour::Blue;
const GREEN: Colour = Colour::Green;
const MADE: (Action, u32, Colour) = (Action::Apply, 1, BLUE);

#[test]
fn who_looks_finds_that_a_switch_was_taken_back_and_when() {
    let lab = running();
    lab.instance().switch("mail", &guarded(GREEN, Duration::from_secs(3600))).unwrap();
    let deadline = lab.instance().switch("shop", &guarded(GREEN, SOON)).unwrap().confirm_deadline.unwrap();
    assert!(records(&lab)[1].unconfirmed);
    thread::sleep(2 * SOON);
    for words in [&["history", "--json"][..], &["status"], &["status", "shop", "--json"], &["history"]] {
        let (code, text, stderr) = lab.run(words);
        assert_eq!((code, stderr.as_str()), (0, ""));
        if words == ["history", "--json"] {
            let told: serde_json::Value = serde_json::from_str(&text).unwrap();
            let last = told["records"].as_array().unwrap().last().unwrap();
            assert_eq!((&last["action"], &last["who"]["user"]), (&"expired".into(), &"kernel".into()), "{last}");
        }
    }
    let found = records(&lab);
    assert_eq!(actions(&lab), [MADE, (Action::Switch, 2, GREEN), (Action::Expired, 3, BLUE)]);
    assert_eq!((found[2].from, found[2].to), (moment(2, GREEN), moment(3, BLUE)));
    assert_by_kernel(&found[2], deadline);
    // Refused, because it would undo the way back; and another one of the other deployment.
    assert_eq!(lab.run(&["rollback", "shop"]).0, 3);
    lab.instance().rollback("mail", &SwitchRequest::default()).unwrap();
    assert_eq!(records(&lab), found, "once");
    assert_whole(&lab);
}

#[test]
fn what_has_happened_before_a_change_is_recorded_before_it_although_the_change_overwrites_its_traces() {
    let lab = running();
    let request = SwitchRequest { confirm_within: Some(SOON), ..scheduled(GREEN, SOON) };
    let at = lab.instance().switch("shop", &request).unwrap().activate_at.unwrap();
    thread::sleep(3 * SOON);
    // Its generation overwrites the traces of the first one.
    lab.instance().switch("shop", &scheduled(GREEN, 100 * SOON)).unwrap();
    // Killed in the kernel's memory: it has cancelled the schedule, and made a generation of its own.
    let words = ["switch", "shop", "green", "--confirm-within", &format!("{}ms", SOON.as_millis())];
    lab.kill_when(|| live(&lab).1 == 6, &words);
    let killed = Timestamp::now();
    thread::sleep(2 * SOON);
    lab.instance().split("shop", &SplitRequest { green: 3000, ..SplitRequest::default() }).unwrap();

    let found = actions(&lab);
    let first = [MADE, (Action::Switch, 2, BLUE), (Action::Activated, 2, GREEN), (Action::Expired, 3, BLUE)];
    assert_eq!(found[..5], [&first[..], &[(Action::Switch, 4, BLUE)]].concat(), "{found:?}");
    // The killed one may have recorded itself.
    assert!(matches!(found[5], (Action::Recovered | Action::Switch, 6, GREEN)), "{found:?}");
    assert_eq!(found[6..], [(Action::Expired, 7, BLUE), (Action::Split, 8, BLUE)]);
    let records = records(&lab);
    assert_by_kernel(&records[2], at);
    assert_by_kernel(&records[3], at + SOON);
    assert!(records[5].time <= killed && records[6].time <= killed + 2 * SOON, "{records:?}");
    assert_whole(&lab);
}

#[test]
fn what_has_not_happened_is_not_recorded() {
    let lab = running();
    let instance = lab.instance();
    // A confirmed switch, a cancelled schedule, and a switch that was rolled back in time.
    instance.switch("shop", &guarded(GREEN, SOON)).unwrap();
    instance.confirm("shop", &ConfirmRequest::default()).unwrap();
    instance.switch("shop", &scheduled(BLUE, SOON)).unwrap();
    instance.rollback("shop", &SwitchRequest::default()).unwrap();
    instance.switch("shop", &guarded(BLUE, SOON)).unwrap();
    instance.rollback("shop", &SwitchRequest::default()).unwrap();
    thread::sleep(2 * SOON);
    lab.run(&["status"]);
    let made = [(Action::Switch, 2, GREEN), (Action::Confirm, 2, GREEN), (Action::Switch, 3, GREEN)];
    let undone = [(Action::Rollback, 4, GREEN), (Action::Switch, 5, BLUE), (Action::Rollback, 6, GREEN)];
    assert_eq!(actions(&lab), [&[MADE], &made[..], &undone].concat());
    assert_whole(&lab);
}

#[test]
fn a_schedule_without_a_guard_and_a_ramp_take_effect_once() {
    let lab = running();
    let at = lab.instance().switch("shop", &scheduled(GREEN, SOON)).unwrap().activate_at.unwrap();
    thread::sleep(2 * SOON);
    (0..3).for_each(|_| _ = lab.run(&["status"]));
    let ramp = SwitchRequest { to: Some(BLUE), ramp: Some(SOON), ..SwitchRequest::default() };
    let until = lab.instance().switch("shop", &ramp).unwrap().ramp_until.unwrap();
    thread::sleep(2 * SOON);
    lab.attach("v1", AttachMode::Tc).unwrap();
    (0..3).for_each(|_| _ = lab.run(&["status"]));
    let first = [(Action::Switch, 2, BLUE), (Action::Activated, 2, GREEN)];
    let second = [(Action::Switch, 3, GREEN), (Action::Activated, 3, BLUE)];
    assert_eq!(actions(&lab), [&[MADE], &first[..], &second].concat());
    assert_by_kernel(&records(&lab)[2], at);
    assert_by_kernel(&records(&lab)[4], until);
    assert_whole(&lab);
}

#[test]
fn a_schedule_and_a_ramp_that_conditions_alone_guard_take_effect_once() {
    let lab = running();
    let revert_if = || vec!["silence 1h".parse().unwrap()];
    let first =
        lab.instance().switch("shop", &SwitchRequest { revert_if: revert_if(), ..scheduled(GREEN, SOON) }).unwrap();
    let at = first.activate_at.unwrap();
    thread::sleep(2 * SOON);
    (0..3).for_each(|_| _ = lab.run(&["status"]));
    lab.instance().confirm("shop", &ConfirmRequest::default()).unwrap();
    let ramp = SwitchRequest { to: Some(BLUE), ramp: Some(SOON), revert_if: revert_if(), ..SwitchRequest::default() };
    let until = lab.instance().switch("shop", &ramp).unwrap().ramp_until.unwrap();
    thread::sleep(2 * SOON);
    // Nobody has looked before the next change.
    lab.instance().switch("shop", &SwitchRequest { revert_if: revert_if(), ..scheduled(GREEN, SOON) }).unwrap();
    let (_, text, _) = lab.run(&["status", "shop"]);
    assert!(text.contains("goes back to blue if silence 1h"), "{text}");
    thread::sleep(2 * SOON);
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    let first = [(Action::Switch, 2, BLUE), (Action::Activated, 2, GREEN), (Action::Confirm, 2, GREEN)];
    let second = [(Action::Switch, 3, GREEN), (Action::Activated, 3, BLUE)];
    let third = [(Action::Switch, 4, BLUE), (Action::Activated, 4, GREEN), (Action::Rollback, 5, BLUE)];
    assert_eq!(actions(&lab), [&[MADE], &first[..], &second, &third].concat());
    assert_by_kernel(&records(&lab)[2], at);
    assert_by_kernel(&records(&lab)[5], until);
    assert_whole(&lab);
}

#[test]
fn a_state_directory_that_cannot_be_written_loses_nothing() {
    for (what, breakage) in BROKEN {
        let lab = running();
        let mend = breakage(&lab.paths.state_dir);
        // Neither the switch nor what became of it.
        let before = Timestamp::now();
        lab.instance().switch("shop", &guarded(GREEN, SOON)).unwrap_err();
        thread::sleep(2 * SOON);
        let after = Timestamp::now();
        let (code, _, stderr) = lab.run(&["status"]);
        assert!(code == 0 && !stderr.is_empty(), "{what}: {code} {stderr}");
        mend();
        assert_eq!(lab.run(&["history"]).0, 0);
        let found = actions(&lab);
        assert!(matches!(found[1], (Action::Recovered | Action::Switch, 2, GREEN)), "{what}: {found:?}");
        assert_eq!(found[2..], [(Action::Expired, 3, BLUE)], "{what}: {found:?}");
        let records = records(&lab);
        assert!(before <= records[1].time && records[2].time <= after, "{what}: {records:?}");
        // What a full directory still had room for went with it.
        if what != "it is full" {
            assert_whole(&lab);
        }
    }
}

#[test]
fn files_of_other_versions_and_half_written_ones_lead_to_no_second_record() {
    let lab = running();
    lab.instance().switch("shop", &scheduled(GREEN, SOON)).unwrap();
    thread::sleep(2 * SOON);
    lab.run(&["status"]);
    let whole = [MADE, (Action::Switch, 2, BLUE), (Action::Activated, 2, GREEN)];
    assert_eq!(actions(&lab), whole);
    let file = lab.paths.state_dir.join(LastLive::FILE);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"activated\": true"), "{text}");
    let old = text.replace("\"activated\": true,", "");
    assert_ne!(text, old);
    for content in [old, text[..text.len() / 2].to_owned(), String::new()] {
        fs::write(&file, content).unwrap();
        lab.run(&["status"]);
        lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
        assert_eq!(actions(&lab), whole);
    }
    // An earlier version has recorded what it found as such.
    lab.instance().switch("shop", &guarded(BLUE, SOON)).unwrap();
    thread::sleep(2 * SOON);
    let text = fs::read_to_string(&file).unwrap();
    let shop = text.rfind("\"generation\": 3").unwrap();
    fs::write(&file, text[..shop].to_owned() + &text[shop..].replacen('3', "4", 1)).unwrap();
    lab.run(&["status"]);
    assert_eq!(actions(&lab).len(), 4, "{:?}", actions(&lab));
    assert_whole(&lab);
}

/// As a reboot does: nobody is asked.
fn lose_pins(lab: &Lab) {
    fs::remove_dir_all(&lab.paths.pin_root).unwrap();
    // The kernel removes what is attached a moment later.
    let start = Instant::now();
    while let Err(error) = lab.attach("v0", AttachMode::Tc) {
        assert!(start.elapsed() < Duration::from_secs(10), "{error}");
        thread::sleep(Duration::from_millis(10));
    }
    lab.instance().apply(&two()).unwrap();
}

#[test]
fn after_a_reboot_what_nobody_has_confirmed_is_undone() {
    let hour = Duration::from_secs(3600);
    for damage in [|_: String| None, |text: String| Some(text[..text.len() / 2].to_owned()), |_| Some(String::new())] {
        let lab = running();
        let instance = lab.instance();
        instance.switch("mail", &guarded(GREEN, hour)).unwrap();
        instance.switch("shop", &guarded(GREEN, hour)).unwrap();
        instance.freeze("shop", &FreezeRequest::default()).unwrap();
        instance.thaw("shop", None).unwrap();
        instance.confirm("mail", &ConfirmRequest::default()).unwrap();
        assert_eq!(live(&lab), ("green", 2));
        let file = lab.paths.state_dir.join(LastLive::FILE);
        if let Some(text) = damage(fs::read_to_string(&file).unwrap()) {
            fs::write(&file, text).unwrap();
        }
        lose_pins(&lab);
        assert_eq!(live(&lab), ("blue", 2));
        let mail = &lab.instance().status(Some("mail")).unwrap().deployments[0];
        assert_eq!((mail.live, mail.generation), ("green", 2), "it was confirmed");
        assert_eq!(lab.run(&["confirm", "shop"]).0, 3, "nothing waits");
    }
}

#[test]
fn after_a_reboot_a_schedule_is_in_force_if_its_time_has_come_and_nobody_had_to_confirm_it() {
    let hour = Duration::from_secs(3600);
    let plain = SwitchRequest::default();
    let ramp = |time| SwitchRequest { ramp: Some(time), ..SwitchRequest::default() };
    let revert_if = vec!["resets > 5% of 200".parse().unwrap()];
    for (ahead, request, expected) in [
        (SOON, plain.clone(), "green"),
        (SOON, ramp(SOON), "green"),
        (SOON, SwitchRequest { revert_if, ..plain.clone() }, "green"),
        (SOON, SwitchRequest { confirm_within: Some(hour), ..plain.clone() }, "blue"),
        (hour, plain, "blue"),
        (SOON, ramp(hour), "blue"),
    ] {
        let lab = running();
        // Whoever records something else meanwhile leaves it there.
        let at = Some(Timestamp::now() + ahead);
        lab.instance().switch("shop", &SwitchRequest { at, ..request.clone() }).unwrap();
        lab.instance().switch("mail", &SwitchRequest::default()).unwrap();
        thread::sleep(3 * SOON);
        lose_pins(&lab);
        assert_eq!(live(&lab), (expected, 2), "{request:?}");
        let last = records(&lab).pop().unwrap();
        assert_eq!(
            (last.action, last.to),
            (Action::Recovered, moment(2, if expected == "green" { GREEN } else { BLUE }))
        );
        assert_eq!(lab.instance().status(Some("mail")).unwrap().deployments[0].live, "green");
        // A schedule does not come again.
        let text = fs::read_to_string(lab.paths.state_dir.join(LastLive::FILE)).unwrap();
        assert!(!text.contains("scheduled"), "{text}");
    }
    // What was cancelled is not there any more, and neither is what has been replaced.
    let lab = running();
    lab.instance().switch("shop", &scheduled(GREEN, SOON)).unwrap();
    lab.instance().rollback("shop", &SwitchRequest::default()).unwrap();
    thread::sleep(2 * SOON);
    lose_pins(&lab);
    assert_eq!(live(&lab), ("blue", 3));
}

#[test]
fn a_freeze_that_nobody_has_ended_has_ended_at_its_time() {
    let lab = running();
    for notice in [&["status"][..], &["thaw", "shop"], &["freeze", "shop", "--max", "1h"]] {
        let before = records(&lab).len();
        // Nobody waits for its end: that is bgctl's.
        let request = FreezeRequest { max: Some(SOON), ..FreezeRequest::default() };
        let until = lab.instance().freeze("shop", &request).unwrap().frozen_until;
        thread::sleep(2 * SOON);
        assert_eq!(lab.run(notice).0, 0);
        let found = records(&lab).split_off(before);
        assert_eq!(found[..2].iter().map(|record| record.action).collect::<Vec<_>>(), [Action::Freeze, Action::Thaw]);
        assert_by_kernel(&found[1], until);
        assert_eq!(found.len(), if notice[0] == "freeze" { 3 } else { 2 });
    }
    assert_whole(&lab);
}

#[test]
fn many_commands_that_notice_at_once_record_it_once_also_if_they_are_killed() {
    const ROUNDS: u32 = 6;
    let lab = running();
    let takes = lab.time(&["status"]);
    for round in 0..ROUNDS {
        let before = records(&lab).len();
        let request = SwitchRequest {
            confirm_within: Some(Duration::from_millis(20)),
            ..scheduled(GREEN, Duration::from_millis(20))
        };
        let switched = lab.instance().switch("shop", &request).unwrap();
        let generation = switched.to.generation;
        thread::sleep(Duration::from_millis(50));
        let commands: [&[&str]; 5] =
            [&["status"], &["history"], &["switch", "mail"], &["switch", "shop", "blue"], &["confirm", "shop"]];
        let start =
            |words: &&[&str]| lab.bgctl().args(*words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut children: Vec<_> = commands.iter().map(start).collect();
        let end = Instant::now() + takes * round / ROUNDS;
        thread::sleep(end.saturating_duration_since(Instant::now()));
        if round % 2 == 0 {
            children.iter_mut().for_each(|child| child.kill().unwrap());
        }
        children.iter_mut().for_each(|child| _ = child.wait().unwrap());
        let (activated, expired) = ((Action::Activated, generation, GREEN), (Action::Expired, generation + 1, BLUE));
        // On a busy machine it takes effect before it is looked at.
        let expected = match switched.activate_at {
            Some(_) => vec![(Action::Switch, generation, BLUE), activated, expired],
            None => vec![(Action::Switch, generation, GREEN), expired],
        };
        // The processes that write outlive them.
        let start = Instant::now();
        while records(&lab).len() < before + expected.len() && start.elapsed() < Duration::from_secs(20) {
            assert_eq!(lab.run(&["status"]).0, 0);
        }
        assert_eq!(actions(&lab).split_off(before), expected, "round {round}");
    }
    assert_whole(&lab);
}

#[test]
fn a_deployment_that_is_detached_has_its_last_record() {
    let lab = running();
    lab.instance().switch("shop", &guarded(GREEN, SOON)).unwrap();
    thread::sleep(2 * SOON);
    detach(&lab.paths, &Target::All).unwrap();
    assert_eq!(actions(&lab).last(), Some(&(Action::Expired, 3, BLUE)));
}
