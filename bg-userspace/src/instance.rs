//! An open instance.

#[cfg(feature = "serve")]
use bg_common::LiveWord;
use bg_common::Meta;

#[cfg(feature = "serve")]
use crate::running::deployment_rows;
use crate::{
    Error, Paths,
    doctor::preconditions::{capabilities, hidden_mounts},
    fence,
    maps::Words,
    pins::PinRoot,
    state::State,
    time::TickLength,
};

/// An instance that `attach` has created.
///
/// Neither opening nor dropping it changes anything, and several processes may have it open. It keeps the maps that it has opened, so
/// open it again after `detach --all`.
#[derive(Debug)]
pub struct Instance {
    pub(crate) paths: Paths,
    pub(crate) words: Words,
    pub(crate) state: State,
    pub(crate) tick_length: TickLength,
}

impl Instance {
    /// Opens what is pinned in `paths`.
    pub fn open(paths: &Paths) -> Result<Self, Error> {
        fence::repair(paths);
        // A missing privilege is reported as such, not as a failure to read a file.
        let pin_root = PinRoot::inspect(paths).or_else(|error| capabilities().map_err(Error::from).and(Err(error)))?;
        let meta: Meta = match pin_root {
            PinRoot::Instance { meta, .. } => meta,
            PinRoot::Empty | PinRoot::Unfinished => {
                let hint = hidden_mounts(&paths.pin_root).unwrap_or_default();
                return Err(Error::NoInstance { pin_root: paths.pin_root.clone(), hint });
            }
        };
        let (words, tick_length) = (Words::open(paths)?, TickLength::new(meta));
        let state = State::of(paths, &meta);
        Ok(Self { paths: paths.clone(), words, state, tick_length })
    }

    /// The directories of its pins and its state.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Whether it is still the pinned instance. After `detach --all` and a new attach, another instance is pinned there.
    pub fn is_current(&self) -> bool {
        self.state.is_pinned()
    }

    /// The live words of all deployments. A change of them is a change of what is live. This reads mapped memory and is quick.
    #[cfg(feature = "serve")]
    pub(crate) fn live_words(&self) -> Vec<(u16, LiveWord)> {
        deployment_rows(&self.words).map(|(index, _)| (index, self.words.reading(index, 0).shown())).collect()
    }

    /// The file of its history. Reading it may wait for a disk.
    #[cfg(feature = "serve")]
    pub(crate) fn journal(&self) -> std::path::PathBuf {
        self.state.journal()
    }

    /// Warnings about the state directory from successful calls that have changed something. Each is a sentence, and is
    /// returned only once.
    pub fn warnings(&self) -> Vec<String> {
        self.state.take_warnings()
    }

    /// The present problems with the state directory, one sentence each: it belongs to another instance, the instance keeps its
    /// state elsewhere, part of it cannot be parsed, it cannot be read or does not respond. Records what nobody has recorded, the data path's own
    /// changes and those of processes that were killed, and changes nothing else.
    pub fn check_state(&self) -> Vec<String> {
        self.state.check(&self.words)
    }
}
