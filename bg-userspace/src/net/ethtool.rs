//! Information that only the ethtool ioctl provides: the driver's name, and whether it merges packets on receive.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    others: [u8; 160],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// A socket in the caller's network namespace for these requests.
pub(super) struct Ethtool(OwnedFd);

impl Ethtool {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has just opened it, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn driver(&self, interface: &str) -> io::Result<String> {
        let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], others: [0; 160] };
        // SAFETY: `DriverInfo` is the structure that this command fills.
        unsafe { self.ask(interface, &mut info)? };
        let name = info.driver.split(|octet| *octet == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn large_receive_offload(&self, interface: &str) -> io::Result<bool> {
        let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
        // SAFETY: `Value` is the structure that this command fills.
        unsafe { self.ask(interface, &mut value)? };
        Ok(value.data & ETH_FLAG_LRO != 0)
    }

    /// # Safety
    /// `request` must be the structure that the command in its first word reads and writes.
    unsafe fn ask<T>(&self, interface: &str, request: &mut T) -> io::Result<()> {
        // SAFETY: `ifreq` is plain old data, for which zeros are valid.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= ifreq.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
        // SAFETY: `ifreq` and what it points to live until the call returns; the caller vouches for
        // the structure behind it.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
