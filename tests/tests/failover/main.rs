//! Failover: if the live colour has too few healthy backends and the idle one has enough, the controller switches, once, and never goes
//! back by itself.

mod last_moment;
mod trouble;

use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Answers, Controller, Fabric, Lab, Live, Ready, Scripted,
    address::{NEIGHBOUR_V4, VIP_V4},
    config::DEPLOYMENT,
};
use std::{
    ffi::CString,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    thread,
    time::{Duration, Instant},
};

/// The deployment that has no trouble.
const OTHER: &str = "other";
const INTERVAL: Duration = Duration::from_millis(200);
const FALL: u32 = 3;
const HOLD_OFF: Duration = Duration::from_secs(4);
/// How long a failover takes at most.
const BOUND: Duration = Duration::from_millis(3 * 200 + 100);
/// Ports of the servers of the two deployments.
const PORTS: [u16; 2] = [8081, 8082];

/// A lab with two deployments that fail over, and their servers, by deployment and in the order of the backends.
struct Shop {
    servers: [Vec<Scripted>; 2],
    ready: Ready,
}

fn config(lab: &Lab, hold_off: Duration) -> String {
    let deployment = |name: &str, vip: IpAddr, port: u16| {
        let colour = |colour: Colour| {
            let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
            let address = |backend: &bg_tests::Backend| format!("\"{}\"", SocketAddr::new(backend.addresses[0], port));
            of_colour.map(address).collect::<Vec<_>>().join(", ")
        };
        format!(
            "[deployments.{name}]\nhealth = {{ kind = \"http\", interval = \"{INTERVAL:?}\", timeout = \"150ms\", rise = 1, fall = {FALL} }}\n\
             failover = {{ to_idle = \"auto\", min_healthy = \"50%\", hold_off = \"{hold_off:?}\" }}\n\
             [[deployments.{name}.services]]\nname = \"web\"\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nblue = [{}]\ngreen = [{}]\n",
            SocketAddr::new(vip, 80),
            colour(Colour::Blue),
            colour(Colour::Green)
        )
    };
    deployment(OTHER, NEIGHBOUR_V4, PORTS[1]) + &deployment(DEPLOYMENT, VIP_V4, PORTS[0])
}

impl Shop {
    fn open(hold_off: Duration) -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let config = config(&lab, hold_off);
        let serve = |port: u16| {
            let start =
                |backend: &bg_tests::Backend| Scripted::start(backend, SocketAddr::new(backend.addresses[0], port));
            lab.backends.iter().map(start).collect::<Result<Vec<_>>>()
        };
        let servers = [serve(PORTS[0])?, serve(PORTS[1])?];
        Ok(Self { servers, ready: Ready::with_others(lab, "native", &config)? })
    }

    /// How the servers of a colour of [`DEPLOYMENT`] answer from now on.
    fn answer(&self, colour: Colour, answers: Answers) {
        for (server, backend) in self.servers[0].iter().zip(&self.ready.lab.backends) {
            if backend.colour == colour {
                server.answer(answers);
            }
        }
    }

    /// Waits until all of its backends have this health.
    fn wait(&self, colour: Colour, health: &str) -> Result<()> {
        let maps = bg_tests::BackendHealth::open(self.ready.lab.sandbox.pin_root())?;
        for backend in self.ready.lab.backends.iter().filter(|backend| backend.colour == colour) {
            maps.wait(SocketAddr::new(backend.addresses[0], PORTS[0]), health, Duration::from_secs(5))?;
        }
        Ok(())
    }

    fn all_up(&self) -> Result<()> {
        Colour::ALL.into_iter().try_for_each(|colour| self.wait(colour, "up"))
    }
}

fn live(live: &Live) -> Colour {
    live.word().live()
}

