//! The log of held packets, whole and damaged.

use bg_common::MIN_HELD_FRAME;
use proptest::prelude::*;

use super::*;

fn log() -> HeldLog {
    HeldLog { holds: Mapped::anonymous(4), log: Mapped::anonymous(1) }
}

/// A frame that says this.
fn frame(text: &str) -> Vec<u8> {
    format!("{text:>MIN_HELD_FRAME$}").into_bytes()
}

/// What a program does.
fn hold(log: &HeldLog, deployment: u16, frame: &[u8]) -> bool {
    if log.claims(deployment).fetch_add(1, Ordering::SeqCst) & HOLD_OPEN == 0 {
        return false;
    }
    let at = log.log.all()[0].fetch_add(held_record_bytes(frame.len()) as u64, Ordering::SeqCst) as usize;
    if HELD_LOG_START + at > LAST_HELD_RECORD {
        log.holds.words(deployment.into())[1].fetch_add(1, Ordering::SeqCst);
        return true;
    }
    let record = log.record(at);
    record[1].store(now(ClockId::Boot), Ordering::Relaxed);
    record[2].store(7, Ordering::Relaxed);
    for (word, bytes) in record[3..].iter().zip(frame.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
    }
    record[0].store(HeldState::waiting(deployment, frame.len() as u32).0, Ordering::SeqCst);
    true
}

/// Plays a queue back to its end.
fn play(log: &HeldLog, deployment: u16) -> Vec<Vec<u8>> {
    let (mut queue, mut played) = (log.queue(deployment), Vec::new());
    loop {
        match queue.next() {
            Next::Packet(held) => {
                log.done(&held);
                played.push(held.frame);
            }
            Next::Closed => return played,
            Next::Soon => panic!("a packet that never comes"),
        }
    }
}

#[test]
fn packets_come_back_in_order_to_their_own_deployment() {
    let log = log();
    assert!(!hold(&log, 1, &frame("before the freeze")));
    log.begin(1, false);
    log.begin(2, false);
    for (deployment, frame) in [(1, "first of 1"), (2, "first of 2"), (1, "the second of 1"), (2, "2")] {
        assert!(hold(&log, deployment, &self::frame(frame)));
    }
    assert_eq!((log.len(0), log.len(1), log.len(2)), (0, 2, 2));
    assert_eq!(play(&log, 1), [frame("first of 1"), frame("the second of 1")]);
    assert!(!log.is_open(1) && log.is_open(2));
    assert!(!hold(&log, 1, &frame("after the thaw")) && hold(&log, 2, &frame("2 again")));
    assert_eq!(play(&log, 2).len(), 3);
}

#[test]
fn a_queue_is_closed_only_when_nobody_waits_in_it() {
    let log = log();
    log.begin(1, false);
    let mut queue = log.queue(1);
    hold(&log, 1, &frame("first"));
    assert!(matches!(queue.next(), Next::Packet(_)));
    // It has asked for a place, and is not there yet.
    log.claims(1).fetch_add(1, Ordering::SeqCst);
    assert_eq!(queue.next(), Next::Soon);
    let at = log.log.all()[0].fetch_add(held_record_bytes(15) as u64, Ordering::SeqCst) as usize;
    assert_eq!(queue.next(), Next::Soon, "its record is being written");
    log.record(at)[0].store(HeldState::waiting(1, 15).0, Ordering::SeqCst);
    assert!(matches!(queue.next(), Next::Packet(_)));
    assert_eq!(queue.next(), Next::Closed);
}

/// Plays a queue back whose log may be damaged.
fn play_damaged(log: &HeldLog, deployment: u16) -> Vec<Vec<u8>> {
    let (mut queue, mut played, mut waits) = (log.queue(deployment), Vec::new(), 0);
    loop {
        match queue.next() {
            Next::Packet(held) => {
                log.done(&held);
                played.push(held.frame);
                waits = 0;
            }
            Next::Closed => return played,
            Next::Soon if waits < 2 => waits += 1,
            Next::Soon => queue.search(),
        }
    }
}

/// The record of a packet: the words of the log that are its, its deployment, and its frame.
type Record = (std::ops::Range<usize>, u16, Vec<u8>);

