//! What user space reads: the configuration, the state directory, and single words. No text may make it panic.

use bg_userspace::{
    Condition, InterfaceList, TcpFlags, config,
    history::{Journal, LastLive, Record, Verified},
};
use std::path::Path;

/// A configuration. What is understood, and written, is understood as the same.
pub fn configuration(text: &[u8]) -> u64 {
    let path = Path::new("bgctl.toml");
    match config::load_from(path, text) {
        Ok(read) => {
            let written = read.to_toml();
            let again = config::parse(path, &written).unwrap_or_else(|error| panic!("{error}\n{written}"));
            assert!(again == read, "read as another one:\n{written}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    1
}

/// A history. No line is lost; what was read is written, and read as the same; and the chain is checked.
pub fn history(content: &[u8]) -> u64 {
    let journal = Journal::parse(content, None);
    let lines = content.split(|octet| *octet == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(journal.records.len() + journal.damaged_lines, lines, "lines");
    for record in &journal.records {
        let written = serde_json::to_vec(record).expect("a record can be written");
        let again: Record = serde_json::from_slice(&written).expect("what was written can be read");
        assert!(again == *record, "read as another record: {record:?}");
    }
    let verified = Verified::of(content);
    assert_eq!(verified.is_whole, verified.faults.is_empty());
    assert!(!verified.sentences(Path::new("history")).is_empty());
    1
}

/// The last live colours. A file that is no object is a problem, which is told.
pub fn last_live(content: &[u8]) -> u64 {
    let last = LastLive::parse(content, Path::new("live.json"));
    let is_object = serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(content).is_ok();
    assert!(is_object || !last.problems.is_empty(), "a problem was not told");
    assert!(last.deployments.values().all(|entry| entry.moment.generation > 0));
    1
}

/// Words of the command line, and the list of interfaces.
pub fn words(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    if let Ok(condition) = text.parse::<Condition>() {
        let again = condition.to_string().parse::<Condition>();
        assert_eq!(again, Ok(condition), "{condition}");
    }
    let _ = text.parse::<TcpFlags>();
    let _ = InterfaceList::parse(Path::new("interfaces"), &text);
    1
}
