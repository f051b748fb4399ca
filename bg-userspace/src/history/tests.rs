//! Tests of the chain of records: whatever is done to a journal is found.

use std::{fs, path::PathBuf};

use bg_common::Colour;
use proptest::prelude::*;

use super::{Action, Fault, Hash, History, Moment, Record, Verified};

/// A journal in a directory of its own. The instance pins its head in the same directory.
struct Kept {
    dir: tempfile::TempDir,
}

impl Kept {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With `earlier` records of a version without a chain, then `records` with one.
    fn with(earlier: u32, records: u32) -> Self {
        let kept = Self::new();
        (1..=earlier).for_each(|number| kept.write_without_hash(number));
        (1..=records).for_each(|number| kept.append(earlier + number));
        kept
    }

    fn history(&self) -> History {
        History::new(&self.dir.path().join("state")).with_pin(self.dir.path().join("history"))
    }

    fn path(&self) -> PathBuf {
        fs::create_dir_all(self.dir.path().join("state")).unwrap();
        self.dir.path().join("state").join(History::FILE)
    }

    fn append(&self, number: u32) {
        self.history().append(&record(number)).unwrap();
    }

    fn write_without_hash(&self, number: u32) {
        let line = serde_json::to_string(&record(number)).unwrap();
        fs::write(self.path(), self.text() + &line + "\n").unwrap();
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Changes the lines of the file.
    fn tamper(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines: Vec<_> = self.text().lines().map(str::to_owned).collect();
        change(&mut lines);
        fs::write(self.path(), lines.into_iter().map(|line| line + "\n").collect::<String>()).unwrap();
    }

    fn verify(&self) -> Verified {
        self.history().verify_within(super::PATIENCE).unwrap()
    }

    fn faults(&self) -> Vec<Fault> {
        self.verify().faults
    }
}

fn record(number: u32) -> Record {
    Record {
        deployment: "shop".to_owned(),
        action: Action::Switch,
        to: Some(Moment { generation: number, live: Colour::Green }),
        reason: Some("release \"7\"".to_owned()),
        ..Record::of_this_process()
    }
}

#[test]
fn a_journal_as_it_was_written_is_whole() {
    let verified = Kept::new().verify();
    assert!(verified.is_whole && verified.head.is_none());
    let kept = Kept::with(0, 5);
    let verified = kept.verify();
    assert_eq!((verified.is_whole, verified.records, verified.without_hash), (true, 5, 0));
    let last = kept.text().lines().last().unwrap().to_owned();
    let head = verified.head.unwrap();
    assert_eq!((head.number, head.hash), (5, Hash::of(last.as_bytes())));
    assert_eq!(verified.noted_in.len(), 2);
}

/// As `sed -n 2p history.jsonl | tr -d '\n' | sha256sum` prints it.
#[test]
fn the_hash_is_that_of_the_line() {
    let kept = Kept::with(0, 3);
    let text = kept.text();
    let lines: Vec<_> = text.lines().collect();
    let previous = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["previous"].clone();
    assert_eq!(previous(lines[0]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "of nothing");
    assert_eq!(previous(lines[2]), Hash::of(lines[1].as_bytes()).to_string());
}

#[test]
fn records_of_earlier_versions_are_accepted_at_the_beginning_and_protected_from_then_on() {
    let kept = Kept::with(3, 2);
    let verified = kept.verify();
    assert_eq!((verified.is_whole, verified.records, verified.without_hash), (true, 2, 3));
    kept.tamper(|lines| lines[1] = lines[1].replace("shop", "mail"));
    assert_eq!(kept.faults(), [Fault::Beginning { line: 4 }]);

    let kept = Kept::with(0, 2);
    kept.write_without_hash(3);
    assert_eq!(kept.faults(), [Fault::WithoutHash { line: 3 }]);
    kept.append(4);
    assert_eq!(kept.faults(), [Fault::WithoutHash { line: 3 }], "the next record does not make it good");
}

#[test]
fn a_changed_record_is_found() {
    for line in 0..4 {
        let kept = Kept::with(0, 5);
        kept.tamper(|lines| lines[line] = lines[line].replace("release", "revenge"));
        assert_eq!(kept.faults(), [Fault::Changed { line: line + 1 }]);
    }
    let kept = Kept::with(0, 5);
    kept.tamper(|lines| lines[4] = lines[4].replace("release", "revenge"));
    assert!(matches!(kept.faults()[..], [Fault::End { line: 5, number: 5, .. }, Fault::End { .. }]));
    kept.append(6);
    assert_eq!(kept.faults(), [Fault::Changed { line: 5 }], "the next record does not make it good");
}

#[test]
fn a_removed_record_is_found() {
    for line in 0..4 {
        let kept = Kept::with(0, 5);
        kept.tamper(|lines| _ = lines.remove(line));
        let number = line as u64 + 1;
        assert_eq!(kept.faults(), [Fault::Missing { line: line + 1, first: number, last: number }]);
    }
    let kept = Kept::with(0, 5);
    kept.tamper(|lines| lines.truncate(3));
    assert!(matches!(kept.faults()[..], [Fault::End { line: 3, number: 5, .. }, Fault::End { .. }]));
    kept.append(6);
    assert_eq!(kept.faults(), [Fault::Missing { line: 4, first: 4, last: 5 }]);
}

#[test]
fn records_that_change_places_are_found() {
    for line in 0..3 {
        let kept = Kept::with(0, 5);
        kept.tamper(|lines| lines.swap(line, line + 1));
        let faults = kept.faults();
        assert!(faults.iter().any(|fault| fault.line() == line + 1 || fault.line() == line + 2), "{faults:?}");
        assert!(faults.iter().any(|fault| matches!(fault, Fault::Moved { .. })), "{faults:?}");
    }
}

#[test]
fn an_inserted_record_is_found() {
    for line in 0..=5 {
        let kept = Kept::with(0, 5);
        kept.tamper(|lines| lines.insert(line, lines[2].clone()));
        let faults = kept.faults();
        assert!(faults.iter().any(|fault| fault.line().abs_diff(line + 1) <= 1), "{line}: {faults:?}");
    }
    // With a hash as it should be, after the last record.
    let kept = Kept::with(0, 5);
    let note = kept.dir.path().join("state/history.head");
    let noted = fs::read(&note).unwrap();
    kept.append(6);
    fs::write(&note, noted).unwrap();
    assert_eq!(kept.faults(), [Fault::Added { line: 6 }]);
}

#[test]
fn another_directory_in_its_place_is_found_by_the_pin() {
    let kept = Kept::with(0, 3);
    let backup = ["history.jsonl", "history.head"].map(|name| kept.dir.path().join("state").join(name));
    let contents = backup.each_ref().map(|file| fs::read(file).unwrap());
    kept.append(4);
    std::iter::zip(&backup, contents).for_each(|(file, content)| fs::write(file, content).unwrap());
    let pin = kept.dir.path().join("history");
    assert_eq!(kept.faults(), [Fault::End { line: 3, number: 4, noted_in: pin.clone() }]);
    kept.append(5);
    assert_eq!(kept.faults(), [Fault::Missing { line: 4, first: 4, last: 4 }]);
    // An instance that keeps its state elsewhere now knows nothing about this journal.
    let elsewhere = tempfile::tempdir().unwrap();
    History::new(elsewhere.path()).with_pin(pin).append(&record(1)).unwrap();
    assert_eq!(kept.verify().noted_in, [kept.dir.path().join("state/history.head")]);
}

#[test]
fn a_line_that_a_crash_has_left_breaks_no_chain() {
    let line = serde_json::to_string(&record(9)).unwrap();
    for part in [1, 100, line.len() - 1] {
        for (earlier, records) in [(0, 0), (2, 0), (0, 2), (1, 1)] {
            let kept = Kept::with(earlier, records);
            fs::write(kept.path(), kept.text() + &line[..part]).unwrap();
            (4..6).for_each(|number| kept.append(number));
            let verified = kept.verify();
            assert!(verified.is_whole, "{part} octets after {earlier} and {records}: {verified:?}");
            assert_eq!(verified.damaged_lines, [(earlier + records) as usize + 1]);
        }
    }
}

/// What may happen to a journal between two records.
#[derive(Clone, Debug)]
enum Event {
    Append { reason: String },
    Crash { part: prop::sample::Index },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let append = ".{0,20}".prop_map(|reason| Event::Append { reason });
    let crash = any::<prop::sample::Index>().prop_map(|part| Event::Crash { part });
    prop::collection::vec(prop_oneof![5 => append, 1 => crash], 1..12)
}

/// What somebody does to a journal.
#[derive(Clone, Debug)]
enum Tamper {
    Change { line: prop::sample::Index, octet: prop::sample::Index, by: u8 },
    Remove { line: prop::sample::Index },
    Swap { line: prop::sample::Index, other: prop::sample::Index },
    Insert { line: prop::sample::Index, copy_of: prop::sample::Index, other_number: bool },
    CutOff { line: prop::sample::Index },
}

fn tampers() -> impl Strategy<Value = Tamper> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), index(), 1u8..).prop_map(|(line, octet, by)| Tamper::Change { line, octet, by }),
        index().prop_map(|line| Tamper::Remove { line }),
        (index(), index()).prop_map(|(line, other)| Tamper::Swap { line, other }),
        (index(), index(), any::<bool>()).prop_map(|(line, copy_of, other_number)| Tamper::Insert {
            line,
            copy_of,
            other_number
        }),
        index().prop_map(|line| Tamper::CutOff { line }),
    ]
}

