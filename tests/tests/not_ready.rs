//! Testers and the preview address meet an idle colour that is not ready: without a backend for new flows. They are refused at
//! once, and nothing of theirs reaches the live colour (invariant 6). No configuration can bring that about (invariant 7), so the test takes the
//! tables away by itself.

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use bg_common::{Colour, ServiceKey, ServiceRow};
use bg_tests::{
    Fabric, Lab, Offloads, Ready, address,
    config::{DEPLOYMENT, PREVIEW_PORT, http_vip, shop, udp_vip},
    load::{Connection, Echo},
};
use serde_json::Value;
use std::{
    io::{Error, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// User, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];

/// Takes away the Maglev tables of a colour of the deployment under test, which is the second one. Returns the rows as they were.
fn take_tables(ready: &Ready, colour: Colour) -> Result<Vec<(ServiceKey, ServiceRow)>> {
    let mut services = services(ready)?;
    let rows = services.iter().collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<_> = rows.into_iter().filter(|(_, row)| row.deployment == 1).collect();
    assert_eq!(rows.len(), 6, "two services and a preview address of each family");
    for (key, mut row) in rows.iter().copied() {
        row.tables[colour as usize].len = 0;
        services.insert(key, row, 0)?;
    }
    Ok(rows)
}

fn services(ready: &Ready) -> Result<HashMap<MapData, ServiceKey, ServiceRow>> {
    let pin = ready.lab.sandbox.pin_root().join("maps/services");
    Ok(MapData::from_pin(pin).and_then(Map::from_map_data)?.try_into()?)
}

/// Asserts that a connection is refused, not timed out.
fn is_refused(ready: &Ready, from: IpAddr, to: SocketAddr) -> Result<()> {
    let error = Connection::open_from(&ready.lab.client, SocketAddr::new(from, 0), to).err();
    let error = error.with_context(|| format!("{from} has reached {to}"))?;
    let kind = error.root_cause().downcast_ref::<Error>().map(Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused), "{error:#}");
    Ok(())
}

fn packets_of_blue(deployment: &Value) -> Vec<Option<u64>> {
    let services = deployment["services"].as_array().into_iter().flatten();
    services.map(|service| service["blue"]["packets"].as_u64()).collect()
}

fn testers_are_refused_until_green_is_ready(lab: Lab, attach_mode: &str, mode: &str) -> Result<()> {
    let config = shop(&lab, mode, "");
    let ready = Ready::with(lab, attach_mode, &config)?;
    let (client, bgctl) = (&ready.lab.client, &ready.bgctl);
    let rows = take_tables(&ready, Colour::Green)?;
    let before = bgctl.deployment(DEPLOYMENT)?;
    for [user, tester, vip] in ENDS {
        is_refused(&ready, tester, http_vip(vip))?;
        is_refused(&ready, tester, SocketAddr::new(vip, PREVIEW_PORT))?;
        is_refused(&ready, user, SocketAddr::new(vip, PREVIEW_PORT))?;
        let echo = client.enter(|| Echo::open_from(SocketAddr::new(tester, 0), udp_vip(vip)))??;
        echo.set_patience(Duration::from_millis(200))?;
        assert!(echo.ask("anybody there?").is_err(), "{tester}");
    }
    let after = bgctl.deployment(DEPLOYMENT)?;
    assert_eq!(packets_of_blue(&after), packets_of_blue(&before), "nothing of theirs has reached blue");
    assert_eq!(bgctl.json(&["status"])?["drops"]["idle_not_ready"], 8);
    let users = ENDS.map(|[.., vip]| (Connection::open(client, http_vip(vip)), Echo::open(client, udp_vip(vip))));
    for (connection, echo) in users {
        assert_eq!((connection?.colour()?, echo?.ask("hello")?.colour), ("blue".to_owned(), Colour::Blue));
    }

    let mut services = services(&ready)?;
    rows.iter().try_for_each(|(key, row)| services.insert(*key, *row, 0))?;
    let testers = ENDS.map(|[_, tester, vip]| {
        let from = SocketAddr::new(tester, 0);
        (Connection::open_from(client, from, http_vip(vip)), client.enter(|| Echo::open_from(from, udp_vip(vip))))
    });
    let mut open = Vec::new();
    for (connection, echo) in testers {
        let (connection, echo) = (connection?, echo??);
        assert_eq!((connection.colour()?, echo.ask("hello")?.colour), ("green".to_owned(), Colour::Green));
        open.push((connection, echo));
    }

    // Green becomes live, and blue is not ready for them: then they end at once too.
    bgctl.run(&["switch", DEPLOYMENT])?;
    take_tables(&ready, Colour::Blue)?;
    for ((connection, echo), [_, tester, vip]) in open.into_iter().zip(ENDS) {
        let error = connection.ask().expect_err("the connection was on the colour that is live now");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        is_refused(&ready, tester, http_vip(vip))?;
        echo.set_patience(Duration::from_millis(200))?;
        assert!(echo.ask("anybody there?").is_err());
    }
    ready.neighbour_is_undisturbed()
}

#[test]
fn testers_are_refused_until_green_is_ready_with_native_xdp() -> Result<()> {
    testers_are_refused_until_green_is_ready(Lab::wire(Fabric::Switch)?, "native", "nat")
}

#[test]
fn testers_are_refused_until_green_is_ready_with_generic_xdp_behind_a_router() -> Result<()> {
    testers_are_refused_until_green_is_ready(Lab::wire(Fabric::Router)?, "generic", "nat")
}

#[test]
fn testers_are_refused_until_green_is_ready_with_tc() -> Result<()> {
    testers_are_refused_until_green_is_ready(Lab::bridge()?, "tc", "nat")
}

#[test]
fn testers_are_refused_until_green_is_ready_between_zones() -> Result<()> {
    testers_are_refused_until_green_is_ready(Lab::zones(Offloads::Default)?, "tc", "local")
}
