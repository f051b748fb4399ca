//! No process needs to live (invariant 5): bgctl is killed by SIGKILL at random instants of what it does, then
//! the same command is run again and completes it. What is not concerned does not notice: flows that
//! are open and flows that are new are answered all the while, by the colour that is right.

use anyhow::{Context, Result, anyhow};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Chance, Fabric, Lab, NewFlows, Ready, UDP_PORT, address,
    config::{DEPLOYMENT, shop, udp_vip},
    load::Echo,
};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    ops::Range,
    os::unix::process::ExitStatusExt,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const ATTACH: [&str; 5] = ["attach", "front", "back", "--mode", "native"];
/// Port of the bystander's service at the VIP.
const BYSTANDER_PORT: u16 = 5300;
/// Port of the service that applies change at the VIP.
const CHANGING_PORT: u16 = 5400;

fn rounds() -> usize {
    if std::env::var_os("BG_TEST_FULL").is_some() { 200 } else { 12 }
}

/// Kills commands at random instants of the time that they take.
struct Killer {
    chance: Chance,
    takes: Duration,
    killed: usize,
    tried: usize,
    _expedited: ExpeditedSetting,
}

impl Killer {
    /// `undisturbed` is run once, for its duration.
    fn new(undisturbed: impl FnOnce() -> Result<()>) -> Result<Self> {
        let expedited = ExpeditedSetting::read();
        let start = Instant::now();
        undisturbed()?;
        let takes = start.elapsed();
        println!("undisturbed: {takes:?}");
        Ok(Self { chance: Chance::new(), takes, killed: 0, tried: 0, _expedited: expedited })
    }

    /// Starts the command and kills it, unless it was quicker; then runs it to its end.
    fn kill_and_repeat(&mut self, bgctl: &Bgctl, arguments: &[&str]) -> Result<String> {
        let mut command = bgctl.command(arguments);
        let (start, until) = (Instant::now(), self.chance.below(self.takes.mul_f64(1.1)));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        while child.try_wait()?.is_none() && start.elapsed() < until {
            thread::sleep(Duration::from_micros(100));
        }
        let took = start.elapsed();
        child.kill()?;
        self.tried += 1;
        if child.wait()?.signal().is_some() {
            self.killed += 1;
        } else {
            // The machine is not as busy as it was.
            self.takes = took;
        }
        bgctl.run(arguments).with_context(|| format!("round {}: the rerun of {arguments:?}", self.tried))
    }

    /// Asserts that there was something to complete.
    fn assert_was_deadly(&self) {
        println!("{} of {} were killed before they had ended", self.killed, self.tried);
        assert!(self.killed * 10 > self.tried, "{} of {} were killed", self.killed, self.tried);
    }
}

/// A bgctl that is killed while it waits for a grace period leaves the kernel expediting them. This puts
/// the setting back.
struct ExpeditedSetting(Option<String>);

impl ExpeditedSetting {
    const PATH: &str = "/sys/kernel/rcu_expedited";

    fn read() -> Self {
        Self(fs::read_to_string(Self::PATH).ok())
    }
}

impl Drop for ExpeditedSetting {
    fn drop(&mut self) {
        if let Some(setting) = &self.0 {
            // Not being allowed to write it means that bgctl was not either.
            let _ = fs::write(Self::PATH, setting);
        }
    }
}

/// Somebody whose service is blue all the while: one flow that stays, and new ones, one datagram under way at a time.
struct Bystander {
    /// Port of the service.
    port: u16,
    /// Ports of the flows; the first is that of the one that stays.
    from: Range<u16>,
    /// How often a backend of the service is removed. The flow that stays may have to move then. A datagram that is under
    /// way to this backend may stay without an answer; when it is sent again, it reaches another.
    removals: usize,
}

const UNCONCERNED: Bystander = Bystander { port: BYSTANDER_PORT, from: 50_000..54_000, removals: 0 };

