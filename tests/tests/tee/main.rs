//! Services in mode `tee`: both environments get what clients send, and clients depend on one of them.

mod client;
mod kept;
mod recorder;

use anyhow::{Context, Result, ensure};
use bg_tests::{Bgctl, Controller, Fabric, Lab, Offloads, address};
use client::{Connection, Seen, body, load};
use recorder::{Recorder, all};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const SHOP_PORT: u16 = 8080;
const WIKI_PORT: u16 = 8081;
const PREVIEW_PORT: u16 = 9080;

fn is_full() -> bool {
    std::env::var_os("BG_TEST_FULL").is_some()
}

/// A deployment with one service.
fn deployment(lab: &Lab, name: &str, vip: IpAddr, port: u16, keys: &str) -> String {
    let family = usize::from(vip.is_ipv6());
    let backends = |colour: &str| {
        let of = lab.backends.iter().filter(|backend| backend.colour.name() == colour);
        let addresses = of.map(|backend| format!("\"{}\"", SocketAddr::new(backend.addresses[family], port)));
        addresses.collect::<Vec<_>>().join(", ")
    };
    format!(
        "[deployments.{name}]\ntesters = [\"{}\", \"{}\"]\n[[deployments.{name}.services]]\nname = \"web\"\nvip = \"{}\"\n\
         preview = \"{}\"\nprotocol = \"tcp\"\nmode = \"tee\"\nblue = [{}]\ngreen = [{}]\n{keys}\n",
        address::TESTER_V4,
        address::TESTER_V6,
        SocketAddr::new(vip, 80),
        SocketAddr::new(vip, PREVIEW_PORT),
        backends("blue"),
        backends("green")
    )
}

/// A lab with the controller, which listens.
struct Teed {
    controller: Controller,
    bgctl: Bgctl,
    lab: Lab,
}

impl Teed {
    fn start(lab: Lab, mode: &str, config: &str) -> Result<Self> {
        let bgctl = lab.bgctl()?;
        bgctl.run(&[&["attach", "--mode", mode], lab.interfaces.as_slice()].concat())?;
        bgctl.apply(config)?;
        let controller = Self::serve(&bgctl, config)?;
        Ok(Self { controller, bgctl, lab })
    }

    fn serve(bgctl: &Bgctl, config: &str) -> Result<Controller> {
        let controller = Controller::start(bgctl)?;
        let end = Instant::now() + Duration::from_secs(10);
        let services = config.matches("mode = \"tee\"").count();
        while controller.log()?.matches("listens for connections").count() < 2 * services {
            ensure!(Instant::now() < end, "it does not listen: {}", controller.log()?);
            thread::sleep(Duration::from_millis(10));
        }
        Ok(controller)
    }

    /// Ends the controller, and returns what it has counted of a deployment.
    fn counts(self, deployment: &str) -> Result<BTreeMap<String, u64>> {
        self.controller.signal(libc::SIGTERM)?;
        let Self { mut controller, .. } = self;
        controller.wait(Duration::from_secs(10))?.context("the controller ends")?;
        let log = controller.log()?;
        let line = log.lines().filter(|line| line.contains("fed both colours"));
        let of_deployment = line.map(|line| Ok(serde_json::from_str::<serde_json::Value>(line)?));
        for value in of_deployment.collect::<Result<Vec<_>>>()? {
            let fields = if value["fields"].is_object() { &value["fields"] } else { &value };
            if fields["deployment"] == deployment {
                return Ok(serde_json::from_str(fields["counts"].as_str().context("counts")?)?);
            }
        }
        anyhow::bail!("no counts of {deployment}: {log}")
    }

    /// The recorders of both deployments, by colour.
    fn listener(&self, deployment: &str, colour: &str) -> Result<SocketAddr> {
        let status = self.bgctl.deployment(deployment)?;
        let listener = &status["services"][0]["listen"][colour];
        Ok(listener.as_str().with_context(|| format!("no listener: {status}"))?.parse()?)
    }
}

/// A recorder for each backend, at this port.
fn recorders(lab: &Lab, port: u16, proxy_protocol: bool) -> Result<Vec<Recorder>> {
    lab.backends.iter().map(|backend| Recorder::start(&lab.sandbox, backend, port, proxy_protocol)).collect()
}

/// Blue's and green's.
fn by_colour(recorders: &[Recorder]) -> [Vec<&Recorder>; 2] {
    let (blue, green) = recorders.split_at(2);
    [blue.iter().collect(), green.iter().collect()]
}

