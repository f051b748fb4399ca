//! Switches that meet each other, an apply, or what a killed one has left.

use std::{fs::File, path::Path, time::Duration};

use aya::maps::{Array, Map, MapData};
use bg_common::LiveWord;
use bg_userspace::{
    AttachMode, Colour, Error, Instance, Paths, Refusal, SwitchRequest,
    history::{Action, History},
};
use rustix::fs::FlockOperation;

use crate::lab::{Lab, config};

fn running() -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&config("shop", &[(1, 1)], &[(1, 1)])).unwrap();
    lab
}

fn locked(path: &Path) -> File {
    let file = File::open(path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

#[test]
fn what_is_live_already_is_waited_for_as_well() {
    let lab = running();
    let request = SwitchRequest { to: Some(Colour::Blue), ..SwitchRequest::default() };
    let switched = lab.instance().switch("shop", &request).unwrap();
    assert!(!switched.changed && switched.fence > Duration::ZERO, "a killed one may not have waited");
}

#[test]
fn a_deployment_that_is_removed_while_a_switch_waits_is_not_switched() {
    let lab = running();
    let map = MapData::from_pin(lab.paths.map("live")).and_then(Map::from_map_data).unwrap();
    let mut live: Array<_, LiveWord> = map.try_into().unwrap();
    let lock = locked(&lab.paths.maps());
    let (instance, request) = (lab.instance(), SwitchRequest::default());
    std::thread::scope(|scope| {
        let switch = scope.spawn(|| instance.switch("shop", &request));
        std::thread::sleep(Duration::from_millis(300));
        live.set(0, LiveWord::default(), 0).unwrap();
        drop(lock);
        let error = switch.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Refused(Refusal::NotRunning { .. })), "{error}");
    });
    assert_eq!(live.get(&0, 0).unwrap(), LiveWord::default());
}

#[test]
fn another_state_directory_is_no_way_around_the_locks() {
    let lab = running();
    let paths = Paths { state_dir: lab.paths.state_dir.with_file_name("other"), ..lab.paths.clone() };
    let lock = locked(&lab.paths.pin_root);
    let error = Instance::open(&paths).unwrap().apply(&config("shop", &[(2, 1)], &[(1, 1)])).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(lock);
    Instance::open(&paths).unwrap().apply(&config("shop", &[(2, 1)], &[(1, 1)])).unwrap();
}

#[test]
fn a_switch_in_the_act_is_not_taken_for_one_that_was_killed() {
    const EACH: u32 = 25;
    let lab = running();
    let force = SwitchRequest { force: true, ..SwitchRequest::default() };
    let switch = || (0..EACH).for_each(|_| _ = Instance::open(&lab.paths).unwrap().switch("shop", &force).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(switch);
        switch();
    });
    let journal = History::new(&lab.paths.state_dir).read(Some("shop")).unwrap();
    let count = |action| journal.records.iter().filter(|record| record.action == action).count();
    assert_eq!((count(Action::Switch), count(Action::Recovered)), (2 * EACH as usize, 0));
}
