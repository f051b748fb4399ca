//! Carrying out a decision on the packet's bytes.
//!
//! The engine says what to replace ([`Edit`]); a [`Writer`] does it. [`Packet`] is the writer of XDP and of
//! the host build: it works on frames whose checksums are finished, by RFC 1624 arithmetic. The writer
//! of tc is in `kernel/tc.rs`: there checksums may be unfinished, and the kernel's helpers know.

use crate::wire::{
    checksum::Delta,
    ethernet,
    headers::{Headers, IpVersion, V4, V6},
    packet::{
        Packet,
        bytes::{load16, store16, store32, store64},
    },
};
use bg_common::{Be16, NextHop, Protocol};
use core::mem::offset_of;
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// One end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Source address and port.
    Source,
    /// Destination address and port.
    Destination,
}

/// What to replace.
#[derive(Clone, Copy)]
pub struct Edit<V: IpVersion> {
    /// Which end.
    pub end: End,
    /// Its new address.
    pub address: V::Address,
    /// Its new port.
    pub port: Be16,
    /// Where the frame goes: MACs replaced, TTL or hop limit counted down. [`NextHop::NONE`]: it stays on
    /// this host. Not an `Option`, for the reason told at [`crate::Verdict`].
    pub hop: NextHop,
}

impl End {
    /// Address and port that stand there now.
    #[inline(always)]
    pub fn of<V: IpVersion>(self, headers: &Headers<V>) -> (V::Address, Be16) {
        match self {
            Self::Source => (headers.src, headers.src_port()),
            Self::Destination => (headers.dst, headers.dst_port()),
        }
    }

    /// Offset of the port in the transport header, the same for TCP and UDP.
    #[inline(always)]
    pub const fn port_offset(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }

    /// Offset of the address in the IPv4 header.
    #[inline(always)]
    pub const fn v4_offset(self) -> usize {
        match self {
            Self::Source => offset_of!(Ipv4Hdr, src_addr),
            Self::Destination => offset_of!(Ipv4Hdr, dst_addr),
        }
    }

    /// Offset of the address in the IPv6 header.
    #[inline(always)]
    pub const fn v6_offset(self) -> usize {
        match self {
            Self::Source => offset_of!(Ipv6Hdr, src_addr),
            Self::Destination => offset_of!(Ipv6Hdr, dst_addr),
        }
    }
}

/// Carries out edits.
pub trait Writer {
    /// Replaces what the edit names, with all checksums that cover it. `None`: the packet could not be
    /// written and must not be sent.
    fn rewrite<V: Rewritable>(&mut self, headers: &Headers<V>, edit: &Edit<V>) -> Option<()>;
    /// Stores two bytes at an offset, and leaves all checksums to the caller. `None`: as above.
    fn put16(&mut self, at: usize, word: u16) -> Option<()>;
    /// The same with four bytes.
    fn put32(&mut self, at: usize, word: u32) -> Option<()>;
    /// Stores a checksum: the finished one, or `unfinished` if the kernel or a network card has yet to sum bytes of the frame. `None`: as above.
    fn put_checksum(&mut self, at: usize, unfinished: u16, finished: u16) -> Option<()>;
    /// Replaces both MAC addresses, which no checksum covers.
    fn put_macs(&mut self, macs: [u32; 3]) -> Option<()>;
}

