//! The edge itself as a client of a VIP that is an address of its own, as a health check or a cron job there is: packets leave
//! by the loopback interface, which bgctl is attached to, and answers come back by it.

use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    Lab, Ready, address,
    config::{DEPLOYMENT, http_vip, shop, udp_vip},
    load::Echo,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Which colour answers a request from the edge.
fn asks(ready: &Ready, server: SocketAddr) -> Result<String> {
    let mut stream = ready.lab.edge.enter(|| TcpStream::connect_timeout(&server, Duration::from_secs(2)))??;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split("\r\n\r\n").nth(1).context("no body")?;
    Ok(body.split(' ').next().unwrap_or_default().to_owned())
}

fn the_edge_is_answered(ready: &Ready) -> Result<()> {
    for vip in [address::VIP_V4, address::VIP_V6] {
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        ready.lab.edge.ip(&format!("address add {vip}/{prefix} dev lo"))?;
    }
    ready.lab.edge.ip("link set lo up")?;
    ready.bgctl.run(&["attach", "--mode", "tc", "lo"])?;
    for colour in [Colour::Blue, Colour::Green] {
        for vip in [address::VIP_V4, address::VIP_V6] {
            for round in 0..3 {
                assert_eq!(asks(ready, http_vip(vip))?, colour.name(), "TCP to {vip}");
                // The socket is connected, and takes nothing from another address.
                let echo = Echo::open(&ready.lab.edge, udp_vip(vip))?;
                assert_eq!(echo.ask(&format!("{round} of {vip}"))?.colour, colour);
            }
            let client = Echo::open(&ready.lab.client, udp_vip(vip))?;
            assert_eq!(client.ask("a client elsewhere")?.colour, colour);
        }
        ready.bgctl.run(&["switch", DEPLOYMENT])?;
    }
    Ok(())
}

#[test]
fn the_edge_reaches_machines_behind_native_xdp() -> Result<()> {
    the_edge_is_answered(&Ready::native("")?)
}

#[test]
fn the_edge_reaches_containers_behind_tc() -> Result<()> {
    let lab = Lab::bridge()?;
    let config = shop(&lab, "nat", "");
    the_edge_is_answered(&Ready::with(lab, "tc", &config)?)
}
