//! Users and groups of this host, as the C library knows them (from files, a directory service or elsewhere), and the users at the other ends
//! of loopback connections.

use std::{
    ffi::{CStr, CString},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ptr,
};

use crate::history::Who;

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) who: Who,
    /// The groups that it belongs to.
    pub(super) groups: Vec<u32>,
}

impl User {
    /// The user of this id. `gid` is one more group that is known from elsewhere. May wait for a directory service.
    pub(super) fn of(uid: u32, gid: Option<u32>) -> Self {
        let mut buffer = vec![0; 1 << 14];
        // SAFETY: all zeros is a value of this C structure.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = ptr::null_mut();
        // SAFETY: the pointers are valid for the call, and `buffer` has the given length.
        let result = unsafe { libc::getpwuid_r(uid, &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found) };
        if result != 0 || found.is_null() {
            return Self { who: Who { user: None, uid }, groups: gid.into_iter().collect() };
        }
        // SAFETY: the entry was found, so its name is a string in `buffer`.
        let name = unsafe { CStr::from_ptr(entry.pw_name) };
        let mut groups = groups_of(name, entry.pw_gid);
        groups.extend(gid);
        Self { who: Who { user: Some(name.to_string_lossy().into_owned()), uid }, groups }
    }
}

fn groups_of(name: &CStr, gid: u32) -> Vec<u32> {
    let mut groups = vec![0; 64];
    for _ in 0..4 {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: `name` is a string, and `groups` has room for `count` ids.
        let result = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &mut count) };
        groups.resize(usize::try_from(count).unwrap_or_default(), 0);
        if result >= 0 {
            return groups;
        }
    }
    vec![gid]
}

/// The id of a group.
pub(super) fn group(name: &str) -> io::Result<u32> {
    let unknown = || {
        let why = format!("there is no group \"{name}\": create it (`groupadd --system {name}`), or name another one");
        io::Error::new(io::ErrorKind::NotFound, why)
    };
    let text = CString::new(name).map_err(|_| unknown())?;
    let mut buffer = vec![0; 1 << 16];
    // SAFETY: all zeros is a value of this C structure.
    let mut entry: libc::group = unsafe { std::mem::zeroed() };
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are valid for the call, and `buffer` has the given length.
    let result = unsafe { libc::getgrnam_r(text.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found) };
    match result {
        0 if found.is_null() => Err(unknown()),
        0 => Ok(entry.gr_gid),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The user whose socket is at the other end of a TCP connection of this host: its own address is `from`, and it is connected to `to`.
///
/// A socket that is just being closed may be shown as established and as root's. So it is looked up twice: in the second look, such a one is
/// established no longer.
pub(super) fn user_of_connection(from: SocketAddr, to: SocketAddr) -> Option<u32> {
    seen_twice(|| shown_user(from, to))
}

/// What two looks in a row agree on.
fn seen_twice<T: PartialEq>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let first = look()?;
    look().filter(|second| *second == first)
}

fn shown_user(from: SocketAddr, to: SocketAddr) -> Option<u32> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let wanted = [from, to].map(canonical);
    ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].into_iter().find_map(|path| {
        let table = fs::read_to_string(path).ok()?;
        table
            .lines()
            .skip(1)
            .find_map(|line| Some(entry(line)?).filter(|(ends, _)| *ends == wanted))
            .map(|(_, uid)| uid)
    })
}

/// The ends of an established connection of this host, its own first, and its user.
fn entry(line: &str) -> Option<([SocketAddr; 2], u32)> {
    const ESTABLISHED: &str = "01";
    let mut words = line.split_ascii_whitespace().skip(1);
    let ends = [address(words.next()?)?, address(words.next()?)?];
    (words.next()? == ESTABLISHED).then_some(())?;
    let uid = words.nth(3)?.parse().ok()?;
    // A socket that nobody has open has no inode.
    let inode: u64 = words.nth(1)?.parse().ok()?;
    (inode != 0).then_some((ends, uid))
}

/// An address as the kernel prints it: words of 32 bits in the order of the host's memory.
fn address(text: &str) -> Option<SocketAddr> {
    let (digits, port) = text.split_once(':')?;
    let words: Option<Vec<_>> =
        digits.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()).collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn root_is_known_and_in_its_group() {
        let root = User::of(0, Some(12_345));
        assert_eq!(root.who, Who { user: Some("root".to_owned()), uid: 0 });
        assert!(root.groups.contains(&0) && root.groups.contains(&12_345), "{root:?}");
        assert_eq!(User::of(4_000_000_000, None), User { who: Who { user: None, uid: 4_000_000_000 }, groups: vec![] });
        assert_eq!(group("root").unwrap(), 0);
        assert!(group("no such group").unwrap_err().to_string().contains("groupadd"));
    }

    #[test]
    fn a_socket_that_is_being_closed_is_nobodys() {
        // What a look sees of one that its owner closes between the two, and of one that another user's has replaced.
        for looks in [[Some(0), None], [None, Some(0)], [Some(0), Some(7)]] {
            let mut left = looks.into_iter();
            assert_eq!(seen_twice(|| left.next().flatten()), None, "{looks:?}");
        }
        assert_eq!(seen_twice(|| Some(7)), Some(7));
        let line = |state: &str, inode: &str| {
            entry(&format!(
                "   0: 0100007F:1D2E 0100007F:C350 {state} 00000000:00000000 00:00000000 00000000     7        0 {inode} 1"
            ))
        };
        assert_eq!(line("01", "4711").map(|(_, uid)| uid), Some(7));
        assert_eq!(
            [line("01", "0"), line("06", "4711"), line("08", "4711")],
            [None, None, None],
            "no owner, or no connection"
        );
    }

    #[test]
    fn the_user_of_a_connection_is_that_of_its_other_end() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let us = rustix::process::geteuid().as_raw();
            assert_eq!(user_of_connection(from, to), Some(us), "{address}");
            let mut elsewhere = from;
            elsewhere.set_port(from.port() ^ 1);
            assert_eq!(user_of_connection(elsewhere, to), None);
        }
    }
}
