//! What was opened before a drain-switch goes on over ten switches and ends on the colour it began on: an
//! iperf3 stream, a psql session inside a transaction, a WebSocket. What is opened after each switch is on
//! the new colour. `bgctl flows` and `ss` on the backends agree at each step.

mod iperf;
mod websocket;

use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    Backend, Bgctl, Fabric, Lab, POSTGRES, Postgres, Session,
    address::VIP_V4,
    config::{DEPLOYMENT, neighbour},
};
use iperf::Iperf;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};
use websocket::WebSocket;

const SWITCHES: u32 = 10;
const WEBSOCKET: u16 = 8081;
/// One for the stream that stays, one for those that come and go: a server takes one test at a time.
const IPERF: [u16; 2] = [5201, 5202];

/// One backend a colour, so that all connections of a program meet the same one.
fn config(backends: &[&Backend; 2]) -> String {
    let mut config = format!("[deployments.{DEPLOYMENT}]\non_switch = \"drain\"\n");
    for port in [POSTGRES, WEBSOCKET, IPERF[0], IPERF[1]] {
        let [blue, green] = backends.map(|backend| SocketAddr::new(backend.addresses[0], port));
        config += &format!(
            "[[deployments.{DEPLOYMENT}.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             blue = [\"{blue}\"]\ngreen = [\"{green}\"]\n",
            SocketAddr::new(VIP_V4, port)
        );
    }
    config
}

/// Established connections as `bgctl flows` has them: backend and client.
fn flows(bgctl: &Bgctl) -> Result<BTreeSet<(String, String)>> {
    let answer = bgctl.json(&["flows"])?;
    let flows = answer["flows"].as_array().with_context(|| format!("expected a list of flows, got {answer}"))?;
    let established = flows.iter().filter(|flow| flow["state"] == "established");
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(established.map(|flow| (word(&flow["backend"]), word(&flow["client"]))).collect())
}

/// Established connections as the backends have them: their address and the client's.
fn sockets(backends: &[&Backend; 2]) -> Result<BTreeSet<(String, String)>> {
    let mut sockets = BTreeSet::new();
    for backend in backends {
        for line in backend.namespace.run("ss -H -t -n -4 state established")?.lines() {
            let mut words = line.split_whitespace().skip(2).map(str::to_owned);
            sockets.extend(words.next().zip(words.next()));
        }
    }
    Ok(sockets)
}

/// Waits until both say the same: what has just been closed is on its way out for a moment.
fn flows_and_sockets_agree(bgctl: &Bgctl, backends: &[&Backend; 2]) -> Result<BTreeSet<(String, String)>> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let (flows, sockets) = (flows(bgctl)?, sockets(backends)?);
        if flows == sockets {
            return Ok(flows);
        }
        assert!(Instant::now() < end, "bgctl flows: {flows:#?}\nss: {sockets:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn open_connections_stay(lab: &Lab, mode: &str) -> Result<()> {
    let of = |colour| lab.backends.iter().find(|backend| backend.colour == colour).context("no such backend");
    let backends = [of(Colour::Blue)?, of(Colour::Green)?];
    let _databases = backends.iter().map(|backend| Postgres::start(lab, backend)).collect::<Result<Vec<_>>>()?;
    let _sockets = backends.iter().map(|backend| websocket::serve(backend)).collect::<Result<Vec<_>>>()?;
    let ports = backends.iter().flat_map(|backend| IPERF.map(|port| (backend, port)));
    let _iperfs = ports.map(|(backend, port)| iperf::serve(backend, port)).collect::<Result<Vec<_>>>()?;
    let bgctl = lab.bgctl()?;
    bgctl.run(&[&["attach", "--mode", mode], lab.interfaces.as_slice()].concat())?;
    bgctl.apply(&(neighbour(lab, "nat") + &config(&backends)))?;

    let mut stream = Iperf::start(lab, VIP_V4, IPERF[0])?;
    let mut transaction = Session::open(lab, VIP_V4)?;
    transaction.run("BEGIN")?;
    transaction.run("CREATE TEMPORARY TABLE steps (step int)")?;
    let mut websocket = WebSocket::open(lab, VIP_V4)?;
    assert_eq!(websocket.ask("hello")?, "blue 0 hello");

    let mut live = Colour::Blue;
    for step in 1..=SWITCHES {
        bgctl.run(&["switch", DEPLOYMENT])?;
        live = live.other();

        transaction.run(&format!("INSERT INTO steps VALUES ({step})"))?;
        let seen = transaction.ask("SELECT count(*) || ' on ' || current_setting('cluster_name') FROM steps")?;
        assert_eq!(seen, format!("{step} on blue"), "the transaction that was open before");
        assert_eq!(websocket.ask("still there")?, format!("blue {step} still there"));
        stream.goes_on()?;

        let fresh = Session::open(lab, VIP_V4)?.ask("SELECT current_setting('cluster_name')")?;
        assert_eq!(fresh, live.name(), "a session opened after switch {step}");
        assert_eq!(WebSocket::open(lab, VIP_V4)?.ask("hello")?, format!("{} 0 hello", live.name()));
        iperf::reaches(lab, VIP_V4, IPERF[1], backends[live as usize])?;

        let open = flows_and_sockets_agree(&bgctl, &backends)?;
        let on_blue = open.iter().filter(|(backend, _)| backend.starts_with(&backends[0].addresses[0].to_string()));
        // Two of iperf3, which has one for its control; the transaction; the WebSocket.
        assert_eq!(on_blue.count(), 4, "{open:#?}");
        assert_eq!(open.len(), 4, "{open:#?}");
    }
    assert_eq!(transaction.ask("SELECT sum(step) FROM steps")?, (SWITCHES * (SWITCHES + 1) / 2).to_string());
    transaction.run("COMMIT")?;
    stream.goes_on()
}

#[test]
fn open_connections_stay_where_they_are_with_native_xdp() -> Result<()> {
    open_connections_stay(&Lab::wire(Fabric::Switch)?, "native")
}

#[test]
fn open_connections_stay_where_they_are_with_tc_before_a_bridge() -> Result<()> {
    open_connections_stay(&Lab::bridge()?, "tc")
}
