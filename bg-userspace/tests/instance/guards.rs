//! What guards a switch, at moments at which a packet acts too, and after commands that were killed.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::maps::MapData;
use bg_common::{LiveFlags, LiveWord, Timing, Trips};
use bg_userspace::{
    Colour, Condition, ConfirmRequest, Error, FreezeRequest, FreezeWindow, SwitchRequest, drill::DrillRequest,
};
use memmap2::{MmapOptions, MmapRaw};

use crate::{
    flow_map::array,
    lab::Lab,
    waiting::{SHOP, draining, trips, word},
};

const HOUR: Duration = Duration::from_secs(3600);
const SILENCE: [&str; 2] = ["--revert-if", "silence 1h"];
/// A pause that a packet sets.
const OWN: u64 = 7;

/// The memory of `trips`.
fn memory(lab: &Lab) -> MmapRaw {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let map = MapData::from_pin(lab.paths.map("trips")).unwrap();
    MmapOptions::new().len(2 * size_of::<[Trips; 2]>()).map_raw(map.fd().as_fd().as_raw_fd()).unwrap()
}

/// Until when nobody judges a generation.
fn pause(memory: &MmapRaw, word: LiveWord) -> &AtomicU64 {
    let slots = 2 * SHOP as usize + (word.generation() as usize & 1);
    let at = slots * size_of::<Trips>() + offset_of!(Trips, paused_until);
    // SAFETY: an aligned word of the mapping, which all access as an atomic.
    unsafe { AtomicU64::from_ptr(memory.as_mut_ptr().add(at).cast()) }
}

fn watched() -> SwitchRequest {
    SwitchRequest { to: Some(Colour::Blue), revert_if: vec!["silence 1h".parse().unwrap()], ..SwitchRequest::default() }
}

/// A time that does not fit a clock of the data path would be taken for another one.
#[test]
fn times_that_are_too_long_are_refused_before_anything_is_changed() {
    let lab = draining();
    let before = word(&lab, SHOP);
    let instance = lab.instance();
    for time in [SwitchRequest::LONGEST + Duration::from_secs(1), 1000 * 366 * 24 * HOUR, Duration::MAX] {
        let silence = || SwitchRequest { revert_if: vec![Condition::Silence(time)], ..watched() };
        let window = FreezeWindow { max: time, before: None, after: None };
        let drill = DrillRequest { back_after: time, ..DrillRequest::default() };
        let refused = [
            instance.switch("shop", &silence()).map(drop),
            instance.dry_run("shop", &silence()).map(drop),
            instance.switch("shop", &SwitchRequest { confirm_within: Some(time), ..silence() }).map(drop),
            instance.switch("shop", &SwitchRequest { ramp: Some(time), ..watched() }).map(drop),
            instance.freeze("shop", &FreezeRequest { max: Some(time), ..FreezeRequest::default() }).map(drop),
            instance.switch_in_window("shop", &SwitchRequest::default(), &window).map(drop),
            bg_userspace::drill::drill(&instance, "shop", &drill, &[], &mut |_| ()).map(drop),
        ];
        for (nth, refused) in refused.into_iter().enumerate() {
            let error = refused.expect_err(&format!("{nth}"));
            assert!(matches!(error, Error::Unrepresentable { .. }), "{nth}: {error}");
        }
    }
    assert_eq!(word(&lab, SHOP), before);
    assert_eq!(instance.status(Some("shop")).unwrap().deployments[0].frozen_until, None);
    let (code, _, told) = lab.run(&["switch", "shop", "blue", "--revert-if", "silence 1000years"]);
    assert!(code != 0 && told.contains("--revert-if silence takes 10ms to"), "{told}");
}

fn timing(lab: &Lab) -> Timing {
    array::<[Timing; 2]>(lab, "timing").get(&SHOP, 0).unwrap()[word(lab, SHOP).terms_slot()]
}

fn set_timing(lab: &Lab, change: impl FnOnce(&mut Timing)) {
    let mut map = array::<[Timing; 2]>(lab, "timing");
    let mut slots = map.get(&SHOP, 0).unwrap();
    change(&mut slots[word(lab, SHOP).terms_slot()]);
    map.set(SHOP, slots, 0).unwrap();
}

/// Answers to flows of an earlier switch may still come when its row is used again.
#[test]
fn nothing_counts_for_conditions_that_are_over() {
    let lab = draining();
    let others = array::<[Trips; 2]>(&lab, "trips").get(&0, 0).unwrap();
    let generations = || {
        let mut generations = trips(&lab).map(|trips| trips.generation);
        generations.sort();
        generations
    };
    let watch = |to| {
        assert_eq!(lab.run(&[&["switch", "shop", to], &SILENCE[..]].concat()).0, 0);
        word(&lab, SHOP).generation()
    };
    let (blue, green) = (watch("blue"), watch("green"));
    assert_eq!(generations(), [blue, green], "the command that replaces a switch does not disarm it before");
    assert_eq!(lab.run(&["confirm", "shop"]).0, 0);
    let blue = watch("blue");
    assert_eq!(generations(), [0, blue]);
    assert_eq!(array::<[Trips; 2]>(&lab, "trips").get(&0, 0).unwrap(), others);
}