fn is_record(line: &str) -> bool {
    serde_json::from_str::<Record>(line).is_ok()
}

fn tampered(mut lines: Vec<String>, tamper: &Tamper) -> Vec<String> {
    let records: Vec<_> = (0..lines.len()).filter(|index| is_record(&lines[*index])).collect();
    let at = |index: &prop::sample::Index| *index.get(&records);
    match tamper {
        Tamper::Change { line, octet, by } => {
            let line = &mut lines[at(line)];
            let mut octets = line.clone().into_bytes();
            let octet = octet.index(octets.len());
            // Printable, and another one.
            octets[octet] = b' ' + (octets[octet] % 95 + by % 94 + 1) % 95;
            *line = String::from_utf8_lossy(&octets).into_owned();
        }
        Tamper::Remove { line } => _ = lines.remove(at(line)),
        Tamper::Swap { line, other } => lines.swap(at(line), at(other)),
        Tamper::Insert { line, copy_of, other_number } => {
            let mut copy = lines[at(copy_of)].clone();
            if *other_number {
                copy = copy.replace("\"number\":", "\"number\":1");
            }
            lines.insert(line.index(lines.len() + 1), copy);
        }
        Tamper::CutOff { line } => lines.truncate(at(line)),
    }
    lines
}

proptest! {
    // Each case writes a few dozen journals to the disk.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_done_to_a_journal_is_found(
        earlier in 0u32..4, events in events(), tampers in prop::collection::vec(tampers(), 20), goes_on in any::<bool>(),
    ) {
        let kept = Kept::new();
        (0..earlier).for_each(|number| kept.write_without_hash(number));
        for event in &events {
            match event {
                Event::Append { reason } => {
                    kept.history().append(&Record { reason: Some(reason.clone()), ..record(9) }).unwrap();
                }
                Event::Crash { part } => {
                    let line = serde_json::to_string(&record(9)).unwrap();
                    let part = 1 + part.index(line.len() - 1);
                    fs::write(kept.path(), kept.text() + &line[..part]).unwrap();
                }
            }
        }
        kept.append(10);
        prop_assert!(kept.verify().is_whole, "{:?}", kept.verify());

        let state = kept.dir.path().join("state");
        let notes = fs::read(state.join("history.head")).unwrap();
        let pin = fs::read_link(kept.dir.path().join("history")).unwrap();
        let text = kept.text();
        let lines: Vec<_> = text.split_terminator('\n').map(str::to_owned).collect();
        for tamper in &tampers {
            let after = tampered(lines.clone(), tamper);
            if after == lines {
                continue;
            }
            fs::write(kept.path(), after.join("\n") + "\n").unwrap();
            let verified = kept.verify();
            prop_assert!(!verified.is_whole, "{tamper:?}: {after:#?}");
            if goes_on {
                kept.append(11);
                prop_assert!(!kept.verify().is_whole, "{tamper:?} and a record more: {after:#?}");
                // As before, for the next one.
                fs::write(state.join("history.head"), &notes).unwrap();
                fs::remove_file(kept.dir.path().join("history")).unwrap();
                std::os::unix::fs::symlink(&pin, kept.dir.path().join("history")).unwrap();
            }
        }
    }
}
