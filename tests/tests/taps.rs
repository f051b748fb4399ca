//! Virtual machines behind taps: XDP redirects to a tap itself, though the tap carries no XDP program, only those of tc.

use anyhow::{Context, Result};
use bg_tests::{
    Fabric, Lab, RawSocket, Tap, address,
    config::udp_vip,
    frames::{self, PacketSpec},
    load::bind_new,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const ROUNDS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(2);

/// What the virtual machine is to the edge.
const MAC: [u8; 6] = [2, 0, 0, 0, 0x99, 2];
const SUBNETS: [(&str, &str); 2] = [("10.9.0.", "24"), ("2001:db8:9::", "64")];

fn config() -> String {
    let services = std::iter::zip([address::VIP_V4, address::VIP_V6], SUBNETS).map(|(vip, (subnet, _))| {
        let backend = |host: u8| SocketAddr::new(format!("{subnet}{host}").parse().expect("an address"), 53);
        format!(
            "[[deployments.machines.services]]\nvip = \"{}\"\nprotocol = \"udp\"\nmode = \"nat\"\n\
             blue = [\"{}\"]\ngreen = [\"{}\"]\n",
            udp_vip(vip),
            backend(2),
            backend(3)
        )
    });
    // Another deployment, so that the one under test is not the only one nor the first.
    "[[deployments.archive.services]]\nvip = \"203.0.113.99:53\"\nprotocol = \"udp\"\nmode = \"nat\"\n\
     blue = [\"10.9.0.4:53\"]\ngreen = [\"10.9.0.5:53\"]\n"
        .to_owned()
        + &services.collect::<String>()
}

/// The edge towards a client, and a virtual machine behind a tap.
struct Edge {
    tap: Tap,
    lab: Lab,
}

impl Edge {
    fn new(mode: &str) -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let tap = Tap::create(&lab.edge, "tap0")?;
        let mac = MAC.map(|octet| format!("{octet:02x}")).join(":");
        for (subnet, length) in SUBNETS {
            lab.edge.ip(&format!("address add {subnet}1/{length} dev tap0"))?;
            lab.edge.ip(&format!("neigh replace {subnet}2 lladdr {mac} dev tap0 nud permanent"))?;
        }
        let bgctl = lab.bgctl()?;
        bgctl.run(&["attach", "--mode", mode, "front"])?;
        bgctl.run(&["attach", "tap0"])?;
        bgctl.apply(&config())?;
        Ok(Self { tap, lab })
    }

    /// The next datagram that the virtual machine gets.
    fn arrives(&self) -> Result<(SocketAddr, SocketAddr)> {
        loop {
            let frame = self.tap.receive_within(PATIENCE)?.context("nothing arrives at the tap")?;
            // The edge has more to say there, such as multicast of its own.
            if frame.starts_with(&MAC) {
                frames::assert_checksums(&frame);
                return Ok(frames::ends(&frame));
            }
        }
    }

    /// The virtual machine answers.
    fn answer(&self, from: SocketAddr, to: SocketAddr) -> Result<()> {
        let mut frame = PacketSpec::udp(from, to).frame();
        frame[..6].copy_from_slice(&self.lab.edge.mac("tap0")?);
        frame[6..12].copy_from_slice(&MAC);
        self.tap.send(&frame)
    }
}

fn xdp_redirects_to_a_tap(mode: &str) -> Result<()> {
    let edge = Edge::new(mode)?;
    // Sees what XDP has not redirected, before tc does.
    let stack = RawSocket::open(&edge.lab.edge, "front")?;
    let clients = [(address::VIP_V4, address::CLIENT_V4), (address::VIP_V6, address::CLIENT_V6)];
    for ((vip, client), (subnet, _)) in std::iter::zip(clients, SUBNETS) {
        let (vip, backend) = (udp_vip(vip), format!("{subnet}2").parse::<IpAddr>()?);
        let socket = edge.lab.client.enter(|| bind_new(client))??;
        // It takes nothing from anybody else.
        socket.connect(vip)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let start = Instant::now();
        for round in 0..ROUNDS {
            socket.send(b"ping")?;
            let (from, to) = edge.arrives()?;
            assert_eq!((from, to), (socket.local_addr()?, SocketAddr::new(backend, 53)));
            if round % 10 == 0 {
                edge.answer(to, from)?;
                let mut answer = [0; 16];
                assert_eq!(socket.recv(&mut answer)?, 4, "from the VIP");
            }
            std::thread::sleep(PAUSE);
        }
        let mut by_stack = 0;
        while let Some(frame) = stack.receive_within(Duration::ZERO)? {
            let is_ipv4 = frame[12..14] == [8, 0];
            if (is_ipv4 || frame[12..14] == [0x86, 0xdd]) && frame[if is_ipv4 { 23 } else { 20 }] == 17 {
                by_stack += usize::from(frames::ends(&frame).1 == vip);
            }
        }
        println!("{mode}, {vip}: {by_stack} of {ROUNDS} left to tc");
        // Now and then one that shows the kernel that the neighbour is in use: every four ticks of 64 jiffies, which are
        // 256 ms where jiffies are shortest.
        let most = 3 + (start.elapsed().as_millis() / 256) as usize;
        assert!(
            (1..=most).contains(&by_stack),
            "{by_stack} of {ROUNDS} to {vip} were left to tc, expected at most {most}"
        );
    }
    Ok(())
}

#[test]
fn native_xdp_redirects_to_a_tap_without_a_program() -> Result<()> {
    xdp_redirects_to_a_tap("native")
}

#[test]
fn generic_xdp_redirects_to_a_tap_without_a_program() -> Result<()> {
    xdp_redirects_to_a_tap("generic")
}