impl Bystander {
    /// Asks until told to stop. Every answer must come, and from the colour.
    fn watch(&self, ready: &Ready, stop: &AtomicBool) -> Result<usize> {
        let server = SocketAddr::new(address::VIP_V4, self.port);
        // Nobody else shall come from our ports.
        ready.lab.client.sysctl("ipv4/ip_local_port_range", "1024 49999")?;
        let from = SocketAddr::new(address::CLIENT_V4, self.from.start);
        let stays = ready.lab.client.enter(|| Echo::open_from(from, server))??;
        let begun_at = stays.ask("begin")?.backend;
        let ports = self.from.start + 1..self.from.end;
        let mut new = NewFlows::new(server, &[address::CLIENT_V4], ports.clone());
        let (mut asked, mut lost) = (0, 0);
        let mut ask = |flow: &Echo, payload: &str| {
            flow.ask(payload).or_else(|error| {
                lost += 1;
                if lost <= self.removals { flow.ask(payload) } else { Err(error) }
            })
        };
        ready.lab.client.enter(|| {
            while !stop.load(Ordering::Relaxed) {
                let answer = ask(&stays, &asked.to_string());
                let answer = answer.with_context(|| format!("port {}: open flow, {asked}", self.port))?;
                if self.removals == 0 && answer.backend != begun_at {
                    return Err(anyhow!("the open flow moved from {begun_at} to {answer:?}"));
                }
                if new.opened() == ports.len() {
                    new = NewFlows::new(server, &[address::CLIENT_V4], ports.clone());
                }
                let (flow, payload) = new.open()?;
                let answer = ask(&flow, &payload);
                let answer = answer.with_context(|| format!("port {}: new flow {}", self.port, new.opened()))?;
                if answer.colour != Colour::Blue {
                    return Err(anyhow!("port {}: new flow {}: {answer:?}", self.port, new.opened()));
                }
                asked += 1;
                thread::sleep(Duration::from_micros(500));
            }
            Ok(asked)
        })?
    }
}

/// Says that it is over when it is dropped, be it by a panic: else the others would watch for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` while bystanders watch; nothing may be lost to them.
fn unnoticed(ready: &Ready, bystanders: &[Bystander], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let watch = |bystander| scope.spawn(move || Bystander::watch(bystander, ready, stop));
        let watching: Vec<_> = bystanders.iter().map(watch).collect();
        thread::sleep(Duration::from_millis(50));
        let result = {
            let _stop = StopAtEnd(stop);
            work()
        };
        for bystander in watching {
            let asked = bystander.join().map_err(|_| anyhow!("a bystander panicked"))??;
            println!("a bystander was answered {} times", 2 * asked);
            assert!(asked > 50, "the bystander was answered {asked} times only");
        }
        result
    })
}

/// The shop, and a deployment that stays on blue.
fn config(lab: &Lab) -> String {
    shop(lab, "nat", "") + &udp_service("bystander", "stays", BYSTANDER_PORT, "\"10.0.1.11:5353\"")
}

fn udp_service(deployment: &str, name: &str, port: u16, blue: &str) -> String {
    let (vip, green) = (SocketAddr::new(address::VIP_V4, port), SocketAddr::new(address::BACKENDS[2].2[0], UDP_PORT));
    format!(
        "\n[[deployments.{deployment}.services]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"udp\"\n\
         mode = \"nat\"\nblue = [{blue}]\ngreen = [\"{green}\"]\n"
    )
}

fn assert_attached(bgctl: &Bgctl) -> Result<()> {
    let status = bgctl.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("expected a list of interfaces")?.iter();
    let told: Vec<_> = interfaces.map(|interface| ["name", "mode", "state"].map(|key| &interface[key])).collect();
    assert_eq!(told, [["back", "native", "attached"], ["front", "native", "attached"]]);
    Ok(())
}

#[test]
fn a_first_attach_that_is_killed_is_completed_by_the_next() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let _servers = lab.servers()?;
    let bgctl = lab.bgctl()?;
    let config = bgctl.write_config(&config(&lab))?;
    let mut killer = Killer::new(|| bgctl.run(&ATTACH).map(drop))?;
    bgctl.run(&["detach", "--all"])?;
    for _ in 0..rounds() {
        killer.kill_and_repeat(&bgctl, &ATTACH)?;
        assert_attached(&bgctl)?;
        bgctl.run(&["apply", "-c", &config])?;
        for vip in [address::VIP_V4, address::VIP_V6] {
            assert_eq!(Echo::open(&lab.client, udp_vip(vip))?.ask("new")?.colour, Colour::Blue);
        }
        bgctl.run(&["detach", "--all"])?;
        assert!(!lab.sandbox.pin_root().exists());
    }
    killer.assert_was_deadly();
    Ok(())
}

#[test]
fn an_attach_that_renews_the_programs_may_be_killed_while_traffic_flows() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = config(&lab);
    let ready = Ready::with(lab, "native", &config)?;
    let mut killer = Killer::new(|| ready.bgctl.run(&ATTACH).map(drop))?;
    unnoticed(&ready, &[UNCONCERNED], || {
        (0..rounds()).try_for_each(|_| {
            killer.kill_and_repeat(&ready.bgctl, &ATTACH)?;
            assert_attached(&ready.bgctl)
        })
    })?;
    killer.assert_was_deadly();
    Ok(())
}

