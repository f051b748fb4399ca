//! For whom a thread makes changes, for the journal.
//!
//! A controller makes changes that others have asked for. The journal then names them, not the controller's own user and command line.

use std::cell::RefCell;

use super::who::Who;

/// Who has asked for a change, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is.
    pub who: Who,
    /// The request, in the place of a command line.
    pub command: String,
}

thread_local! {
    static PRESENT: RefCell<Option<Caller>> = const { RefCell::new(None) };
}

impl Caller {
    /// Runs `work`. The changes that this thread makes meanwhile are recorded as made by this caller.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        /// Restores the one before, also after a panic.
        struct Before(Option<Caller>);
        impl Drop for Before {
            fn drop(&mut self) {
                PRESENT.set(self.0.take());
            }
        }
        let _before = Before(PRESENT.replace(Some(self)));
        work()
    }

    /// The caller of this thread; `None` if it works for the user who runs this process.
    pub(super) fn present() -> Option<Self> {
        PRESENT.with_borrow(Clone::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Record;

    #[test]
    fn a_record_names_the_caller_of_its_thread_and_no_other() {
        let own = Record::of_this_process();
        let who = Who { user: Some("ci".to_owned()), uid: 7 };
        let caller = Caller { who: who.clone(), command: "POST /v1/deployments/shop/switch".to_owned() };
        let (here, elsewhere) = caller.clone().run(|| {
            let elsewhere = std::thread::spawn(Record::of_this_process).join().unwrap();
            (Record::of_this_process(), elsewhere)
        });
        assert_eq!((here.who, here.command), (caller.who, caller.command));
        let after = Record::of_this_process();
        assert!([&elsewhere, &after].iter().all(|record| (&record.who, &record.command) == (&own.who, &own.command)));
        let caught = std::panic::catch_unwind(|| Caller { who, command: String::new() }.run(|| panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(Record::of_this_process().who, own.who);
    }
}