/// Waits until both colours have noted every request, and proves that each is what the client has sent.
fn both_have(recorders: &[Recorder], seen: &Seen, first: u64, count: u64, has_names: bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    for (colour, of_colour) in ["blue", "green"].into_iter().zip(by_colour(recorders)) {
        let noted = loop {
            let noted = all(&of_colour)?;
            if noted.len() as u64 >= count || Instant::now() > end {
                break noted;
            }
            thread::sleep(Duration::from_millis(50));
        };
        let missing: Vec<_> = (first..first + count).filter(|number| !noted.contains_key(number)).take(5).collect();
        ensure!(noted.len() as u64 == count, "{colour} has {} of {count}, not {missing:?}", noted.len());
        for number in first..first + count {
            let noted = noted.get(&number).with_context(|| format!("{colour} has no {number}"))?;
            ensure!(noted.body == body(number), "{colour} has another body of {number}: {}", noted.body);
            let (_, name) = &seen.answers[&number];
            ensure!(!has_names || noted.client == *name, "{colour}: {number} came from {}, not {name}", noted.client);
        }
    }
    Ok(())
}

/// Two deployments of two families, one with the PROXY protocol, under load while both are switched.
fn feeds_both(lab: Lab, mode: &str) -> Result<()> {
    let count = if is_full() { 100_000 } else { 2_000 };
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "proxy_protocol = \"v2\"")
        + &deployment(&lab, "wiki", address::VIP_V6, WIKI_PORT, "");
    let (shop, wiki) = (recorders(&lab, SHOP_PORT, true)?, recorders(&lab, WIKI_PORT, false)?);
    let teed = Teed::start(lab, mode, &config)?;
    let is_over = AtomicBool::new(false);
    let never = AtomicBool::new(false);
    let (first, second) = (1_u64, 1_000_001_u64);
    // So that there are some switches.
    let pause = Duration::from_millis(if is_full() { 0 } else { 5 });
    let (shop_seen, wiki_seen, switches) = thread::scope(|scope| {
        let vips = [address::VIP_V4, address::VIP_V6].map(|vip| SocketAddr::new(vip, 80));
        let clients = &teed.lab.client;
        let never = &never;
        let shop = scope.spawn(move || load(clients, vips[0], first, count, pause, never));
        let wiki = scope.spawn(move || load(clients, vips[1], second, count, pause, never));
        let switcher = scope.spawn(|| -> Result<u64> {
            let mut switches = 0;
            while !is_over.load(Ordering::Relaxed) {
                teed.bgctl.run(&["switch", ["shop", "wiki"][switches as usize % 2]])?;
                switches += 1;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(switches)
        });
        let (shop, wiki) = (shop.join(), wiki.join());
        is_over.store(true, Ordering::Relaxed);
        (shop, wiki, switcher.join())
    });
    let join = |seen: thread::Result<Result<Seen>>| seen.map_err(|_| anyhow::anyhow!("a client panicked"))?;
    let (shop_seen, wiki_seen) = (join(shop_seen)?, join(wiki_seen)?);
    let switches = switches.map_err(|_| anyhow::anyhow!("the switcher panicked"))??;
    for seen in [&shop_seen, &wiki_seen] {
        ensure!(seen.failures.is_empty(), "{:?}", seen.failures);
        ensure!(seen.answers.len() as u64 == count);
        for colour in ["blue", "green"] {
            let answered = seen.answers.values().filter(|(who, _)| who.starts_with(colour)).count();
            ensure!(switches < 3 || answered > 0, "{colour} has answered nothing in {switches} switches");
        }
    }
    both_have(&shop, &shop_seen, first, count, true)?;
    both_have(&wiki, &wiki_seen, second, count, false)?;
    println!("{count} requests each, {switches} switches, longest {:?} and {:?}", shop_seen.longest, wiki_seen.longest);
    let counts = teed.counts("shop")?;
    let lost: u64 =
        ["foreign", "no_backend", "copy_no_backend", "copy_slow", "copy_reset"].map(|of| counts[of]).iter().sum();
    ensure!(lost == 0 && counts["copied"] == counts["accepted"], "{counts:?}");
    Ok(())
}

#[test]
fn both_environments_get_every_request_while_traffic_is_switched() -> Result<()> {
    feeds_both(Lab::wire(Fabric::Switch)?, "native")
}

#[test]
fn both_environments_get_every_request_between_zones() -> Result<()> {
    feeds_both(Lab::zones(Offloads::Default)?, "tc")
}

