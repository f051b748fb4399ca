//! What is not for a VIP arrives byte for byte as it was sent (invariant 8): the same frames cross a lab without
//! the programs and with them, and the same bytes arrive, at the edge itself and beyond it.

use anyhow::{Context, Result};
use bg_tests::{
    Fabric, Lab, RawSocket, Ready, address,
    config::{http_vip, shop},
    frames::{PacketSpec, tcp_flags},
    load::{Fresh, KeepAlive},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};

/// Who the frames are from: nobody that the lab knows, so that nothing but them bears these addresses.
const STRANGER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const STRANGER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0x77);
const STRANGER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// Port of the datagram that ends a series.
const LAST: u16 = 65_000;

/// Frames from a stranger on the client's wire: to the edge itself and, through it, to a backend.
fn series(front: [u8; 6], backend: [IpAddr; 2], jumbo: bool) -> Vec<Vec<u8>> {
    let stranger =
        |to: IpAddr, port| SocketAddr::new(if to.is_ipv4() { STRANGER_V4.into() } else { STRANGER_V6.into() }, port);
    let mut frames = Vec::new();
    for to in backend.into_iter().chain([address::FRONT_V4, address::FRONT_V6]) {
        // The services' own ports, at addresses that are no VIP, and others.
        for port in [22, 53, 80, 5353, 8080, 9080] {
            let (from, to) = (stranger(to, 40_000 + port), SocketAddr::new(to, port));
            for flags in [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST] {
                frames.push(PacketSpec { payload: vec![7; 33], ..PacketSpec::tcp(from, to, flags) }.frame());
            }
            frames.push(PacketSpec::udp(from, to).frame());
            frames.push(PacketSpec { without_udp_checksum: to.is_ipv4(), ..PacketSpec::udp(from, to) }.frame());
            frames.push(PacketSpec { options: if to.is_ipv4() { 3 } else { 0 }, ..PacketSpec::udp(from, to) }.frame());
            frames.push(PacketSpec { payload: vec![1; 1400], ttl: 3, ..PacketSpec::udp(from, to) }.frame());
            frames.push(PacketSpec { tags: 2, ..PacketSpec::udp(from, to) }.frame());
            if jumbo {
                frames.push(PacketSpec { payload: vec![2; 8000], ..PacketSpec::udp(from, to) }.frame());
            }
        }
        // Other protocols: the transport's bytes are somebody else's business.
        for protocol in [1, 2, 47, 50, 58, 89, 132, 253] {
            let mut frame = PacketSpec::udp(stranger(to, 1), SocketAddr::new(to, 80)).frame();
            reprotocol(&mut frame, protocol);
            frames.push(frame);
        }
    }
    // To the VIPs, on ports of no service: not ours either.
    for vip in [address::VIP_V4, address::VIP_V6] {
        frames.push(PacketSpec::tcp(stranger(vip, 4000), SocketAddr::new(vip, 81), tcp_flags::SYN).frame());
        frames.push(PacketSpec::udp(stranger(vip, 4000), SocketAddr::new(vip, 80)).frame());
    }
    // Nonsense: lengths that lie, a header cut short, EtherTypes of others.
    let mut lies = PacketSpec::udp(stranger(backend[0], 9), SocketAddr::new(backend[0], 9)).frame();
    lies[16..18].copy_from_slice(&[0xff, 0xff]);
    frames.push(lies);
    frames.push(frames[0][..14 + 12].to_vec());
    for ether_type in [0x0806_u16, 0x88cc, 0x88b5, 0x0600] {
        let mut frame = [&[0; 12], ether_type.to_be_bytes().as_slice()].concat();
        frame.extend((0..50_u8).map(|octet| octet.wrapping_mul(37)));
        frames.push(frame);
    }
    frames.push(PacketSpec::udp(stranger(backend[0], LAST), SocketAddr::new(backend[0], LAST)).frame());
    for frame in &mut frames {
        frame[..6].copy_from_slice(&front);
        frame[6..12].copy_from_slice(&STRANGER_MAC);
    }
    frames
}