/// Waits for a colour to be live. Returns how long that took.
fn until(word: &Live, colour: Colour, patience: Duration) -> Result<Duration> {
    let begin = Instant::now();
    while live(word) != colour {
        ensure!(begin.elapsed() < patience, "{} is not live after {patience:?}", colour.name());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(begin.elapsed())
}

/// Fails if the live colour changes within this time.
fn stays(word: &Live, time: Duration, why: &str) -> Result<()> {
    let (begin, before) = (Instant::now(), word.word());
    while begin.elapsed() < time {
        ensure!(word.word() == before, "{why}: {:?} after {:?}", word.word(), begin.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn the_idle_colour_takes_over_from_a_dead_one_and_keeps_the_traffic() -> Result<()> {
    let shop = Shop::open(HOLD_OFF)?;
    let word = shop.ready.live()?;
    let before = word.word();
    let controller = Controller::start(&shop.ready.bgctl)?;
    shop.all_up()?;
    ensure!(word.word() == before, "it acted before it had looked at all of them");
    let neighbour = shop.ready.bgctl.deployment(OTHER)?["generation"].clone();

    // One of two is enough.
    shop.servers[0][0].answer(Answers::Error);
    stays(&word, BOUND + INTERVAL, "half of the backends are up")?;

    let begin = Instant::now();
    shop.answer(Colour::Blue, Answers::Error);
    until(&word, Colour::Green, BOUND * 3)?;
    let (took, failed_over) = (begin.elapsed(), Instant::now());
    println!("failed over after {} ms, at most {} ms", took.as_millis(), BOUND.as_millis());
    ensure!(took <= BOUND, "{took:?}");
    // It is recorded when the switch is complete, a moment later.
    let end = Instant::now() + Duration::from_secs(2);
    let history = loop {
        let history = shop.ready.bgctl.run(&["history", DEPLOYMENT])?;
        if history.contains("switch") || Instant::now() > end {
            break history;
        }
    };
    ensure!(history.contains("failover: blue has 0 of 2 backends of web up"), "{history}");
    ensure!(history.contains("controller"), "{history}");

    // The one that has failed is well again, and nothing happens.
    shop.answer(Colour::Blue, Answers::Well);
    shop.wait(Colour::Blue, "up")?;
    stays(&word, Duration::from_millis(500), "the live colour is well")?;

    // The one that is live now fails too soon, and a new controller knows that.
    shop.answer(Colour::Green, Answers::Error);
    shop.wait(Colour::Green, "down")?;
    controller.end(libc::SIGKILL)?;
    let controller = Controller::start(&shop.ready.bgctl)?;
    stays(&word, (HOLD_OFF - Duration::from_millis(300)).saturating_sub(failed_over.elapsed()), "it holds off")?;
    until(&word, Colour::Blue, Duration::from_secs(2))?;
    ensure!(failed_over.elapsed() >= HOLD_OFF - Duration::from_millis(50), "{:?}", failed_over.elapsed());

    // Both are dead: there is nowhere to go.
    shop.answer(Colour::Blue, Answers::Error);
    shop.wait(Colour::Blue, "down")?;
    stays(&word, HOLD_OFF + Duration::from_millis(500), "both are down")?;

    ensure!(shop.ready.bgctl.deployment(OTHER)?["generation"] == neighbour, "the other deployment");
    let log = controller.log()?;
    ensure!(log.contains("failed over"), "{log}");
    Ok(())
}

#[test]
fn what_nobody_has_judged_yet_is_no_reason() -> Result<()> {
    let shop = Shop::open(HOLD_OFF)?;
    let (word, before) = (shop.ready.live()?, shop.ready.live()?.word());
    // The first look at blue finds it unwell, which is not enough to call it dead. Green is known to be well meanwhile.
    shop.answer(Colour::Blue, Answers::Error);
    let _controller = Controller::start(&shop.ready.bgctl)?;
    shop.wait(Colour::Green, "up")?;
    shop.answer(Colour::Blue, Answers::Well);
    shop.all_up()?;
    stays(&word, INTERVAL, "nobody was dead")?;
    ensure!(word.word() == before, "{:?} and not {before:?}", word.word());
    Ok(())
}

#[test]
fn who_decides_otherwise_wins() -> Result<()> {
    let shop = Shop::open(Duration::from_secs(1))?;
    let word = shop.ready.live()?;
    // Blue was dead before anybody looked: green takes over once all are judged.
    shop.answer(Colour::Blue, Answers::Error);
    let _controller = Controller::start(&shop.ready.bgctl)?;
    until(&word, Colour::Green, Duration::from_secs(5))?;
    shop.answer(Colour::Blue, Answers::Well);
    shop.all_up()?;
    thread::sleep(Duration::from_secs(1));

    // While a switch waits for its confirmation, nobody else decides.
    shop.ready.bgctl.run(&["switch", DEPLOYMENT, "blue", "--confirm-within", "1m"])?;
    shop.answer(Colour::Blue, Answers::Error);
    shop.wait(Colour::Blue, "down")?;
    stays(&word, Duration::from_millis(700), "it waits for its confirmation")?;
    shop.ready.bgctl.run(&["confirm", DEPLOYMENT])?;
    until(&word, Colour::Green, Duration::from_secs(2)).context("confirmed")?;

    // The same while new flows are held.
    shop.answer(Colour::Blue, Answers::Well);
    shop.all_up()?;
    thread::sleep(Duration::from_secs(1));
    shop.ready.bgctl.run(&["freeze", DEPLOYMENT, "--max", "10s"])?;
    shop.answer(Colour::Green, Answers::Error);
    shop.wait(Colour::Green, "down")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(live(&word) == Colour::Green, "it is frozen");
    shop.ready.bgctl.run(&["thaw", DEPLOYMENT])?;
    until(&word, Colour::Blue, Duration::from_secs(2)).context("thawed")?;
    Ok(())
}

/// An attempt that is refused is tried again after growing pauses, not in a loop, and told once. A backend that only the maps have does not
/// switch failover off, and neither does a disk that hangs.
#[test]
fn what_hinders_it_neither_makes_it_spin_nor_switches_it_off() -> Result<()> {
    const HOLD_OFF: Duration = Duration::from_secs(3);
    let shop = Shop::open(HOLD_OFF)?;
    let (word, bgctl) = (shop.ready.live()?, &shop.ready.bgctl);
    let own = bgctl.config().with_file_name("of-the-controller.toml");
    fs::copy(bgctl.config(), &own)?;
    let applied = fs::read_to_string(&own)?;
    let (other, shops) = applied.split_at(applied.find("[deployments.shop]").context("the deployment")?);
    let green = shops.replacen("green = [", &format!("green = [\"{}\", ", unknown(&shop)), 1);
    bgctl.apply(&[other, &green].concat())?;
    let arguments = ["-c", own.to_str().context("a path")?];
    let mut controller = Controller::start_with(bgctl, &arguments)?;
    shop.all_up()?;
    controller.wait_for("failover does not count backends")?;

    bgctl.run(&[&["detach"], shop.ready.lab.interfaces.as_slice()].concat())?;
    shop.answer(Colour::Blue, Answers::Error);
    shop.wait(Colour::Blue, "down")?;
    stays(&word, Duration::from_millis(2500), "nothing is attached")?;
    let log = controller.log()?;
    ensure!(log.matches("no failover").count() == 1 && !log.contains("failed over"), "{log}");
    bgctl.run(&[&["attach", "--mode", "native"], shop.ready.lab.interfaces.as_slice()].concat())?;
    until(&word, Colour::Green, Duration::from_secs(5)).context("attached again")?;

    shop.answer(Colour::Blue, Answers::Well);
    shop.wait(Colour::Blue, "up")?;
    thread::sleep(HOLD_OFF);
    let journal = shop.ready.lab.sandbox.state_dir().join("history.jsonl");
    let aside = journal.with_extension("aside");
    fs::rename(&journal, &aside)?;
    let hangs = CString::new(journal.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte.
    ensure!(unsafe { libc::mkfifo(hangs.as_ptr(), 0o600) } == 0, "no FIFO at {}", journal.display());
    shop.answer(Colour::Green, Answers::Error);
    until(&word, Colour::Blue, Duration::from_secs(15)).context("the journal hangs")?;
    let begin = Instant::now();
    controller.end(libc::SIGTERM)?;
    ensure!(begin.elapsed() < Duration::from_secs(8), "it has ended after {:?}", begin.elapsed());

    // Nobody has recorded that one. The next controller holds off all the same.
    let fifo = fs::OpenOptions::new().read(true).write(true).open(&journal)?;
    fs::rename(&aside, &journal)?;
    drop(fifo);
    shop.answer(Colour::Green, Answers::Well);
    let start = Instant::now();
    let _controller = Controller::start_with(bgctl, &arguments)?;
    shop.all_up()?;
    shop.answer(Colour::Blue, Answers::Error);
    let quiet = (HOLD_OFF - Duration::from_millis(300)).saturating_sub(start.elapsed());
    stays(&word, quiet, "there was a failover that nobody has recorded")?;
    until(&word, Colour::Green, HOLD_OFF * 2)?;
    Ok(())
}

/// A backend address of green that no server has.
fn unknown(shop: &Shop) -> SocketAddr {
    let green = shop.ready.lab.backends.iter().find(|backend| backend.colour == Colour::Green);
    SocketAddr::new(green.expect("it has backends").addresses[0], PORTS[0] + 100)
}
