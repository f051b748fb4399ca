//! Frames that really cross the network. A program in a "live frames" test run creates them, and another one counts them at
//! the far end.
//!
//! One processor does all of it, and runs to completion: the softirqs of each hop run in the thread that sends. So
//! the frames took the time that this processor worked for the thread, whatever else the machine is doing,
//! and no queue overflows because another processor was slower.
//!
//! A hop stays on the processor that woke it as long as it has work. If something else wakes it on another one, a
//! report of multicast groups for example, the frames are shared between the two, and lost if that one is the slower.
//! The counters show this, and such a call is repeated.

use super::{stage::counted, traffic::Traffic};
use crate::process::say;
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, DevMap, PerCpuArray, PerCpuValues},
    programs::{TestRunAttrs, TestRunOptions, Xdp, XdpMode, links::FdLink},
};
use bg_common::{Be16, Destination, LiveFrame, Received};
use bg_tests::{Bgctl, Lab, Namespace, Processor, frames};
use etherparse::{NetHeaders, PacketHeaders};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

/// The number of frames that are sent before the next hop runs: as many as a driver processes at a time.
const BATCH: u32 = 64;

/// The loaded programs: generator, receiver and redirect.
pub(in crate::bench) struct LiveFrames {
    object: Ebpf,
    processor: Processor,
}

/// The result of a call.
pub(in crate::bench) struct Shot {
    /// The number of frames that were sent.
    pub(in crate::bench) sent: u64,
    /// The number of frames that arrived at the far end with the right addresses.
    pub(in crate::bench) delivered: u64,
    /// How many of these were counted by another processor than the sending one.
    strayed: u64,
    /// How long the processor worked.
    pub(in crate::bench) worked: Duration,
    /// The first frame that was delivered.
    sample: Vec<u8>,
}

impl LiveFrames {
    pub(in crate::bench) fn load(object: &Path) -> Result<Self> {
        let mut object = EbpfLoader::new().load_file(object)?;
        for name in ["generate", "receive", "redirect"] {
            program(&mut object, name)?.load()?;
        }
        Ok(Self { object, processor: Processor::last()? })
    }

    /// Counts and drops the frames that [`Self::send`] expects at an interface, as long as the link exists.
    pub(in crate::bench) fn receive_at(&mut self, namespace: &Namespace, interface: &str) -> Result<FdLink> {
        self.attach("receive", namespace, interface)
    }

    /// Sends frames that arrive at one interface out of another, as long as the link exists.
    pub(in crate::bench) fn redirect(&mut self, namespace: &Namespace, from: &str, to: &str) -> Result<FdLink> {
        let to = ifindex(namespace, to)?;
        // Entries of such a map are interfaces of the namespace of whoever writes them.
        namespace.enter(|| -> Result<()> {
            let mut way_out: DevMap<_> = self.object.map_mut("way_out").context("way_out")?.try_into()?;
            Ok(way_out.set(0, to, None, 0)?)
        })??;
        self.attach("redirect", namespace, from)
    }

    fn attach(&mut self, name: &str, namespace: &Namespace, interface: &str) -> Result<FdLink> {
        let program = program(&mut self.object, name)?;
        let id = namespace.enter(|| program.attach(interface, XdpMode::Driver))??;
        Ok(program.take_link(id)?.try_into()?)
    }

    /// Sends like [`Self::send`], and repeats that until one processor has done everything. Then it checks what arrived, and, if
    /// bgctl did the work, that it has counted the frames as those of open flows.
    pub(in crate::bench) fn send_alone(
        &mut self,
        lab: &Lab,
        traffic: Traffic,
        way: (SocketAddr, SocketAddr),
        frames: u32,
        bgctl: Option<&Bgctl>,
    ) -> Result<Shot> {
        const ATTEMPTS: u32 = 20;
        for _ in 0..ATTEMPTS {
            let before = bgctl.map(counted).transpose()?;
            let shot = self.send(lab, traffic, way, frames)?;
            let Shot { sent, delivered, strayed, .. } = shot;
            if strayed != 0 {
                say(format_args!("{strayed} of {delivered} frames were handled by another processor; sent anew"));
                continue;
            }
            shot.check(Some(traffic.client()), way.1)?;
            if let (Some(bgctl), Some(before)) = (bgctl, before) {
                let after = counted(bgctl)?;
                let (packets, opened) = (after.packets - before.packets, after.flows_opened - before.flows_opened);
                let is_right = (delivered..=sent).contains(&packets);
                ensure!(is_right, "{sent} frames sent, {packets} counted by bgctl, {delivered} delivered");
                ensure!(opened <= sent / 1000, "{opened} flows were opened by {sent} frames of open flows");
            }
            return Ok(shot);
        }
        bail!("in {ATTEMPTS} attempts, another processor has handled some of the frames each time")
    }

