//! Access to a state directory that may not respond.

use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::error::HistoryError;
use crate::{
    Error,
    sys::{Unanswered, apart},
};

/// The time to wait for a state directory.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `work` on a state directory in another process ([`apart`]), which keeps `keep` open, and waits for `patience`.
pub(crate) fn ask<T: Serialize + DeserializeOwned>(
    state_dir: &Path,
    patience: Duration,
    keep: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let answer = apart(patience, keep, || serde_json::to_vec(&work().map_err(Failure::from)).unwrap_or_default());
    let answer =
        answer.map_err(|Unanswered| HistoryError::Unanswered { state_dir: state_dir.to_owned(), waited: patience })?;
    match serde_json::from_slice::<Result<T, Failure>>(&answer) {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(Failure::Shared { state_dir, other })) => Err(HistoryError::Shared { state_dir, other }.into()),
        Ok(Err(Failure::Told(why))) => Err(HistoryError::Told(why).into()),
        Err(_) => Err(HistoryError::Told("the process that works on the state directory was killed".to_owned()).into()),
    }
}

/// An error that one process sends to another.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    Shared { state_dir: PathBuf, other: PathBuf },
    Told(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::History(HistoryError::Shared { state_dir, other }) => Self::Shared { state_dir, other },
            error => Self::Told(format!("{:#}", anyhow::Error::from(error))),
        }
    }
}