#[test]
fn no_client_notices_that_the_idle_environment_stops_or_dies() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    let recorders = recorders(&lab, SHOP_PORT, false)?;
    let teed = Teed::start(lab, "native", &config)?;
    let stop = AtomicBool::new(false);
    let vip = SocketAddr::new(address::VIP_V4, 80);
    let seen = thread::scope(|scope| -> Result<Seen> {
        let client = &teed.lab.client;
        let stop = &stop;
        let load = scope.spawn(move || load(client, vip, 1, u64::MAX / 2, Duration::from_millis(5), stop));
        let trouble = || -> Result<()> {
            let [_, green] = by_colour(&recorders);
            let pause = || thread::sleep(Duration::from_millis(1500));
            pause();
            green.iter().try_for_each(|idle| idle.signal(libc::SIGSTOP))?;
            pause();
            green.iter().try_for_each(|idle| idle.signal(libc::SIGCONT))?;
            pause();
            green.iter().try_for_each(|idle| idle.signal(libc::SIGKILL))?;
            pause();
            Ok(())
        };
        let troubled = trouble();
        stop.store(true, Ordering::Relaxed);
        let seen = load.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        troubled.and(seen)
    })?;
    ensure!(seen.failures.is_empty(), "{:?}", seen.failures);
    ensure!(
        seen.answers.len() > 500 && seen.longest < Duration::from_secs(2),
        "{} {:?}",
        seen.answers.len(),
        seen.longest
    );
    ensure!(seen.answers.values().all(|(who, _)| who.starts_with("blue")));
    let [blue, _] = by_colour(&recorders);
    let noted = all(&blue)?;
    ensure!(seen.answers.keys().all(|number| noted.get(number).is_some_and(|noted| noted.body == body(*number))));
    println!("{} requests, longest {:?}", seen.answers.len(), seen.longest);
    let counts = teed.counts("shop")?;
    ensure!(counts["copy_no_backend"] > 0, "{counts:?}");
    ensure!(counts["no_backend"] + counts["foreign"] + counts["too_many"] == 0, "{counts:?}");
    Ok(())
}

#[test]
fn what_is_tested_never_reaches_the_live_environment() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "")
        + &deployment(&lab, "wiki", address::VIP_V6, WIKI_PORT, "proxy_protocol = \"v2\"");
    let (shop, wiki) = (recorders(&lab, SHOP_PORT, false)?, recorders(&lab, WIKI_PORT, true)?);
    let teed = Teed::start(lab, "native", &config)?;
    for (deployment, recorders, vip, tester) in
        [("shop", &shop, address::VIP_V4, address::TESTER_V4), ("wiki", &wiki, address::VIP_V6, address::TESTER_V6)]
    {
        let preview = SocketAddr::new(vip, PREVIEW_PORT);
        let vip = SocketAddr::new(vip, 80);
        let asked = teed.lab.client.enter(|| -> Result<()> {
            for number in 0..40 {
                let mut connection =
                    if number % 2 == 0 { Connection::open(preview)? } else { Connection::open_from(tester, vip)? };
                let answer = connection.ask(number)?;
                ensure!(answer.starts_with("green"), "{number}: {answer}");
            }
            Ok(())
        });
        asked??;
        // Past the virtual address, nobody gets to either environment.
        for colour in ["blue", "green"] {
            let listener = teed.listener(deployment, colour)?;
            let answer = teed.lab.client.enter(|| Connection::open(listener)?.ask(1000))?;
            ensure!(answer.is_err(), "{colour}: {answer:?}");
            let answer = teed.lab.edge.enter(|| Connection::open(listener)?.ask(1001))?;
            ensure!(answer.is_err(), "{colour}: {answer:?}");
        }
        // A user, whose request tells that nothing else comes any more.
        teed.lab.client.enter(|| Connection::open(vip)?.ask(50))??;

        // Tests that go on when their environment goes live end there.
        let still = teed.lab.client.enter(|| -> Result<_> {
            let mut open = [Connection::open(preview)?, Connection::open_from(tester, vip)?];
            open.iter_mut().zip(60..).try_for_each(|(open, number)| open.ask(number).map(drop))?;
            Ok(open)
        })??;
        teed.bgctl.run(&["switch", deployment])?;
        for (mut open, number) in still.into_iter().zip(70..) {
            ensure!(open.ask(number).is_err(), "the data path, or the listener, has ended it");
        }
        teed.lab.client.enter(|| Connection::open(vip)?.ask(80))??;
        thread::sleep(Duration::from_millis(300));
        let [blue, green] = by_colour(recorders).map(|of_colour| all(&of_colour));
        let numbers = |noted: BTreeMap<u64, recorder::Noted>| noted.into_keys().collect::<Vec<_>>();
        ensure!(numbers(blue?) == [50, 80]);
        let expected: Vec<u64> = (0..40).chain([50, 60, 61, 80]).collect();
        let green = numbers(green?);
        ensure!(green == expected, "{green:?}");
    }
    let counts = teed.counts("shop")?;
    ensure!((counts["confined"], counts["copied"], counts["foreign"]) == (42, 2, 4), "{counts:?}");
    Ok(())
}