    /// Sends frames of this traffic to the address `to` out of the client's interface, and counts the frames that arrive
    /// with the address `expected`.
    pub(in crate::bench) fn send(
        &mut self,
        lab: &Lab,
        traffic: Traffic,
        (to, expected): (SocketAddr, SocketAddr),
        frames: u32,
    ) -> Result<Shot> {
        let (live, length) = live_frame(lab, traffic, to)?;
        self.array("live_frame")?.set(0, live, 0)?;
        self.expect(expected)?;

        let processor = self.processor.clone();
        let generator = program(&mut self.object, "generate")?;
        let frame = &bytemuck::bytes_of(&live.frame)[..length];
        let attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let options = TestRunOptions { data_in: Some(frame), repeat: frames, attrs, ..TestRunOptions::new() };
        let worked = lab.client.enter(|| -> Result<_> {
            processor.adopt_thread()?;
            let before = processor.worked()?;
            generator.test_run(options).context("cannot send live frames (Linux 5.18 or later does)")?;
            Ok(processor.worked()? - before)
        })??;
        let (delivered, strayed) = (self.received()?.delivered, self.strayed()?);
        let sample = self.array::<[u64; LiveFrame::MAX_LEN / 8]>("sample")?.get(&0, 0)?;
        let sample = bytemuck::bytes_of(&sample)[..length].to_vec();
        Ok(Shot { sent: frames.into(), delivered, strayed, worked, sample })
    }

    /// Counts frames to this address, from now on.
    pub(in crate::bench) fn expect(&mut self, address: SocketAddr) -> Result<()> {
        self.array("destination")?.set(0, destination(address), 0)?;
        self.forget()
    }

    /// The counts over all processors.
    pub(in crate::bench) fn received(&self) -> Result<Received> {
        Ok(self.rows()?.iter().fold(Received::default(), |sum, row| Received {
            delivered: sum.delivered + row.delivered,
            others: sum.others + row.others,
        }))
    }

    /// How many frames another processor than the sending one has counted.
    pub(in crate::bench) fn strayed(&self) -> Result<u64> {
        let here = self.rows()?.get(self.processor.number()).context("no such processor")?.delivered;
        Ok(self.received()?.delivered - here)
    }

    fn rows(&self) -> Result<PerCpuValues<Received>> {
        let rows: PerCpuArray<_, Received> = self.object.map("received").context("received")?.try_into()?;
        Ok(rows.get(&0, 0)?)
    }

    fn forget(&mut self) -> Result<()> {
        let mut rows: PerCpuArray<_, Received> = self.object.map_mut("received").context("received")?.try_into()?;
        let zero = vec![Received::default(); rows.get(&0, 0)?.len()];
        Ok(rows.set(0, PerCpuValues::try_from(zero)?, 0)?)
    }

    fn array<V: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut aya::maps::MapData, V>> {
        Ok(self.object.map_mut(name).with_context(|| format!("no map {name}"))?.try_into()?)
    }
}

impl Shot {
    /// Nanoseconds of the processor per delivered frame.
    pub(in crate::bench) fn ns(&self) -> f64 {
        self.worked.as_nanos() as f64 / self.delivered as f64
    }

    /// Millions of delivered frames per second of the processor.
    pub(in crate::bench) fn mpps(&self) -> f64 {
        1000.0 / self.ns()
    }

    /// The percentage of lost frames.
    pub(in crate::bench) fn lost(&self) -> f64 {
        100.0 * (self.sent - self.delivered) as f64 / self.sent as f64
    }

    /// Checks that frames were delivered, and that a machine would accept the first one: with the right destination, with
    /// this source if one is given, and with correct checksums.
    pub(in crate::bench) fn check(&self, from: Option<IpAddr>, to: SocketAddr) -> Result<()> {
        ensure!(self.delivered > 0, "none of {} frames to {to} arrived", self.sent);
        ensure!(self.delivered <= self.sent, "{} frames sent, {} delivered", self.sent, self.delivered);
        let (source, destination) = frames::ends(&self.sample);
        ensure!(destination == to, "expected a frame to {to}, got one to {destination}");
        if let Some(from) = from {
            ensure!(same_network(from, source.ip()), "expected a frame from {from}, got one from {}", source.ip());
        }
        check_checksums(&self.sample)
    }
}

/// Whether the addresses differ at most in the varying part.
fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..2] == b.octets()[..2],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..14] == b.octets()[..14],
        _ => false,
    }
}

fn check_checksums(frame: &[u8]) -> Result<()> {
    let headers = PacketHeaders::from_ethernet_slice(frame)?;
    let (Some(net), Some(transport)) = (headers.net, headers.transport) else { bail!("no transport header") };
    let (mut fresh, payload) = (transport.clone(), headers.payload.slice());
    match net {
        NetHeaders::Ipv4(ip, _) => {
            ensure!(ip.header_checksum == ip.calc_header_checksum(), "a wrong checksum of the IPv4 header");
            fresh.update_checksum_ipv4(&ip, payload)?;
        }
        NetHeaders::Ipv6(ip, _) => fresh.update_checksum_ipv6(&ip, payload)?,
        NetHeaders::Arp(_) => bail!("ARP with a transport header"),
    }
    ensure!(fresh == transport, "a wrong transport checksum: {transport:?}");
    Ok(())
}