#[test]
fn a_freeze_ends_the_pause_that_it_has_made_and_no_other() {
    let lab = draining();
    let instance = lab.instance();
    instance.switch("shop", &SwitchRequest { ramp: Some(HOUR), ..watched() }).unwrap();
    let memory = memory(&lab);
    let pause = pause(&memory, word(&lab, SHOP));
    let freeze = || instance.freeze("shop", &FreezeRequest { max: Some(HOUR), ..FreezeRequest::default() }).unwrap();
    assert_eq!(pause.load(Ordering::SeqCst), 0, "a ramp is judged from its beginning on");
    freeze();
    assert_eq!(pause.load(Ordering::SeqCst), 0);
    let live = array::<LiveWord>(&lab, "live");
    for _ in 0..20 {
        instance.thaw("shop", None).unwrap();
        pause.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(freeze);
            while !live.get(&SHOP, 0).unwrap().flags().has(LiveFlags::HOLD) {}
            // Before the end of the fence, if possible.
            pause.store(OWN, Ordering::SeqCst);
        });
        assert_eq!(pause.load(Ordering::SeqCst), OWN);
    }
}

#[test]
fn a_command_puts_the_judgement_off_again_if_a_packet_sets_a_shorter_pause() {
    let lab = draining();
    let instance = lab.instance();
    let memory = memory(&lab);
    // The packet may be too late.
    let is_put_off_again = (0..100).any(|_| {
        let at = Some(jiff::Timestamp::now() + HOUR);
        instance.switch("shop", &SwitchRequest { at, ..watched() }).unwrap();
        let pause = pause(&memory, word(&lab, SHOP));
        let to_green = SwitchRequest { to: Some(Colour::Green), ..SwitchRequest::default() };
        std::thread::scope(|scope| {
            let cancels = scope.spawn(|| instance.switch("shop", &to_green).unwrap());
            let first = loop {
                let until = pause.load(Ordering::SeqCst);
                if until != 0 {
                    break until;
                }
            };
            pause.store(OWN, Ordering::SeqCst);
            assert!(cancels.join().unwrap().changed);
            pause.load(Ordering::SeqCst) > first
        })
    });
    assert!(is_put_off_again);
}

#[test]
fn a_confirmation_that_was_killed_is_completed_by_the_next() {
    let lab = draining();
    let instance = lab.instance();
    let other = word(&lab, 0);
    let confirm = || instance.confirm("shop", &ConfirmRequest::default());
    let to_green = SwitchRequest { to: Some(Colour::Green), ..SwitchRequest::default() };
    let is_completed = |what: &str, is_pending: bool| {
        let before = word(&lab, SHOP);
        confirm().unwrap_or_else(|error| panic!("{what}: {error}"));
        let again = confirm().unwrap_or_else(|error| panic!("{what}, once more: {error}"));
        assert!(!again.changed, "{what}");
        let flags = before.flags();
        let flags = if is_pending { flags } else { flags.without(LiveFlags::TIMED) };
        assert_eq!(word(&lab, SHOP), before.with_flags(flags), "{what}");
        let status = &instance.status(Some("shop")).unwrap().deployments[0];
        assert!(status.revert_if.is_empty() && status.confirm_deadline.is_none(), "{what}");
        instance.switch("shop", &to_green).unwrap();
    };
    let to_blue = SwitchRequest { to: Some(Colour::Blue), ..SwitchRequest::default() };
    let ramp = SwitchRequest { ramp: Some(HOUR), ..to_blue.clone() };
    let schedule = SwitchRequest { at: Some(jiff::Timestamp::now() + HOUR), ..to_blue.clone() };
    for (guard, confirm_within) in [(watched(), None), (to_blue.clone(), Some(HOUR)), (watched(), Some(HOUR))] {
        for later in [&ramp, &schedule] {
            let request = SwitchRequest { confirm_within, revert_if: guard.revert_if.clone(), ..later.clone() };
            let arm = || instance.switch("shop", &request).unwrap();
            let told = |what| format!("{what}: {request:?}");
            arm();
            let is_asked = || (timing(&lab).window, timing(&lab).conditions) == (0, 0);
            lab.kill_when(is_asked, &["confirm", "shop"]);
            is_completed(&told("killed"), true);

            arm();
            set_timing(&lab, |timing| timing.revert_at = u64::MAX);
            is_completed(&told("before it had ended anything"), true);

            // By a packet that had read the timing before.
            arm();
            set_timing(&lab, |timing| {
                let revert_at = confirm_within.map_or(0, |_| timing.made_at + 2 * HOUR.as_nanos() as u64);
                *timing = Timing { window: 0, conditions: 0, activate_at: 0, revert_at, ..*timing };
            });
            is_completed(&told("while it took effect"), false);
        }
    }
    for request in [&to_blue, &ramp, &schedule] {
        instance.switch("shop", request).unwrap();
        assert!(confirm().is_err(), "{request:?} needs none");
        instance.switch("shop", &to_green).unwrap();
    }
    assert_eq!(word(&lab, 0), other);
}
