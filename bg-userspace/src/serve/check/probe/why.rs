//! Why a check has failed.

use std::{fmt, io};

use rustix::io::Errno;

/// This host has no more files, ports, memory or processes.
const LOCAL: [Errno; 6] = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOMEM, Errno::AGAIN, Errno::NOBUFS];

/// Why a check has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Why {
    text: String,
    is_local: bool,
}

impl Why {
    pub(super) fn new(why: impl fmt::Display) -> Self {
        /// Longer texts come from the backend, and would only fill the log.
        const MOST: usize = 200;
        let text = why.to_string();
        let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
        Self { text, is_local: false }
    }

    /// Of this host, whatever the backend is like.
    pub(super) fn local(why: impl fmt::Display) -> Self {
        Self { is_local: true, ..Self::new(why) }
    }

    /// Of an operation that has failed.
    pub(super) fn of(what: impl fmt::Display, error: &io::Error) -> Self {
        let errno = Errno::from_io_error(error);
        Self {
            is_local: errno.is_some_and(|errno| LOCAL.contains(&errno)),
            ..Self::new(format_args!("{what}: {error}"))
        }
    }

    /// Whether this host lacks something, which says nothing of the backend.
    pub(crate) const fn is_local(&self) -> bool {
        self.is_local
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_lacks_says_nothing_of_the_backend() {
        let is_local = |errno: Errno| Why::of("no connection", &errno.into()).is_local();
        assert!(LOCAL.into_iter().all(is_local));
        assert!(![Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::NOENT].into_iter().any(is_local));
    }
}