#[test]
fn an_apply_that_is_killed_is_completed_by_the_next_while_traffic_flows() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let base = config(&lab);
    // To and fro between a few services and many, with one whose backends change each time.
    let few = base.clone() + &udp_service("changing", "changes", CHANGING_PORT, "\"10.0.1.11:5353\"");
    let both = "\"10.0.1.11:5353\", { address = \"10.0.1.12:5353\", weight = 3 }";
    let mut many = base + &udp_service("changing", "changes", CHANGING_PORT, both);
    for number in 0..300 {
        many += &udp_service("many", &format!("s{number}"), 20_000 + number, both);
    }
    let ready = Ready::with(lab, "native", &few)?;
    let (bgctl, dir) = (&ready.bgctl, ready.lab.sandbox.dir());
    let write = |name: &str, content: &str| -> Result<String> {
        let path = dir.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let (few, many) = (write("few.toml", &few)?, write("many.toml", &many)?);
    let mut killer = Killer::new(|| bgctl.run(&["apply", "-c", &many]).map(drop))?;
    bgctl.run(&["apply", "-c", &few])?;
    let removals = rounds() / 2;
    let concerned = Bystander { port: CHANGING_PORT, from: 55_000..59_000, removals };
    unnoticed(&ready, &[UNCONCERNED, concerned], || {
        for round in 0..rounds() {
            let (wanted, services) = [(&many, 2 + 4 + 1 + 1 + 300), (&few, 2 + 4 + 1 + 1)][round % 2];
            killer.kill_and_repeat(bgctl, &["apply", "-c", wanted])?;
            assert_eq!(bgctl.run(&["plan", "-c", wanted])?.lines().count(), 1, "nothing is left to do");
            let status = bgctl.json(&["status"])?;
            assert_eq!(all_services(&status), services);
            if services > 8 {
                let server = SocketAddr::new(address::VIP_V4, 20_299);
                assert_eq!(Echo::open(&ready.lab.client, server)?.ask("new")?.colour, Colour::Blue);
            }
        }
        Ok(())
    })?;
    killer.assert_was_deadly();
    ready.neighbour_is_undisturbed()
}

fn all_services(status: &Value) -> usize {
    let deployments = status["deployments"].as_array().into_iter().flatten();
    deployments.map(|deployment| deployment["services"].as_array().map_or(0, Vec::len)).sum()
}

#[test]
fn a_switch_that_is_killed_is_completed_by_the_next_and_the_journal_knows_it() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let config = config(&lab);
    let ready = Ready::with(lab, "native", &config)?;
    let bgctl = &ready.bgctl;
    let mut killer = Killer::new(|| bgctl.run(&["switch", DEPLOYMENT, "green"]).map(drop))?;
    let live = ready.live()?;
    let mut new = [(address::VIP_V4, address::CLIENT_V4), (address::VIP_V6, address::CLIENT_V6)]
        .map(|(vip, client)| NewFlows::new(udp_vip(vip), &[client], 60_000..62_000));
    // Short commands need more rounds to be met at every instant.
    let rounds = 5 * rounds();
    unnoticed(&ready, &[UNCONCERNED], || {
        for round in 0..rounds {
            let to = [Colour::Blue, Colour::Green][round % 2];
            killer.kill_and_repeat(bgctl, &["switch", DEPLOYMENT, to.name()])?;
            let status = bgctl.deployment(DEPLOYMENT)?;
            assert_eq!((&status["live"], &status["generation"]), (&to.name().into(), &(round + 3).into()), "{status}");
            let answer = ready.lab.client.enter(|| new[round / 2 % 2].ask(&live))??.answer;
            assert_eq!(answer.map(|answer| answer.colour), Some(to));
        }
        Ok(())
    })?;
    killer.assert_was_deadly();

    // Each generation was made once and is told once, by who made it or as found.
    let history = bgctl.json(&["history", DEPLOYMENT])?;
    let records: Vec<_> = history["records"].as_array().context("no records")?.iter().collect();
    let generation = |record: &Value, end: &str| record[end]["generation"].as_u64();
    for (index, record) in records.iter().enumerate().skip(1) {
        assert_eq!(generation(record, "to"), Some(index as u64 + 1), "{record}");
        assert_eq!(generation(record, "from"), Some(index as u64), "{record}");
    }
    assert_eq!(records.len(), 2 + rounds);
    let of = |action: &str| records.iter().filter(|record| record["action"] == action).count();
    println!("{} switches were recorded by themselves, {} were found", of("switch"), of("recovered"));
    assert_eq!((of("apply"), of("switch") + of("recovered")), (1, 1 + rounds));
    ready.neighbour_is_undisturbed()
}