#[test]
fn without_the_controller_connections_end_and_new_ones_are_refused_until_it_is_back() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "");
    let _recorders = recorders(&lab, SHOP_PORT, false)?;
    let mut teed = Teed::start(lab, "native", &config)?;
    let vip = SocketAddr::new(address::VIP_V4, 80);
    let mut open = teed.lab.client.enter(|| Connection::open(vip))??;
    open.ask(1)?;
    teed.controller.signal(libc::SIGKILL)?;
    teed.controller.wait(Duration::from_secs(5))?;
    ensure!(open.ask(2).is_err());
    let start = Instant::now();
    let refused = teed.lab.client.enter(|| TcpStream::connect(vip))?;
    let error = refused.err().context("nobody listens")?;
    ensure!(
        error.kind() == std::io::ErrorKind::ConnectionRefused && start.elapsed() < Duration::from_secs(1),
        "{error}"
    );
    ensure!(teed.bgctl.live("shop")? == "blue");
    teed.controller = Teed::serve(&teed.bgctl, &config)?;
    let answer = teed.lab.client.enter(|| Connection::open(vip)?.ask(3))??;
    ensure!(answer.starts_with("blue"), "{answer}");
    // Another name disturbs no connection.
    let mut open = teed.lab.client.enter(|| Connection::open(vip))??;
    open.ask(7)?;
    teed.bgctl.apply(&config.replace("name = \"web\"", "name = \"front\""))?;
    thread::sleep(Duration::from_secs(2));
    open.ask(8)?;
    // A service that is added is served too, and one that is removed no longer.
    let both = config.clone() + &deployment(&teed.lab, "wiki", address::VIP_V6, SHOP_PORT, "");
    teed.bgctl.apply(&both)?;
    let wiki = SocketAddr::new(address::VIP_V6, 80);
    let end = Instant::now() + Duration::from_secs(5);
    while teed.lab.client.enter(|| Connection::open(wiki)?.ask(4))?.is_err() {
        ensure!(Instant::now() < end, "{}", teed.controller.log()?);
        thread::sleep(Duration::from_millis(20));
    }
    let listener = teed.listener("wiki", "blue")?;
    let mut open = teed.lab.client.enter(|| Connection::open(wiki))??;
    open.ask(5)?;
    teed.bgctl.apply(&config)?;
    ensure!(open.ask(6).is_err());
    let end = Instant::now() + Duration::from_secs(5);
    while teed.lab.edge.enter(|| TcpStream::connect(listener))?.is_ok() {
        ensure!(Instant::now() < end, "it still listens");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// HAProxy takes the header too, as nginx does in the other tests.
#[test]
fn haproxy_learns_the_clients_address() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = deployment(&lab, "shop", address::VIP_V4, SHOP_PORT, "proxy_protocol = \"v2\"")
        + &deployment(&lab, "wiki", address::VIP_V6, SHOP_PORT, "proxy_protocol = \"v2\"");
    let file = lab.sandbox.dir().join("haproxy.cfg");
    let mut processes = Vec::new();
    for backend in &lab.backends {
        let file = file.with_file_name(format!("haproxy-{}.cfg", backend.name));
        let binds =
            backend.addresses.map(|address| format!("  bind {} accept-proxy\n", SocketAddr::new(address, SHOP_PORT)));
        let binds = binds.concat();
        std::fs::write(
            &file,
            format!(
                "defaults\n  mode http\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\nfrontend f\n{binds}\
                 \x20 http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
            ),
        )?;
        let mut command = backend.namespace.command("haproxy");
        command.arg("-db").arg("-q").arg("-f").arg(&file);
        processes.push(bg_tests::Process::spawn(&mut command)?);
    }
    let teed = Teed::start(lab, "native", &config)?;
    for vip in [address::VIP_V4, address::VIP_V6] {
        let asked = teed.lab.client.enter(|| -> Result<(String, String)> {
            let mut connection = Connection::open(SocketAddr::new(vip, 80))?;
            Ok((connection.name()?, connection.ask(1)?))
        });
        let (name, answer) = asked??;
        ensure!(answer == format!("{name} {vip} 80"), "{answer}, not {name}");
    }
    Ok(())
}
