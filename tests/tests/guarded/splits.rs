//! Shares that divide flows, and shares that divide clients.

use crate::{FAMILIES, flows, new_flow};
use anyhow::{Context, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Ready, Setting,
    config::{DEPLOYMENT, shop, udp_vip},
    in_each_setting,
    load::Echo,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Addresses of the client in each family.
const HOSTS: u8 = 24;

/// The part of green among `[blue, green]`.
fn share_of_green([blue, green]: [u32; 2]) -> f64 {
    f64::from(green) / f64::from(blue + green).max(1.0)
}

fn a_split_by_flow_divides_the_flows_of_one_client(setting: Setting) -> Result<()> {
    let ready = setting.ready("")?;
    let bgctl = &ready.bgctl;
    for mut flows in flows() {
        bgctl.run(&["split", DEPLOYMENT, "--green", "30"])?;
        let mut answers = [0; 2];
        for _ in 0..400 {
            answers[new_flow(&ready, &mut flows)?.0 as usize] += 1;
        }
        ensure!((share_of_green(answers) - 0.3).abs() < 0.12, "{answers:?}");
        let measured = bgctl.deployment(DEPLOYMENT)?["green_share_measured"].as_f64().context("a share")?;
        ensure!((measured - share_of_green(answers)).abs() < 0.001, "{measured}, {answers:?}");
        bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_split_by_flow_divides_the_flows_of_one_client);

/// The colour of a new flow from this end.
fn colour_for(ready: &Ready, from: SocketAddr, vip: IpAddr) -> Result<Colour> {
    let flow = ready.lab.client.enter(|| Echo::open_from(from, udp_vip(vip)))?;
    Ok(flow.context("an address of the client")?.ask("which")?.colour)
}

/// The option for one family, and the configuration for the other.
fn a_split_by_client_shows_each_client_one_colour_and_a_larger_one_takes_nobody_back(setting: Setting) -> Result<()> {
    const PREFIX: &str = "sticky_prefix = { ipv4 = 32, ipv6 = 128 }";
    let ready = setting.ready(PREFIX)?;
    let (bgctl, client) = (&ready.bgctl, &ready.lab.client);
    for ((vip, first), by) in FAMILIES.into_iter().zip([&["--by", "client"][..], &[]]) {
        if by.is_empty() {
            bgctl.apply(&shop(&ready.lab, setting.service_mode(), &format!("sticky = \"client\"\n{PREFIX}")))?;
        }
        for host in 0..HOSTS {
            let (address, length) = (beside(first, host), if first.is_ipv4() { "24" } else { "64 nodad" });
            client.ip(&format!("address add {address}/{length} dev eth0"))?;
        }
        let mut before = BTreeMap::new();
        let mut ports = 2000..;
        for percent in ["20", "55.5", "90"] {
            let split = bgctl.json(&[&["split", DEPLOYMENT, "--green", percent], by].concat())?;
            ensure!(split["to"]["generation"].as_u64() > split["from"]["generation"].as_u64(), "{split}");
            for address in (0..HOSTS).map(|host| beside(first, host)) {
                let ends = ports.by_ref().take(3).map(|port| SocketAddr::new(address, port));
                let colours = ends.map(|from| colour_for(&ready, from, vip)).collect::<Result<Vec<_>>>()?;
                ensure!(colours.iter().all(|colour| *colour == colours[0]), "{address}: {colours:?}");
                let seen = before.insert(address, colours[0]);
                ensure!(seen.is_none_or(|seen| seen <= colours[0]), "{address} went back at {percent} %");
            }
        }
        let green = before.values().filter(|colour| **colour == Colour::Green).count();
        ensure!(green > 12, "90 % of {HOSTS} clients are {green}");
        let status = bgctl.deployment(DEPLOYMENT)?;
        ensure!(status["phase"] == "split" && status["green_share"] == 0.9, "{status}");
        ensure!(status["green_share_measured"].as_f64().is_some_and(|share| share > 0.5), "{status}");
        // A switch out of a split is one.
        let whole = bgctl.json(&["switch", DEPLOYMENT, "green"])?;
        ensure!(whole["changed"] == true && bgctl.deployment(DEPLOYMENT)?["green_share"] == 1.0, "{whole}");
        let back = bgctl.json(&["switch", DEPLOYMENT, "blue"])?;
        ensure!(back["changed"] == true, "{back}");
    }
    a_ramp_takes_no_client_back(&ready)?;
    ready.neighbour_is_undisturbed()
}

/// The clients move one after the other, until all are on green.
fn a_ramp_takes_no_client_back(ready: &Ready) -> Result<()> {
    ready.bgctl.run(&["switch", DEPLOYMENT, "green", "--ramp", "1s"])?;
    let (mut before, start) = (BTreeMap::new(), Instant::now());
    for port in 30_000.. {
        for (vip, first) in FAMILIES {
            for address in (0..HOSTS).map(|host| beside(first, host)) {
                let colour = colour_for(ready, SocketAddr::new(address, port), vip)?;
                let seen = before.insert(address, colour);
                ensure!(seen.is_none_or(|seen| seen <= colour), "{address} went back");
            }
        }
        if before.values().all(|colour| *colour == Colour::Green) {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "not all are on green: {before:?}");
    }
    Ok(())
}

in_each_setting!(a_split_by_client_shows_each_client_one_colour_and_a_larger_one_takes_nobody_back);

/// Another address of the client, which it has to have.
fn beside(first: IpAddr, host: u8) -> IpAddr {
    match first {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 100 + host])
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] = 100 + host;
            IpAddr::from(octets)
        }
    }
}
