//! Network namespaces: their cookies and names.

use std::{
    fmt,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::NetError;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The directory in which iproute2 keeps the names of network namespaces.
const NAMES: &str = "/run/netns";

/// The cookie of the caller's network namespace (`SO_NETNS_COOKIE`, Linux 5.14). It does not change as long as the namespace exists, and
/// is never reused.
pub(crate) fn namespace_cookie() -> Result<u64, NetError> {
    cookie().map_err(NetError::Socket)
}

fn cookie() -> io::Result<u64> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and both pointers lead to live variables of the size that is told.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A network namespace, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// A namespace with this name in `ip netns`.
    Named(String),
    /// The namespace of process 1.
    Initial,
    /// A namespace without a name: it is gone, or belongs to a container.
    Unnamed(u64),
}

impl Namespace {
    /// Looks up the name of the namespace with this cookie.
    pub(crate) fn of(wanted: u64) -> Self {
        let names = fs::read_dir(NAMES).into_iter().flatten().filter_map(Result::ok);
        let named = names.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
        let mut found = named.filter(|(_, path)| cookie_of(path.clone()).is_ok_and(|cookie| cookie == wanted));
        if let Some((name, _)) = found.next() {
            return Self::Named(name);
        }
        match cookie_of("/proc/1/ns/net".into()) {
            Ok(cookie) if cookie == wanted => Self::Initial,
            _ => Self::Unnamed(wanted),
        }
    }

    /// The command that runs another command in the namespace, followed by a space; empty if none is known.
    pub(crate) fn prefix(&self) -> String {
        match self {
            Self::Named(name) => format!("nsenter --net={NAMES}/{name} "),
            Self::Initial => "nsenter --net=/proc/1/ns/net ".to_owned(),
            Self::Unnamed(_) => String::new(),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "\"{name}\""),
            Self::Initial => f.write_str("of process 1"),
            Self::Unnamed(cookie) => write!(f, "with the cookie {cookie:#x} (it has no name, or is gone)"),
        }
    }
}

/// The cookie of another namespace. A separate thread enters the namespace and ends there.
fn cookie_of(path: PathBuf) -> io::Result<u64> {
    let work = move || {
        let file = File::open(path)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        cookie()
    };
    let thread = std::thread::Builder::new().spawn(work)?;
    thread.join().unwrap_or(Err(io::ErrorKind::Other.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_a_cookie_of_its_own() {
        let own = cookie().unwrap();
        assert_eq!(cookie().unwrap(), own);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test makes a network namespace, run it as root");
            return;
        }
        let other = std::thread::spawn(|| {
            // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            cookie().unwrap()
        });
        let other = other.join().unwrap();
        assert_ne!(other, own);
        assert_eq!(Namespace::of(other), Namespace::Unnamed(other), "it has ended with its thread");
    }
}