fn fill(log: &HeldLog, frames: &[(u16, usize)]) -> Vec<Record> {
    let record = |(nth, &(deployment, len)): (usize, &(u16, usize))| {
        let first = (HELD_LOG_START + log.used()) / 8;
        let frame = vec![10 + nth as u8; len];
        assert!(hold(log, deployment, &frame));
        (first..first + held_record_bytes(len) / 8, deployment, frame)
    };
    frames.iter().enumerate().map(record).collect()
}

/// Frames of two deployments.
fn frames() -> impl Strategy<Value = Vec<(u16, usize)>> {
    prop::collection::vec((1_u16..3, MIN_HELD_FRAME..200), 1..40)
}

/// What a word becomes, of what it was.
fn damage() -> impl Strategy<Value = (prop::sample::Index, u64, u64)> {
    // With fewer bits that stay, it is another value, with many, a similar one.
    (any::<prop::sample::Index>(), prop_oneof![Just(0), Just(u64::MAX << 8), any::<u64>()], any::<u64>())
}

fn apply(words: &[AtomicU64], (place, stays, value): &(prop::sample::Index, u64, u64)) -> usize {
    let at = place.index(words.len());
    let was = words[at].load(Ordering::Relaxed);
    words[at].store(was & stays | value & !stays, Ordering::Relaxed);
    at
}

proptest! {
    #[test]
    fn a_damaged_log_loses_what_is_damaged_alone(
        frames in frames(), damages in prop::collection::vec(damage(), 1..6),
    ) {
        let log = log();
        log.begin(1, false);
        log.begin(2, false);
        let records = fill(&log, &frames);
        let end = records.last().map_or(0, |(words, ..)| words.end);
        let damaged: Vec<_> = damages.iter().map(|damage| apply(&log.log.all()[..end], damage)).collect();
        let played = [play_damaged(&log, 1), play_damaged(&log, 2)];
        for (words, deployment, frame) in records {
            if !damaged.iter().any(|at| words.contains(at)) {
                let times = played[usize::from(deployment) - 1].iter().filter(|played| **played == frame).count();
                prop_assert_eq!(times, 1);
            }
        }
        log.begin(1, false);
        prop_assert!(log.log.all().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn whatever_was_damaged_the_next_freeze_works(
        frames in frames(), damages in prop::collection::vec(damage(), 1..6),
    ) {
        let log = log();
        log.begin(1, false);
        log.begin(2, false);
        fill(&log, &frames);
        damages.iter().for_each(|damage| _ = apply(log.holds.words(1), damage));
        play_damaged(&log, 1);
        prop_assert!(!log.is_open(1));
        log.begin(1, false);
        prop_assert!(hold(&log, 1, &frame("of the next freeze")));
        prop_assert_eq!(play(&log, 1), [frame("of the next freeze")]);
        let of_other = frames.iter().filter(|(deployment, _)| *deployment == 2).count();
        prop_assert_eq!(play(&log, 2).len(), of_other);
    }
}

#[test]
fn what_was_played_back_is_not_played_back_again() {
    let log = log();
    log.begin(1, false);
    for frame in ["1", "2", "3"] {
        hold(&log, 1, &self::frame(frame));
    }
    let mut queue = log.queue(1);
    let Next::Packet(first) = queue.next() else { panic!("no packet") };
    log.done(&first);
    assert_eq!(play(&log, 1), [frame("2"), frame("3")]);
}

#[test]
fn a_full_log_loses_packets_and_is_empty_at_the_next_freeze() {
    let log = log();
    for freeze in 0..2 {
        log.begin(1, false);
        let frame = [0; 1500];
        let room = (LAST_HELD_RECORD - HELD_LOG_START) / held_record_bytes(1500) + 1;
        for _ in 0..room + 10 {
            assert!(hold(&log, 1, &frame));
        }
        assert_eq!((log.len(1), log.lost(1)), (room as u64 + 10, 10), "{freeze}");
        assert_eq!(play(&log, 1).len(), room, "{freeze}");
    }
    log.begin(1, false);
    assert!(log.log.all().iter().all(|word| word.load(Ordering::Relaxed) == 0));
}

#[test]
fn a_queue_begins_behind_what_an_earlier_deployment_of_its_number_has_left() {
    let log = log();
    log.begin(1, false);
    log.begin(2, false);
    hold(&log, 1, &frame("of a deployment that was removed"));
    log.holds.write(1, &Hold::default());
    log.begin(1, false);
    hold(&log, 1, &frame("new"));
    assert_eq!(play(&log, 1), [frame("new")]);
}
