//! How long an answer takes through the tee, beside HAProxy as a TCP proxy on the same edge, to the same servers.

use crate::{SHOP_PORT, Teed, client::Connection, deployment};
use anyhow::{Context, Result};
use bg_tests::{Fabric, Lab, Namespace, Process, address};
use std::{
    net::SocketAddr,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

const HAPROXY_PORT: u16 = 7000;
const CLIENTS: u64 = 8;

/// Times of answers, sorted: over connections that stay, or over a new one for each request.
fn times(namespace: &Namespace, to: SocketAddr, stays: bool, long: Duration) -> Result<Vec<Duration>> {
    let all = Mutex::new(Vec::new());
    let work = |client: u64| -> Result<()> {
        namespace.adopt_thread()?;
        let end = Instant::now() + long;
        let (mut times, mut connection) = (Vec::new(), Connection::open(to)?);
        // Short bodies only.
        let mut number = 3 * client + 1;
        while Instant::now() < end {
            number += 3;
            let start = Instant::now();
            if !stays {
                connection = Connection::open(to)?;
            }
            connection.ask(number)?;
            times.push(start.elapsed());
            thread::sleep(Duration::from_millis(2));
        }
        all.lock().expect("no thread panics").append(&mut times);
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || work(client))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no thread panics"))
    })?;
    let mut all = all.into_inner().expect("no thread panics");
    all.sort();
    Ok(all)
}

#[test]
#[ignore = "measures: run it alone, with a release build of bgctl in $BGCTL"]
fn latency_beside_haproxy() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    let _servers = lab.servers()?;
    let file = lab.sandbox.dir().join("haproxy.cfg");
    let blue = lab.backends.iter().filter(|backend| backend.colour.name() == "blue");
    let servers = blue.map(|backend| format!("  server {} {}:{SHOP_PORT}\n", backend.name, backend.addresses[0]));
    std::fs::write(
        &file,
        format!(
            "global\n  nbthread 2\ndefaults\n  mode tcp\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\nlisten l\n\
             \x20 bind {}\n{}",
            SocketAddr::new(address::FRONT_V4, HAPROXY_PORT),
            servers.collect::<String>()
        ),
    )?;
    let mut command = lab.edge.command("haproxy");
    let _haproxy = Process::spawn(command.arg("-db").arg("-q").arg("-f").arg(&file))?;
    let teed = Teed::start(lab, "native", &config)?;
    let ways =
        [("haproxy", SocketAddr::new(address::FRONT_V4, HAPROXY_PORT)), ("tee", SocketAddr::new(address::VIP_V4, 80))];
    for stays in [true, false] {
        for round in 0..3 {
            for (name, to) in ways {
                let times = times(&teed.lab.client, to, stays, Duration::from_secs(5))?;
                let at = |part: f64| times.get((times.len() as f64 * part) as usize).context("too few answers");
                let how = if stays { "open connection" } else { "new connection" };
                println!(
                    "{how}, round {round}, {name}: {} answers, p50 {:?}, p99 {:?}, p99.9 {:?}",
                    times.len(),
                    at(0.5)?,
                    at(0.99)?,
                    at(0.999)?
                );
            }
        }
    }
    println!("{:?}", teed.counts("shop")?);
    Ok(())
}
