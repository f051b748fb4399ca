//! Sending and receiving whole frames, with AF_PACKET (packet(7)).

use crate::{netns::Namespace, server::hold_bursts};
use anyhow::{Context, Result, bail};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

/// A packet socket on one interface.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl AsRawFd for RawSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl RawSocket {
    /// Opens it on an interface of the namespace.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let open = || Self::open_here(interface);
        namespace.enter(open)?.with_context(|| format!("no packet socket on {interface} of {}", namespace.name()))
    }

    fn open_here(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the pointer is to a string that ends with a zero and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        if index == 0 || socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: a sockaddr_ll of zeros is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        let (on, on_length) = (1_i32, size_of::<i32>() as libc::socklen_t);
        let option = (&raw const on).cast();
        // SAFETY: the pointer is to an integer that outlives the call.
        let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_AUXDATA, option, on_length) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the pointer is to an address of the length given, which outlives the call.
        match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => hold_bursts(&socket).map(|()| Self(socket)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends one frame, from its first MAC address to its last byte.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer is to as many bytes as are named.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => bail!("sent {sent} of {} bytes", frame.len()),
            Err(_) => Err(io::Error::last_os_error()).with_context(|| format!("cannot send {} bytes", frame.len())),
        }
    }

    /// The received frames for which `ours` is true, until `last` is true for one of them.
    pub fn receive_until(
        &self,
        patience: Duration,
        ours: impl Fn(&[u8]) -> bool,
        last: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match self.receive(&mut buffer)? {
                Some(frame) if ours(&frame) => {
                    let is_last = last(&frame);
                    frames.push(frame);
                    if is_last {
                        return Ok(frames);
                    }
                }
                Some(_) => (),
                None if Instant::now() > end => bail!("the last of the frames has not come; {} have", frames.len()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The next received frame; `None` if there is none for this long.
    pub fn receive_within(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            match self.receive(&mut buffer)? {
                Some(frame) => return Ok(Some(frame)),
                None if Instant::now() > end => return Ok(None),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// The next received frame, if there is one, with its VLAN tags in place. Frames that leave by the
    /// interface are skipped.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<Vec<u8>>> {
        loop {
            let mut control = [0_u64; 16];
            // SAFETY: plain structs of integers and pointers, for which zeros are values.
            let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of_val(&from) as libc::socklen_t;
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            // SAFETY: all that the message points to outlives the call and is as long as it says.
            let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
            let Ok(length) = usize::try_from(length) else {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error.into()) };
            };
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let mut frame = buffer[..length].to_vec();
            if let Some(tag) = outer_tag(&message) {
                frame.splice(12..12, tag);
            }
            return Ok(Some(frame));
        }
    }
}

/// `struct tpacket_auxdata` of linux/if_packet.h.
#[repr(C)]
struct AuxData {
    status: u32,
    _lengths: [u32; 2],
    _offsets: [u16; 2],
    vlan_tci: u16,
    vlan_tpid: u16,
}

const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// The outer VLAN tag, which the kernel removes from a frame and returns separately.
fn outer_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the kernel has filled the message; a control message of this type holds an `AuxData`.
    let aux = unsafe {
        let header = libc::CMSG_FIRSTHDR(message).as_ref()?;
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, PACKET_AUXDATA) {
            return None;
        }
        libc::CMSG_DATA(header).cast::<AuxData>().read_unaligned()
    };
    let ([a, b], [c, d]) = (aux.vlan_tpid.to_be_bytes(), aux.vlan_tci.to_be_bytes());
    (aux.status & TP_STATUS_VLAN_VALID != 0).then_some([a, b, c, d])
}
