//! Processes that change the same deployment at once, some of which are killed before they have recorded it: every generation has one record.

use std::{
    fs::{self, File},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use bg_common::LiveWord;
use bg_userspace::{
    config::OnSwitch,
    history::{Action, History, LastLive, Record},
};
use jiff::Timestamp;
use rustix::{
    fs::FlockOperation,
    process::{Pid, Signal, kill_process},
};

use crate::{
    flow_map::array,
    lab::Lab,
    state::{live, running, two},
};

fn records(lab: &Lab, deployment: &str) -> Vec<Record> {
    History::new(&lab.paths.state_dir).read(Some(deployment)).unwrap().records
}

/// Action, and generations before and after.
fn told(lab: &Lab, deployment: &str) -> Vec<(Action, u32, u32)> {
    let generation = |moment: Option<bg_userspace::history::Moment>| moment.map_or(0, |moment| moment.generation);
    let told = |record: &Record| (record.action, generation(record.from), generation(record.to));
    records(lab, deployment).iter().map(told).collect()
}

/// Each generation until the last one has one record, and they are read in order.
#[track_caller]
fn assert_each_once(lab: &Lab, deployment: &str, last: u32) {
    let told = told(lab, deployment);
    for generation in 2..=last {
        let about = told.iter().filter(|(_, from, to)| (from + 1..=*to).contains(&generation)).count();
        assert_eq!(about, 1, "records about generation {generation} of {deployment}: {told:?}");
    }
    let made: Vec<_> = told.iter().filter(|(_, from, to)| from < to).collect();
    assert!(made.is_sorted_by_key(|(.., to)| to), "{made:?}");
    let (code, text, _) = lab.run(&["history", "--verify"]);
    assert_eq!(code, 0, "{text}");
}

fn last_live(lab: &Lab) -> String {
    fs::read_to_string(lab.paths.state_dir.join(LastLive::FILE)).unwrap()
}

fn locked(path: &std::path::Path) -> File {
    let file = File::open(path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

/// A command that has changed a deployment and not recorded it yet: the process that records it is stopped.
struct Stopped {
    command: Child,
    recorder: Pid,
}

impl Stopped {
    fn new(lab: &Lab, words: &[&str]) -> Self {
        let lock = locked(&lab.paths.state_dir.join("history.lock"));
        let mut command = lab.bgctl().args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let recorder = loop {
            if let Some(recorder) = recorder(lab, &command) {
                break recorder;
            }
            assert!(command.try_wait().unwrap().is_none(), "{words:?} has ended");
        };
        kill_process(recorder, Signal::STOP).unwrap();
        await_state(recorder, 'T');
        drop(lock);
        Self { command, recorder }
    }

    /// What the command has done stays. Nobody is left who would record it.
    fn kill(mut self) {
        kill_process(self.recorder, Signal::KILL).unwrap();
        self.command.kill().unwrap();
        self.command.wait().unwrap();
        await_state(self.recorder, 'Z');
    }

    fn go_on(mut self) {
        kill_process(self.recorder, Signal::CONT).unwrap();
        self.command.wait().unwrap();
        await_state(self.recorder, 'Z');
    }
}

/// The process that records for a command. Its name is the command's, and it is waiting for the lock of the history.
fn recorder(lab: &Lab, command: &Child) -> Option<Pid> {
    let pins = lab.paths.pin_root.to_str().unwrap();
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_recorder = |number: &i32| {
        let read = |file: &str| fs::read(format!("/proc/{number}/{file}")).unwrap_or_default();
        let (words, status) = (read("cmdline"), read("stat"));
        let (words, status) = (String::from_utf8_lossy(&words), String::from_utf8_lossy(&status));
        // Process, name, state, parent, group, session: it has a session of its own.
        let leads = || status.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)) == Some(&number.to_string());
        *number as u32 != command.id() && words.contains(pins) && leads() && state_of(*number) != 'T'
    };
    Pid::from_raw(numbers.into_iter().find(is_recorder)?)
}

/// The state of a process, `Z` if it is gone.
fn state_of(process: i32) -> char {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('Z')
}

fn await_state(process: Pid, state: char) {
    let start = Instant::now();
    while state_of(process.as_raw_pid()) != state {
        assert!(start.elapsed() < Duration::from_secs(20), "{process:?} is not {state}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whoever_comes_next_records_what_a_killed_command_did_while_another_was_recording() {
    for next in [
        &["status"][..],
        &["history", "mail"],
        &["show"],
        &["drain", "mail"],
        &["thaw", "mail"],
        &["switch", "mail", "green"],
        &["rollback", "shop", "--if-generation", "1"],
        &["attach", "v0"],
    ] {
        let lab = running();
        let killed = Stopped::new(&lab, &["switch", "shop"]);
        let other = Stopped::new(&lab, &["switch", "mail"]);
        killed.kill();
        let until = Timestamp::now();
        assert_eq!(lab.run(&["switch", "shop"]).0, 0);
        other.kill();
        assert_eq!(
            told(&lab, "shop")[1..],
            [(Action::Switch, 2, 3)],
            "as far as it knows, the other one may be about it"
        );
        lab.run(next);
        let found = [(Action::Recovered, 1, 2), (Action::Switch, 2, 3)];
        assert_eq!(told(&lab, "shop")[1..], found, "{next:?}");
        assert_eq!(told(&lab, "mail")[1..], [(Action::Recovered, 1, 2)], "{next:?}");
        let recovered = &records(&lab, "shop")[1];
        assert!(recovered.time < until, "the time of the change: {recovered:?}");
        assert!(!last_live(&lab).contains("unrecorded"), "{}", last_live(&lab));
        lab.run(&["status"]);
        lab.run(&["switch", "mail"]);
        assert_eq!(told(&lab, "shop")[1..], found, "once");
        assert_each_once(&lab, "mail", 3);
    }
}

#[test]
fn who_only_looks_records_what_another_has_noted_and_what_nobody_has() {
    let lab = running();
    let killed = Stopped::new(&lab, &["switch", "shop"]);
    // It makes no generation.
    let other = Stopped::new(&lab, &["freeze", "mail", "--max", "10ms"]);
    killed.kill();
    assert_eq!(lab.run(&["switch", "shop"]).0, 0);
    other.kill();
    assert_eq!(told(&lab, "shop")[1..], [(Action::Switch, 2, 3)]);
    lab.instance().check_state();
    assert_eq!(told(&lab, "shop")[1..], [(Action::Recovered, 1, 2), (Action::Switch, 2, 3)]);

    Stopped::new(&lab, &["switch", "shop"]).kill();
    lab.instance().check_state();
    assert_eq!(told(&lab, "shop")[3..], [(Action::Recovered, 3, 4)], "of one that was killed while it was alone");
}

#[test]
fn a_command_that_goes_on_after_later_ones_records_its_own_change() {
    for is_alone in [true, false] {
        let lab = running();
        let late = Stopped::new(&lab, &["switch", "shop", "--reason", "late"]);
        assert_eq!(lab.run(&["split", "shop", "--green", "30"]).0, 0);
        assert_eq!(lab.run(&["status"]).0, 0);
        assert_eq!(told(&lab, "shop")[1..], [(Action::Split, 2, 3)]);
        // Whether or not it is alone then.
        let other = (!is_alone).then(|| Stopped::new(&lab, &["switch", "mail"]));
        late.go_on();
        assert_eq!(told(&lab, "shop")[1..], [(Action::Switch, 1, 2), (Action::Split, 2, 3)]);
        assert_eq!(records(&lab, "shop")[1].reason.as_deref(), Some("late"));
        let file = LastLive::load(&lab.paths.state_dir).unwrap();
        assert_eq!(file.deployments["shop"].moment.generation, 3, "what is live after a reboot");
        assert!(!is_alone || file.unrecorded.is_empty(), "{file:?}");
        other.into_iter().for_each(Stopped::kill);
        lab.run(&["status"]);
        assert_each_once(&lab, "shop", 3);
        assert_eq!(told(&lab, "shop").len(), 3);
    }
}

#[test]
fn each_generation_has_one_record_whoever_is_killed_and_in_whatever_order_the_others_go_on() {
    let lab = running();
    let mut last = 1;
    for round in 0..16 {
        let before = last_live(&lab);
        let first: [&[&str]; 3] =
            [&["switch", "shop"], &["split", "shop", "--green", "30"], &["switch", "shop", "green"]];
        let mut stopped: Vec<_> = first.iter().map(|words| Stopped::new(&lab, words)).collect();
        last += 3;
        // One that is recorded before them, and of which part may be lost: it is killed before it has written the state file.
        if round % 5 != 4 {
            assert_eq!(lab.run(&["split", "shop", "--green", "70"]).0, 0);
            last += 1;
        }
        assert_eq!(live(&lab), ("green", last));
        if round % 3 == 1 {
            fs::write(lab.paths.state_dir.join(LastLive::FILE), before).unwrap();
        }
        if round >= 8 {
            stopped.reverse();
        }
        for (number, stopped) in stopped.into_iter().enumerate() {
            if round >> number & 1 == 0 { stopped.kill() } else { stopped.go_on() }
        }
        if round % 2 == 0 {
            assert_eq!(lab.run(&["status"]).0, 0);
        } else {
            assert_eq!(lab.run(&["switch", "shop", "blue"]).0, 0);
            last += 1;
        }
        assert_each_once(&lab, "shop", last);
        assert_eq!(told(&lab, "mail").len(), 1);
    }
}

#[test]
fn a_deployment_that_is_removed_has_records_of_all_its_generations() {
    for is_alone in [true, false] {
        let lab = running();
        let killed = Stopped::new(&lab, &["switch", "mail"]);
        let other = (!is_alone).then(|| Stopped::new(&lab, &["switch", "shop"]));
        killed.kill();
        let mut next = two();
        next.deployments.remove(0);
        lab.instance().apply(&next).unwrap();
        other.into_iter().for_each(Stopped::go_on);
        lab.run(&["status"]);
        let mut told = told(&lab, "mail").split_off(1);
        told.sort_by_key(|(action, ..)| *action == Action::Apply);
        assert_eq!(told, [(Action::Recovered, 1, 2), (Action::Apply, 2, 0)], "alone: {is_alone}");
        assert!(!last_live(&lab).contains("unrecorded"), "{}", last_live(&lab));
    }
}

#[test]
fn a_deployment_that_an_apply_is_adding_is_not_taken_for_what_a_killed_one_has_left() {
    let lab = running();
    let mut next = two();
    next.deployments[1].on_switch = OnSwitch::Cut;
    let mail = next.deployments.remove(0);
    lab.instance().apply(&next).unwrap();
    next.deployments.push(mail);
    let file = lab.file("next.toml", &next.to_toml());
    let words = array::<LiveWord>(&lab, "live");
    let mut adds = lab.bgctl().args(["apply", "-c", file.to_str().unwrap()]).stdout(Stdio::null()).spawn().unwrap();
    while words.get(&0, 0).unwrap().generation() == 0 && adds.try_wait().unwrap().is_none() {}
    let process = Pid::from_child(&adds);
    kill_process(process, Signal::STOP).unwrap();
    await_state(process, 'T');
    assert!(recorder(&lab, &adds).is_none(), "it has not come so far");
    lab.run(&["status"]);
    assert_eq!(lab.run(&["switch", "shop"]).0, 0);
    kill_process(process, Signal::CONT).unwrap();
    assert!(adds.wait().unwrap().success());
    lab.run(&["status"]);
    let count = told(&lab, "mail").iter().filter(|(_, from, to)| (*from, *to) == (0, 1)).count();
    assert_eq!(count, 2, "each time it was added: {:?}", told(&lab, "mail"));
}

#[test]
fn a_switch_that_could_not_tell_others_of_itself_is_recorded_once() {
    let lab = running();
    // So it cannot get the lock by which others know that it is about to record.
    let lock = locked(&lab.paths.pin_root.join("programs"));
    let late = Stopped::new(&lab, &["switch", "shop"]);
    drop(lock);
    lab.run(&["status"]);
    assert_eq!(told(&lab, "shop")[1..], [(Action::Recovered, 1, 2)]);
    late.go_on();
    assert_eq!(told(&lab, "shop")[1..], [(Action::Recovered, 1, 2)]);
    assert_eq!(lab.run(&["switch", "shop"]).0, 0);
    assert_each_once(&lab, "shop", 3);
}

#[test]
fn who_verifies_the_history_waits_for_a_record_that_is_being_written() {
    let lab = running();
    let head = lab.paths.state_dir.join("history.head");
    let before = fs::read_to_string(&head).unwrap();
    assert_eq!(lab.run(&["switch", "shop"]).0, 0);
    let after = fs::read_to_string(&head).unwrap();
    // The record is there, and not noted yet.
    let lock = locked(&lab.paths.state_dir.join("history.lock"));
    fs::write(&head, before).unwrap();
    let mut verifies = lab.bgctl().args(["history", "--verify"]).stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    fs::write(&head, after).unwrap();
    drop(lock);
    assert!(verifies.wait().unwrap().success());
}

/// Numbers that differ from seed to seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Commands of one operator, every third of which is killed, most of these as soon as they have changed the live word.
fn operate(lab: &Lab, seed: u64, until: Instant) -> u32 {
    let mut numbers = Numbers(seed);
    let mut killed = 0;
    let words = array::<LiveWord>(lab, "live");
    while Instant::now() < until {
        let index = numbers.below(3).min(1) as u32;
        let name = ["mail", "shop"][index as usize];
        let share = format!("{}", 10 * numbers.below(11));
        let command: &[&str] = match numbers.below(10) {
            0..=2 => &["switch", name],
            3 => &["switch", name, "--confirm-within", "50ms"],
            4 => &["split", name, "--green", &share],
            5 => &["rollback", name, "blue"],
            6 => &["confirm", name],
            7 => &["freeze", name, "--max", "20ms"],
            8 => &["history", "--verify"],
            _ => &["status"],
        };
        let generation = || words.get(&index, 0).unwrap().generation();
        let (before, pause) = (generation(), Duration::from_millis(numbers.below(60)));
        match numbers.below(6) {
            0 => lab.kill_after(pause, command),
            1 => lab.kill_when(|| generation() != before, command),
            _ => {
                let (code, text, _) = lab.run(command);
                assert!(code == 0 || command != ["history", "--verify"], "{text}");
                continue;
            }
        }
        killed += 1;
    }
    killed
}

#[test]
fn each_generation_has_one_record_whatever_several_operators_do_at_once() {
    const TIME: Duration = Duration::from_secs(8);
    let lab = running();
    let until = Instant::now() + TIME;
    let killed: u32 = thread::scope(|scope| {
        let operators: Vec<_> = (1..=3)
            .map(|seed| {
                scope.spawn({
                    let lab = &lab;
                    move || operate(lab, seed, until)
                })
            })
            .collect();
        operators.into_iter().map(|operator| operator.join().unwrap()).sum()
    });
    // The processes that record outlive their commands, and what waits for a confirmation is taken back.
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    while is_any_at_work(&lab) {
        assert!(start.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(lab.run(&["status"]).0, 0);
    let status = lab.instance().status(None).unwrap();
    for deployment in &status.deployments {
        println!("{}: {} generations, {killed} commands killed", deployment.name, deployment.generation);
        assert_each_once(&lab, &deployment.name, deployment.generation);
    }
    assert!(status.deployments.len() == 2 && killed > 0);
}

/// Whether a process works on the instance.
fn is_any_at_work(lab: &Lab) -> bool {
    let pins = lab.paths.pin_root.to_str().unwrap();
    let lines = fs::read_dir("/proc").unwrap().map(|entry| fs::read(entry.unwrap().path().join("cmdline")));
    lines.flatten().any(|line| String::from_utf8_lossy(&line).contains(pins))
}
