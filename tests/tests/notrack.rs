//! The rules that `bgctl doctor --notrack` prints, in nftables as the kernel has it: conntrack stays away from packets between
//! clients and backends that go by the edge's own stack, so that a stateful firewall does not take them for invalid.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Bgctl, Fabric, Lab, Ready, address,
    config::{http_vip, shop, udp_vip},
    load::Echo,
};
use serde_json::Value;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
const PATIENCE: Duration = Duration::from_secs(2);

fn ask(lab: &Lab, server: SocketAddr) -> Result<()> {
    let mut stream = lab.client.enter(|| TcpStream::connect_timeout(&server, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// What conntrack knows on the edge of packets from or to backends.
fn tracked(lab: &Lab) -> Result<Vec<String>> {
    let all = lab.edge.enter(|| fs::read_to_string("/proc/thread-self/net/nf_conntrack"))??;
    let backends: Vec<String> = lab
        .backends
        .iter()
        .flat_map(|backend| backend.addresses)
        .map(|address| match address {
            IpAddr::V4(address) => format!("={address} "),
            // As it is written there.
            IpAddr::V6(address) => {
                format!("={} ", address.segments().map(|word| format!("{word:04x}")).join(":"))
            }
        })
        .collect();
    let of_backend = |line: &&str| backends.iter().any(|address| line.contains(address.as_str()));
    Ok(all.lines().filter(of_backend).map(str::to_owned).collect())
}

/// What the doctor says of the firewall.
fn firewall(bgctl: &Bgctl, config: &str) -> Result<Value> {
    let output = bgctl.try_run(&["--json", "doctor", "-c", config, "front"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let mut findings = report["findings"].as_array().into_iter().flatten();
    findings.find(|finding| finding["check"] == "firewall").cloned().with_context(|| format!("{report}"))
}

#[test]
fn the_printed_rules_keep_conntrack_away_from_what_goes_by_the_stack() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    // The edge's stack fragments what is too big for the way to a backend, because the client lets it.
    lab.edge.ip("link set back mtu 1480")?;
    lab.client.sysctl("ipv4/ip_no_pmtu_disc", "1")?;
    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, "tc", &config)?;
    let (lab, bgctl) = (&ready.lab, &ready.bgctl);
    let config = bgctl.write_config(&config)?;
    // Replies go by the stack now, and so does what is too big.
    bgctl.run(&["detach", "back"])?;
    lab.edge.sysctl("netfilter/nf_conntrack_udp_timeout", "3")?;
    let big = "x".repeat(1460);

    lab.edge.run("nft add table inet f")?;
    lab.edge.run("nft add chain inet f forward { type filter hook forward priority 0 ; policy accept ; }")?;
    lab.edge.run("nft add rule inet f forward ct state invalid counter drop")?;
    assert!(ask(lab, http_vip(VIPS[0])).is_err(), "the answer to a SYN that conntrack has not seen is invalid");
    for vip in VIPS {
        Echo::open(&lab.client, udp_vip(vip))?.ask("who?")?;
    }
    Echo::open(&lab.client, udp_vip(VIPS[0]))?.send(&big)?;
    let start = Instant::now();
    while tracked(lab)?.len() < 3 {
        ensure!(start.elapsed() < PATIENCE, "conntrack sees nothing of what goes by the stack: {:?}", tracked(lab)?);
    }
    let finding = firewall(bgctl, &config)?;
    assert!(finding["level"] == "warn" && finding["message"].to_string().contains("ct state invalid"), "{finding}");

    let rules = bgctl.run(&["doctor", "-c", &config, "--notrack"])?;
    let file = lab.sandbox.dir().join("notrack.nft");
    fs::write(&file, rules)?;
    let load = format!("nft --file {}", file.display());
    lab.edge.run(&load)?;
    lab.edge.run(&load).context("they replace those of an earlier time")?;
    // What is tracked already is forgotten.
    let start = Instant::now();
    while !tracked(lab)?.is_empty() {
        ensure!(start.elapsed() < Duration::from_secs(20), "{:?}", tracked(lab)?);
        thread::sleep(Duration::from_millis(100));
    }

    let too_big = || -> Result<u64> {
        let events = bgctl.json(&["status"])?["events"].clone();
        events["too_big"].as_u64().with_context(|| format!("{events}"))
    };
    let before = too_big()?;
    for vip in VIPS {
        ask(lab, http_vip(vip)).with_context(|| format!("{vip}"))?;
        Echo::open(&lab.client, udp_vip(vip))?.ask("who?")?;
    }
    Echo::open(&lab.client, udp_vip(VIPS[0]))?.send(&big)?;
    let start = Instant::now();
    while too_big()? == before {
        ensure!(start.elapsed() < PATIENCE, "the big datagram has not gone by the stack");
    }
    thread::sleep(Duration::from_millis(100));
    assert_eq!(tracked(lab)?, [""; 0]);
    let finding = firewall(bgctl, &config)?;
    assert_eq!(finding["level"], "ok", "{finding}");
    Ok(())
}
