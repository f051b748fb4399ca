//! The checks that a state directory belongs to one instance, and that a command names the instance's directory.

use super::{
    directory::{State, identity_at},
    link::{absolute, read},
};
use crate::{
    Error, Paths,
    history::{HistoryError, LastLive, is_same},
};

/// A warning if the command names another directory than the instance's.
pub(super) fn mismatch(state: &State) -> Option<String> {
    let given = absolute(state.paths.state_dir());
    (!is_same(&state.home, &given)).then(|| {
        format!(
            "this instance keeps its state in {}, not in {}: name its directory by --state-dir or BGCTL_STATE_DIR (sudo drops \
             variables), or run an apply that names the new directory",
            state.home.display(),
            given.display()
        )
    })
}

/// Refuses the directory of another instance that is still pinned.
pub(super) fn refuse_shared(state: &State, last: &LastLive) -> Result<(), Error> {
    let Some(other) = last.instance.as_ref().filter(|other| Some(&other.identity) != state.identity()) else {
        return Ok(());
    };
    let lives = identity_at(&other.pin_root).as_ref() == Some(&other.identity);
    let theirs = Paths { pin_root: other.pin_root.clone(), ..state.paths.clone() };
    // That instance may use another directory now.
    if lives && read(&theirs).is_none_or(|home| is_same(&home, &state.home)) {
        return Err(HistoryError::Shared { state_dir: state.home.clone(), other: other.pin_root.clone() }.into());
    }
    Ok(())
}