/// Writes another protocol into an IP packet, with the header's checksum made right again.
fn reprotocol(frame: &mut [u8], protocol: u8) {
    if frame[12..14] == [0x86, 0xdd] {
        frame[14 + 6] = protocol;
        return;
    }
    frame[14 + 9] = protocol;
    frame[14 + 10..14 + 12].fill(0);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum + (sum >> 16)) as u16).to_be_bytes());
}

/// Whether it is a frame of the series on its first wire.
fn is_strangers_mac(frame: &[u8]) -> bool {
    frame[6..12] == STRANGER_MAC
}

/// Whether it is a packet of the series on a later wire.
fn is_strangers_address(frame: &[u8]) -> bool {
    frame.len() >= 38 && (frame[26..30] == STRANGER_V4.octets() || frame[22..38] == STRANGER_V6.octets())
}

fn is_last(frame: &[u8]) -> bool {
    frame.len() >= 38 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == LAST.to_be_bytes()
}

/// What arrives of the series, at the edge's network card and at the first backend's.
fn arrivals(lab: &Lab, series: &[Vec<u8>]) -> Result<[Vec<Vec<u8>>; 2]> {
    let backend = &lab.backends[0];
    let from = RawSocket::open(&lab.client, "eth0")?;
    let at_edge = RawSocket::open(&lab.edge, "front")?;
    let at_backend = RawSocket::open(&backend.namespace, "eth0")?;
    for (number, frame) in series.iter().enumerate() {
        from.send(frame).with_context(|| format!("frame {number}"))?;
        thread::sleep(Duration::from_micros(200));
    }
    let patience = Duration::from_secs(2);
    Ok([
        at_edge.receive_until(patience, is_strangers_mac, is_last)?,
        at_backend.receive_until(patience, is_strangers_address, is_last)?,
    ])
}

fn strangers_pass_untouched(lab: Lab, mode: &str, jumbo: bool) -> Result<()> {
    if jumbo {
        for (machine, interfaces) in lab.cards() {
            for interface in interfaces {
                machine.ip(&format!("link set {interface} mtu 9000"))?;
            }
        }
    }
    let series = series(lab.edge.mac("front")?, lab.backends[0].addresses, jumbo);
    let [at_edge, at_backend] = arrivals(&lab, &series)?;
    assert_eq!(at_edge.len(), series.len(), "without the programs, all of it arrives");
    assert!(at_backend.len() > 60, "and what is for a backend is passed on: {}", at_backend.len());

    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, mode, &config)?;
    let with_programs = arrivals(&ready.lab, &series)?;
    assert_same(&with_programs[0], &at_edge, "at the edge");
    assert_same(&with_programs[1], &at_backend, "at the backend");

    // And beside it both work: connections to a backend's own address, and to the VIP.
    let backend = &ready.lab.backends[0];
    for server in [SocketAddr::new(backend.addresses[0], bg_tests::HTTP_PORT), http_vip(address::VIP_V4)] {
        let kept = KeepAlive { clients: 2, pause: Duration::ZERO }.start(&ready.lab.client, server)?;
        let fresh = Fresh { clients: 2, pause: Duration::ZERO }.start(&ready.lab.client, server)?;
        for load in [kept, fresh] {
            load.wait_for(500)?;
            let counts = load.finish()?;
            assert!(counts.failures == 0 && counts.total() >= 500, "{server}: {counts:?}");
        }
    }
    Ok(())
}

fn assert_same(found: &[Vec<u8>], expected: &[Vec<u8>], place: &str) {
    for (number, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "frame {number} {place}");
    }
    assert_eq!(found.len(), expected.len(), "frames {place}");
}

#[test]
fn strangers_pass_native_xdp_untouched() -> Result<()> {
    strangers_pass_untouched(Lab::wire(Fabric::Switch)?, "native", false)
}

#[test]
fn strangers_pass_generic_xdp_untouched_jumbo_frames_too() -> Result<()> {
    strangers_pass_untouched(Lab::wire(Fabric::Switch)?, "generic", true)
}

#[test]
fn strangers_pass_tc_untouched_jumbo_frames_too() -> Result<()> {
    strangers_pass_untouched(Lab::bridge()?, "tc", true)
}
