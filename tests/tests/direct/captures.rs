//! What leaves the edge, as tshark sees it: no bad checksum, no malformed packet, none too long.

use crate::stage::{SINK_PORT, Stage, VIPS, WAYS};
use anyhow::{Context, Result, ensure};
use bg_tests::{Fabric, HTTP_PORT, Lab, Process, UDP_PORT, load::Echo, load::Fresh, megabyte::MEGABYTE, run};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// A line about each frame of a capture that a filter selects.
fn frames(capture: &Path, filter: &str) -> Result<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/direct/gue.lua");
    let mut command = std::process::Command::new("tshark");
    command.arg("-r").arg(capture).arg("-X").arg(format!("lua_script:{}", script.display()));
    for protocol in ["ip", "tcp", "udp"] {
        command.arg("-o").arg(format!("{protocol}.check_checksum:TRUE"));
    }
    let text = bg_tests::output(command.args(["-Y", filter]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn a_megabyte(vip: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&vip, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut megabyte = vec![7; MEGABYTE];
    stream.write_all(&megabyte)?;
    Ok(stream.read_exact(&mut megabyte)?)
}

fn leaves_as_it_should(attach: &str) -> Result<()> {
    ensure!(run("which tshark").is_ok(), "tshark is missing: cargo xtask setup");
    let stage = Stage::of(Lab::wire(Fabric::Switch)?, attach)?;
    // A card without segmentation of its own: the kernel cuts what tc sends.
    stage.lab.edge.run("ethtool -K back tso off gso off")?;
    let switch = stage.lab.router().context("no switch")?;
    // What is captured shall not be merged before. A veth takes frames that are redirected to its peer without GRO, too, if it has XDP.
    let pins = stage.lab.sandbox.pin_root().join("uplink");
    switch.run(&format!(
        "{} decap attach uplink --from 192.0.2.99/32 --pin-root {}",
        stage.bgctl.program().display(),
        pins.display()
    ))?;
    switch.run("ethtool -K uplink gro off")?;
    for (mode, is_of_v6) in WAYS {
        stage.bgctl.apply(&stage.deployment("shop", &Stage::services(mode, is_of_v6)))?;
        let capture = stage.lab.sandbox.dir().join(format!("{mode}{is_of_v6:?}.pcap"));
        let mut command = switch.command("tshark");
        command.args(["-i", "uplink", "-q", "-w"]).arg(&capture).stdout(Stdio::null()).stderr(Stdio::null());
        let tshark = Process::spawn(&mut command)?;
        let start = Instant::now();
        // It writes a header once it listens.
        while fs::metadata(&capture).map_or(0, |file| file.len()) == 0 {
            ensure!(start.elapsed() < Duration::from_secs(20), "tshark does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        for vip in VIPS {
            let fresh = Fresh { clients: 2, pause: Duration::from_millis(1) }
                .start(&stage.lab.client, SocketAddr::new(vip, HTTP_PORT))?;
            fresh.wait_for(50)?;
            ensure!(fresh.finish()?.failures == 0);
            let echo = Echo::open(&stage.lab.client, SocketAddr::new(vip, UDP_PORT))?;
            for length in [1, 2, 1000, 1001, 1400] {
                echo.ask(&"x".repeat(length))?;
            }
            stage.lab.client.enter(|| a_megabyte(SocketAddr::new(vip, SINK_PORT)))??;
        }
        // What has passed is written once a second or so.
        let enough = || fs::metadata(&capture).map_or(0, |file| file.len()) > 2 * MEGABYTE as u64;
        while !enough() {
            ensure!(start.elapsed() < Duration::from_secs(40), "{mode}: too little was captured");
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(tshark);
        let bad = "ip.checksum.status == \"Bad\" || tcp.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\" || _ws.malformed";
        for wrong in [bad, "frame.len > 1514"] {
            let found = frames(&capture, wrong)?;
            let first = found.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n");
            ensure!(found.is_empty(), "{attach}, {mode}, {is_of_v6:?}: {} frames with {wrong}:\n{first}", found.len());
        }
        let good = match (mode, is_of_v6) {
            ("l2dsr", _) => "tcp.checksum.status == \"Good\" && tcp.dstport == 9000",
            ("ipip", Some(false)) => "(ip.proto == 4 || ip.proto == 41) && tcp.checksum.status == \"Good\"",
            ("ipip", _) => "(ipv6.nxt == 4 || ipv6.nxt == 41) && tcp.checksum.status == \"Good\"",
            (_, Some(false)) => "bggue && tcp.checksum.status == \"Good\"",
            // Of segments that the kernel has cut the outer checksum is zero.
            _ if attach == "tc" => "bggue && tcp.checksum.status == \"Good\" && ipv6",
            _ => "bggue && tcp.checksum.status == \"Good\" && udp.checksum.status == \"Good\"",
        };
        let good = frames(&capture, good)?.len();
        ensure!(good > 1000, "{attach}, {mode}, {is_of_v6:?}: {good} good ones");
        println!("{attach}, {mode}, {is_of_v6:?}: {good} segments, none bad");
    }
    Ok(())
}

#[test]
fn what_native_xdp_sends_is_right_to_the_bit() -> Result<()> {
    leaves_as_it_should("native")
}

#[test]
fn what_generic_xdp_sends_is_right_to_the_bit() -> Result<()> {
    leaves_as_it_should("generic")
}

#[test]
fn what_tc_sends_is_right_to_the_bit() -> Result<()> {
    leaves_as_it_should("tc")
}