fn destination(socket: SocketAddr) -> Destination {
    let address = match socket.ip() {
        IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
        IpAddr::V6(ip) => (u128::from_ne_bytes(ip.octets()) >> 96) as u32,
    };
    Destination { address, port: Be16::new(socket.port()).0.into() }
}

/// The template of a traffic's frames, and their length.
fn live_frame(lab: &Lab, traffic: Traffic, to: SocketAddr) -> Result<(LiveFrame, usize)> {
    let mut frame = traffic.frame(to)?;
    frame[..6].copy_from_slice(&lab.edge.mac("front")?);
    frame[6..12].copy_from_slice(&lab.client.mac("eth0")?);
    let length = frame.len();
    ensure!((LiveFrame::MIN_LEN..=LiveFrame::MAX_LEN).contains(&length), "a frame of {length} bytes");
    frame.resize(LiveFrame::MAX_LEN, 0);
    let at = traffic.offsets();
    let address = u16::from_be_bytes([frame[at.address], frame[at.address + 1]]);
    let live = LiveFrame {
        frame: bytemuck::pod_read_unaligned(&frame),
        ifindex: ifindex(&lab.client, "eth0")?,
        address_at: at.address as u32,
        address: address.into(),
        port_at: at.port as u32,
        identification_at: at.identification as u32,
        filler_at: at.filler as u32,
        mask: traffic.flows - 1,
        // Numerical Recipes' generator: every flow once a period, in an order that no prefetcher guesses.
        multiplier: 1_664_525,
        increment: 1_013_904_223,
        reserved: 0,
    };
    Ok((live, length))
}

fn ifindex(namespace: &Namespace, name: &str) -> Result<u32> {
    let links: serde_json::Value = serde_json::from_str(&namespace.ip(&format!("-json link show dev {name}"))?)?;
    let index = links[0]["ifindex"].as_u64().with_context(|| format!("no ifindex in {links}"))?;
    Ok(index.try_into()?)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bg_common::{FrameTemplate, Protocol};

    fn traffics() -> impl Iterator<Item = Traffic> {
        let families = [false, true].into_iter();
        families.flat_map(|ipv6| [Protocol::Tcp, Protocol::Udp].map(|protocol| Traffic { ipv6, protocol, flows: 1 }))
    }

    #[test]
    fn checksums_hold_for_every_flow() {
        for traffic in traffics() {
            for flow in [0_u32, 1, 1023, 16_383, 16_384, 65_535] {
                let (mut frame, at) = (traffic.frame(traffic.vip()).unwrap(), traffic.offsets());
                assert_eq!(frame.len(), traffic.len());
                // As the generator does.
                let address = (flow >> FrameTemplate::PORT_BITS) as u16;
                let port = (flow & ((1 << FrameTemplate::PORT_BITS) - 1)) as u16;
                let first = u16::from_be_bytes([frame[at.address], frame[at.address + 1]]);
                for (at, word) in [
                    (at.address, first + address),
                    (at.port, FrameTemplate::FIRST_PORT + port),
                    (at.identification, !address),
                    (at.filler, !address),
                    (at.filler + 2, !port),
                ] {
                    frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
                }
                check_checksums(&frame).unwrap_or_else(|error| panic!("{}, flow {flow}: {error}", traffic.name()));
                let (from, to) = frames::ends(&frame);
                assert_eq!((from.port(), to), (FrameTemplate::FIRST_PORT + port, traffic.vip()));
                assert!(
                    same_network(from.ip(), traffic.client()) && (flow < 16_384) == (from.ip() == traffic.client())
                );
            }
        }
    }

    #[test]
    fn a_frame_that_was_rewritten_badly_is_seen() {
        for traffic in traffics() {
            let mut frame = traffic.frame(traffic.vip()).unwrap();
            // The destination's port, without the checksum.
            frame[traffic.offsets().port + 3] ^= 1;
            assert!(check_checksums(&frame).is_err());
        }
    }

    #[test]
    fn a_destination_is_what_the_receiver_reads() {
        for traffic in traffics() {
            let frame = traffic.frame(traffic.backend()).unwrap();
            let at = traffic.offsets().port;
            let address: [u8; 4] = frame[at - 4..at].try_into().unwrap();
            let port = u16::from_ne_bytes([frame[at + 2], frame[at + 3]]);
            let expected = Destination { address: u32::from_ne_bytes(address), port: port.into() };
            assert_eq!(destination(traffic.backend()), expected);
        }
    }
}