/// The parts of a rewrite in which the versions of IP differ.
pub trait Rewritable: IpVersion {
    /// Replaces the address, and the hop limit if the packet is forwarded, with the header's own
    /// checksum; returns what the transport checksum's pseudo-header has seen replaced.
    fn rewrite_network(packet: &mut Packet<'_>, headers: &Headers<Self>, edit: &Edit<Self>) -> Option<Delta>;
}

impl Rewritable for V4 {
    #[inline(always)]
    fn rewrite_network(packet: &mut Packet<'_>, headers: &Headers<Self>, edit: &Edit<Self>) -> Option<Delta> {
        let (old, _) = edit.end.of(headers);
        let address = Delta::NONE.double_word(old, edit.address);
        let ip = packet.header_mut::<Ipv4Hdr>(headers.l3)?;
        match edit.end {
            End::Source => store32(&mut ip.src_addr, edit.address),
            End::Destination => store32(&mut ip.dst_addr, edit.address),
        }
        let mut header = address;
        if edit.hop.is_some() {
            // Nothing is forwarded whose TTL is zero, so its word is one less than before, whatever else stands there.
            ip.ttl = ip.ttl.wrapping_sub(1);
            header = header.word(1, 0);
        }
        let check = header.apply(load16(&ip.check));
        store16(&mut ip.check, check);
        Some(address)
    }
}

impl Rewritable for V6 {
    #[inline(always)]
    fn rewrite_network(packet: &mut Packet<'_>, headers: &Headers<Self>, edit: &Edit<Self>) -> Option<Delta> {
        let (old, _) = edit.end.of(headers);
        let new = edit.address;
        let ip = packet.header_mut::<Ipv6Hdr>(headers.l3)?;
        if edit.hop.is_some() {
            ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        }
        let halves = packet.header_mut::<[[u8; 8]; 2]>(headers.l3 + edit.end.v6_offset())?;
        store64(&mut halves[0], new[0]);
        store64(&mut halves[1], new[1]);
        Some(Delta::NONE.quad_word(old[0], new[0]).quad_word(old[1], new[1]))
    }
}

impl Writer for Packet<'_> {
    #[inline(always)]
    fn rewrite<V: Rewritable>(&mut self, headers: &Headers<V>, edit: &Edit<V>) -> Option<()> {
        let (_, old_port) = edit.end.of(headers);
        let delta = V::rewrite_network(self, headers, edit)?.word(old_port.0, edit.port.0);
        match headers.protocol() {
            Protocol::Tcp => {
                let tcp = self.header_mut::<TcpHdr>(headers.l4)?;
                match edit.end {
                    End::Source => store16(&mut tcp.source, edit.port.0),
                    End::Destination => store16(&mut tcp.dest, edit.port.0),
                }
                let check = delta.apply(load16(&tcp.check));
                store16(&mut tcp.check, check);
            }
            Protocol::Udp => {
                let udp = self.header_mut::<UdpHdr>(headers.l4)?;
                match edit.end {
                    End::Source => store16(&mut udp.src, edit.port.0),
                    End::Destination => store16(&mut udp.dst, edit.port.0),
                }
                // Zero is "no checksum" (RFC 768): it stays, and a sum of zero is sent as its twin.
                let check = load16(&udp.check);
                if check != 0 {
                    let check = delta.apply(check);
                    store16(&mut udp.check, if check == 0 { 0xffff } else { check });
                }
            }
        }
        if edit.hop.is_some() {
            let macs = self.header_mut::<ethernet::Macs>(0)?;
            let (dmac, smac) = (edit.hop.ifindex_and_dmac, edit.hop.mtu_and_smac);
            store32(&mut macs.dmac, dmac as u32);
            store16(&mut macs.dmac_end, (dmac >> 32) as u16);
            store16(&mut macs.smac, smac as u16);
            store32(&mut macs.smac_end, (smac >> 16) as u32);
        }
        Some(())
    }

    #[inline(always)]
    fn put16(&mut self, at: usize, word: u16) -> Option<()> {
        store16(self.header_mut(at)?, word);
        Some(())
    }

    #[inline(always)]
    fn put32(&mut self, at: usize, word: u32) -> Option<()> {
        store32(self.header_mut(at)?, word);
        Some(())
    }

    #[inline(always)]
    fn put_checksum(&mut self, at: usize, _unfinished: u16, finished: u16) -> Option<()> {
        self.put16(at, finished)
    }

    #[inline(always)]
    fn put_macs(&mut self, [first, second, third]: [u32; 3]) -> Option<()> {
        self.put32(0, first)?;
        self.put32(4, second)?;
        self.put32(8, third)
    }
}
