//! All backends of a colour are down: what is configured happens to new flows.

use crate::{at, at_once, detected, health, times};
use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{Answers, Controller, Fabric, Lab, Ready, Scripted, address::VIP_V4, load::Connection};
use std::{io::ErrorKind, net::SocketAddr, time::Instant};

const PORT: u16 = 8081;

#[test]
fn new_flows_go_on_or_are_refused_as_configured() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let colour = |colour: Colour| {
        let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
        of_colour.map(|backend| format!("\"{}\"", at(backend, PORT))).collect::<Vec<_>>().join(", ")
    };
    let service = |vip: SocketAddr, all_down: &str| {
        format!(
            "[[deployments.shop.services]]\nname = \"{all_down}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             blue = [{}]\ngreen = [{}]\nhealth = {{ kind = \"http\", all_down = \"{all_down}\", {} }}\n",
            colour(Colour::Blue),
            colour(Colour::Green),
            times()
        )
    };
    let [open, refuse] = [80, 81].map(|port| SocketAddr::new(VIP_V4, port));
    let config = service(open, "open") + &service(refuse, "refuse");
    let servers = lab.backends.iter().map(|backend| Scripted::start(backend, at(backend, PORT)));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let ready = Ready::with_others(lab, "native", &config)?;
    let _controller = Controller::start(&ready.bgctl)?;
    let maps = health(&ready)?;
    let blue = [0, 1].map(|nth| at(&ready.lab.backends[nth], PORT));
    for backend in &ready.lab.backends {
        maps.wait(at(backend, PORT), "up", std::time::Duration::from_secs(5))?;
    }
    let before = Connection::open(&ready.lab.client, refuse)?;

    let begin = Instant::now();
    servers[..2].iter().for_each(|server| server.answer(Answers::Error));
    for address in blue {
        detected(&maps, "a 500", address, "down", begin, at_once())?;
    }
    Connection::open(&ready.lab.client, open).context("all of them may be well")?;
    for _ in 0..20 {
        let error = Connection::open(&ready.lab.client, refuse).err().context("it has reached a dead backend")?;
        let kind = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{error:#}");
    }
    ensure!(ready.bgctl.json(&["status"])?["drops"]["all_down"] == 20, "all are counted");
    // Its backend may answer with the error that it has for everybody. That, too, is an answer.
    if let Err(error) = before.ask() {
        ensure!(error.to_string().starts_with("HTTP/1.1 500"), "an open connection goes on, but: {error}");
    }

    servers[0].answer(Answers::Well);
    maps.wait(blue[0], "up", std::time::Duration::from_secs(5))?;
    for _ in 0..20 {
        Connection::open(&ready.lab.client, refuse)?;
    }
    ensure!(ready.bgctl.json(&["status"])?["drops"]["all_down"] == 20, "no more");
    Ok(())
}
