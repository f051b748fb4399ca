//! Trouble of all kinds at random: servers that fail, stall and recover, colours that die as a whole, networks that drop or refuse, a controller
//! that is killed or reads its file again, people who switch, freeze and apply. With `BG_TEST_FULL`, for an hour; with
//! `BG_TEST_SECONDS`, for so many seconds.

use crate::{OTHER, PORTS, Shop, config, until};
use anyhow::{Context, Result, ensure};
use bg_common::{Colour, LiveWord};
use bg_tests::{
    Answers, BackendHealth, Chance, Controller, Live,
    address::{NEIGHBOUR_V4, VIP_V4},
    config::DEPLOYMENT,
};
use std::{
    collections::{BTreeMap, HashSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const HOLD_OFF: Duration = Duration::from_secs(2);
/// What somebody does is over after this time.
const BY_SOMEBODY: Duration = Duration::from_millis(600);
/// A backend that was well all this time, and that the maps have as up, is up: no check of it has failed. It is longer than an interval and
/// a time-out, also on a busy machine.
const LONG_WELL: Duration = Duration::from_secs(1);
/// The same for one that was not well. It takes more checks to be down.
const LONG_UNWELL: Duration = Duration::from_secs(2);
/// A colour that was down in the maps for so long was so when the switch to it was decided.
const LONG_DOWN: Duration = Duration::from_millis(500);

/// What a server has been, from when on.
struct Past {
    /// Whether it was well, the latest last; `None` while that changes.
    was: Vec<(Instant, Option<bool>)>,
}

impl Past {
    /// Whether it was so all the time before `at`.
    fn was_only(&self, well: bool, at: Instant, time: Duration) -> bool {
        let from = at.checked_sub(time);
        let later = self.was.partition_point(|(since, _)| Some(*since) <= from);
        let at_first = later.checked_sub(1).map(|nth| self.was[nth].1);
        let meanwhile = self.was[later..].iter().take_while(|(since, _)| *since <= at);
        at_first == Some(Some(well)) && meanwhile.into_iter().all(|(_, was)| *was == Some(well))
    }
}

/// A change of the live word.
struct Change {
    /// When the word from before was seen last.
    not_before: Instant,
    /// When it was seen.
    at: Instant,
    from: LiveWord,
    to: LiveWord,
    /// What the maps have said of each server just before, and since when.
    health: Vec<(&'static str, Instant)>,
}

/// Looks at the live word, and at the health of the servers, until it is over.
fn watch(shop: &Shop, is_over: &AtomicBool) -> Result<Vec<Change>> {
    let (word, maps) = (shop.ready.live()?, BackendHealth::open(shop.ready.lab.sandbox.pin_root())?);
    let look = |before: &[(&'static str, Instant)]| -> Result<Vec<_>> {
        let now = Instant::now();
        let of = |(nth, backend): (usize, &bg_tests::Backend)| -> Result<_> {
            let found = maps.of(SocketAddr::new(backend.addresses[0], PORTS[0]))?;
            let health = found.first().copied().unwrap_or("none");
            let same = before.get(nth).filter(|(before, _)| *before == health);
            Ok((health, same.map_or(now, |(_, since)| *since)))
        };
        shop.ready.lab.backends.iter().enumerate().map(of).collect()
    };
    let (mut from, mut health, mut looked) = (word.word(), look(&[])?, Instant::now());
    let mut not_before = looked;
    let mut changes = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let (to, at) = (word.word(), Instant::now());
        if to.live() != from.live() || to.generation() != from.generation() {
            changes.push(Change { not_before, at, from, to, health: health.clone() });
            from = to;
        }
        not_before = begun;
        if looked.elapsed() > Duration::from_millis(5) {
            (health, looked) = (look(&health)?, Instant::now());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(changes)
}

/// One request to a service, on a connection of its own. The servers close it.
fn ask(shop: &Shop, vip: SocketAddr) -> Result<()> {
    let asked = shop.ready.lab.client.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&vip, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    ensure!(asked.ends_with("\r\n\r\nwell"), "{vip} has answered {asked:?}");
    Ok(())
}

/// The trouble, and what it was.
struct Trouble<'a> {
    shop: &'a Shop,
    word: Live,
    chance: Chance,
    controller: Option<Controller>,
    /// What controllers have said that were killed.
    logs: String,
    is_cut: [bool; 4],
    answers: [Answers; 4],
    past: Vec<Past>,
    /// The generations that people have made, or the data path for them.
    of_people: HashSet<u32>,
    is_other_configuration: bool,
    kinds: BTreeMap<&'static str, u32>,
}

impl Trouble<'_> {
    fn pick(&mut self, count: usize) -> usize {
        (self.chance.number() >> 33) as usize % count
    }

    /// Does something to a server, and notes whether it is well then. Meanwhile it is neither for certain.
    fn set(&mut self, nth: usize, answers: Answers, cut: Option<&str>) -> Result<()> {
        let was_well = self.answers[nth] == Answers::Well && !self.is_cut[nth];
        let is_well = answers == Answers::Well && cut.is_none();
        if was_well != is_well {
            self.past[nth].was.push((Instant::now(), None));
        }
        self.shop.servers[0][nth].answer(answers);
        self.answers[nth] = answers;
        let namespace = &self.shop.ready.lab.backends[nth].namespace;
        // One that stays cut off stays so without a gap, in which a check may pass.
        if self.is_cut[nth] && cut.is_none() {
            namespace.run("nft delete table inet cut")?;
        }
        if let Some(verdict) = cut.filter(|_| !self.is_cut[nth]) {
            namespace.run("nft add table inet cut")?;
            namespace.run("nft add chain inet cut input { type filter hook input priority 0 ; }")?;
            namespace.run(&format!("nft add rule inet cut input tcp dport {} {verdict}", PORTS[0]))?;
        }
        self.is_cut[nth] = cut.is_some();
        if was_well != is_well {
            self.past[nth].was.push((Instant::now(), Some(is_well)));
        }
        Ok(())
    }

    fn set_colour(&mut self, colour: Colour, answers: Answers) -> Result<()> {
        for nth in 0..4 {
            if self.shop.ready.lab.backends[nth].colour == colour {
                self.set(nth, answers, None)?;
            }
        }
        Ok(())
    }

    /// Somebody switches, which may be refused. Notes the generations that are not the controller's.
    fn by_somebody(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.shop.ready.bgctl.try_run(&[&["--json"], arguments].concat())?;
        let made = match serde_json::from_slice::<serde_json::Value>(&output.stdout) {
            // Those of the command, and of what it has found due. It may have seen its own switch taken back.
            Ok(json) => json["from"]["generation"].as_u64().zip(json["to"]["generation"].as_u64()),
            Err(_) => None,
        };
        let made = match made {
            Some((from, to)) => from + 1..to + 1,
            // It has switched, and its time for a confirmation has passed before all packets went by it.
            None if String::from_utf8_lossy(&output.stderr).contains("was taken back") => {
                let history = self.shop.ready.bgctl.json(&["history", DEPLOYMENT])?;
                let is_by_somebody =
                    |record: &&serde_json::Value| record["action"] == "switch" && record["reason"].is_null();
                let to =
                    records(&history).filter(is_by_somebody).filter_map(|it| it["to"]["generation"].as_u64()).max();
                to.map(|to| to..to + 1).context("the history has no switch by somebody")?
            }
            None => return Ok(()),
        };
        // The next one is the data path's, if it takes the switch back.
        let is_guarded = arguments.contains(&"--confirm-within");
        let made = made.start..made.end + u64::from(is_guarded && !made.is_empty());
        self.of_people.extend(made.map(|generation| generation as u32));
        Ok(())
    }

    /// One colour is dead and the other one well: it must be live soon, stay live, and answer.
    fn calm(&mut self, well: Colour) -> Result<()> {
        self.set_colour(well, Answers::Well)?;
        self.set_colour(well.other(), Answers::Error)?;
        // What somebody has done just before is over soon: a freeze, or a switch that nobody confirms.
        thread::sleep(BY_SOMEBODY);
        until(&self.word, well, Duration::from_secs(40)).context("the other colour is dead")?;
        self.stays(well, Duration::from_millis(500))?;
        for _ in 0..10 {
            ask(self.shop, SocketAddr::new(VIP_V4, 80))?;
        }
        Ok(())
    }

    /// Fails if another colour becomes live in this time.
    fn stays(&self, colour: Colour, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            let live = self.word.word().live();
            ensure!(live == colour, "{} is live after {:?}, and it is dead", live.name(), begin.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn one(&mut self) -> Result<()> {
        let bgctl = &self.shop.ready.bgctl;
        let (kind, nth) = (self.pick(40), self.pick(4));
        let kind = match kind {
            0..26 => {
                let answers = [Answers::Well, Answers::Error, Answers::Never, Answers::Late][self.pick(4)];
                let cut = self.is_cut[nth].then_some("drop");
                self.set(nth, answers, cut)?;
                "a server answers otherwise"
            }
            26..30 => {
                let (colour, answers) =
                    ([Colour::Blue, Colour::Green][self.pick(2)], [Answers::Well, Answers::Error][self.pick(2)]);
                self.set_colour(colour, answers)?;
                "all servers of a colour answer otherwise"
            }
            30..33 => {
                let verdict = ["drop", "reject with tcp reset"][self.pick(2)];
                self.set(nth, self.answers[nth], (!self.is_cut[nth]).then_some(verdict))?;
                "a server is cut off or reached again"
            }
            33 => {
                let well = [Colour::Blue, Colour::Green][self.pick(2)];
                self.calm(well)?;
                "one colour is dead and the other one well"
            }
            34 => {
                let controller = self.controller.take().context("no controller")?;
                self.logs += &controller.log()?;
                controller.end(libc::SIGKILL)?;
                self.controller = Some(Controller::start(bgctl)?);
                "the controller is killed"
            }
            35 => {
                self.controller.as_mut().context("no controller")?.reload()?;
                "the controller reads its file again"
            }
            36 => {
                self.by_somebody(&["switch", DEPLOYMENT])?;
                "somebody switches"
            }
            37 => {
                self.by_somebody(&["switch", DEPLOYMENT, "--confirm-within", "300ms"])?;
                "somebody switches and does not confirm"
            }
            38 => {
                bgctl.run(&["freeze", DEPLOYMENT, "--max", "500ms"])?;
                "somebody freezes"
            }
            _ => {
                self.is_other_configuration ^= true;
                let text = config(&self.shop.ready.lab, HOLD_OFF);
                let other = format!("[deployments.{DEPLOYMENT}]\ndrain_timeout = \"7m\"");
                let text = match self.is_other_configuration {
                    true => text.replace(&format!("[deployments.{DEPLOYMENT}]"), &other),
                    false => text,
                };
                bgctl.apply(&text)?;
                "somebody applies"
            }
        };
        *self.kinds.entry(kind).or_default() += 1;
        Ok(())
    }
}

#[test]
fn it_switches_only_for_a_reason_and_never_sooner_than_configured() -> Result<()> {
    let usual = if std::env::var_os("BG_TEST_FULL").is_some() { 3600 } else { 20 };
    let given = std::env::var("BG_TEST_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs(given.unwrap_or(usual));
    let shop = Shop::open(HOLD_OFF)?;
    let (is_over, asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut trouble = Trouble {
        shop: &shop,
        word: shop.ready.live()?,
        chance: Chance::new(),
        controller: Some(Controller::start(&shop.ready.bgctl)?),
        logs: String::new(),
        is_cut: [false; 4],
        answers: [Answers::Well; 4],
        past: (0..4).map(|_| Past { was: vec![(Instant::now(), Some(true))] }).collect(),
        of_people: HashSet::new(),
        is_other_configuration: false,
        kinds: BTreeMap::new(),
    };
    shop.all_up()?;
    let other = || Ok::<_, anyhow::Error>(shop.ready.bgctl.deployment(OTHER)?["generation"].clone());
    let untouched = other()?;
    let (changes, requests) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&shop, &is_over));
        // Nobody troubles the other deployment, and its clients notice nothing.
        let load = scope.spawn(|| {
            let mut requests = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                ask(&shop, SocketAddr::new(NEIGHBOUR_V4, 80)).with_context(|| format!("request {requests}"))?;
                requests += 1;
                asked.store(true, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
            Ok::<_, anyhow::Error>(requests)
        });
        let begin = Instant::now();
        let mut made = Ok(());
        while begin.elapsed() < time && made.is_ok() && !watch.is_finished() && !load.is_finished() {
            made = trouble.one();
            thread::sleep(trouble.chance.below(Duration::from_millis(300)));
        }
        // Then one side is dead and the other one well, and there it stays.
        let made = made
            .and_then(|()| trouble.calm(trouble.word.word().live().other()))
            .and_then(|()| trouble.stays(trouble.word.word().live(), HOLD_OFF + Duration::from_secs(1)));
        is_over.store(true, Ordering::Relaxed);
        let (changes, requests) = (watch.join().expect("it looks"), load.join().expect("it asks"));
        made.with_context(|| format!("after {:?}", begin.elapsed()))?;
        Ok::<_, anyhow::Error>((changes?, requests?))
    })?;
    ensure!(asked.load(Ordering::Relaxed) && other()? == untouched, "the other deployment");

    let failovers = failovers(&trouble, &changes);
    println!(
        "{} failovers of {} changes in {time:?} of trouble, {requests} requests of the other deployment: {:?}",
        failovers.len(),
        changes.len(),
        trouble.kinds
    );
    trouble.logs += &trouble.controller.as_ref().context("no controller")?.log()?;
    let after_another = failovers.windows(2).map(|pair| (pair[1].at - pair[0].not_before, pair[1].to.generation()));
    let shortest = after_another.min();
    println!("the shortest time between two failovers: {shortest:?}, at least {HOLD_OFF:?}");
    if let Some((time, generation)) = shortest {
        ensure!(time >= HOLD_OFF - Duration::from_millis(50), "{time:?}: {}", told(&trouble, generation));
    }
    ensure!(!failovers.is_empty(), "nothing has failed over");
    for change in &failovers {
        judge(&trouble, change).with_context(|| told(&trouble, change.to.generation()))?;
    }
    recorded(&shop, &failovers)
}

/// The changes of the live colour that nobody else has made.
fn failovers<'a>(trouble: &Trouble<'_>, changes: &'a [Change]) -> Vec<&'a Change> {
    let of_controller = |change: &&Change| {
        change.from.live() != change.to.live() && !trouble.of_people.contains(&change.to.generation())
    };
    changes.iter().filter(of_controller).collect()
}

/// Fails if a failover had no reason.
fn judge(trouble: &Trouble<'_>, change: &Change) -> Result<()> {
    let Change { at, from, to, health, .. } = change;
    let generation = to.generation();
    ensure!(generation == from.generation() + 1, "{from:?} {to:?}");
    let backends = || trouble.shop.ready.lab.backends.iter().enumerate();
    let named: Vec<_> = health.iter().map(|(health, since)| format!("{health} for {:?}", *at - *since)).collect();
    let is_up = |nth: usize| health[nth].0 == "up" && trouble.past[nth].was_only(true, *at, LONG_WELL);
    for (nth, backend) in backends().filter(|(_, backend)| backend.colour == from.live()) {
        let (name, left) = (&backend.name, from.live().name());
        ensure!(
            !is_up(nth),
            "{name} was up, and the controller has left {left} for generation {generation}: {named:?}"
        );
    }
    let was_down = |nth: usize, time: Duration| health[nth].0 == "down" && *at - health[nth].1 >= time;
    let is_down = |nth: usize| was_down(nth, Duration::ZERO) && trouble.past[nth].was_only(false, *at, LONG_UNWELL);
    let mut target = backends().filter(|(_, backend)| backend.colour == to.live());
    let is_dead = target.clone().all(|(nth, _)| is_down(nth));
    ensure!(!is_dead, "it has gone to a dead colour, generation {generation}: {named:?}");
    let is_told_down = target.all(|(nth, _)| was_down(nth, LONG_DOWN));
    ensure!(!is_told_down, "it has gone to a colour that is down in the maps, generation {generation}: {named:?}");
    Ok(())
}

/// The records in what `history` prints.
fn records(history: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    history.as_array().or(history["records"].as_array()).into_iter().flatten()
}

/// What the history says of a generation and of those around it, and what the controllers have said just before.
fn told(trouble: &Trouble<'_>, generation: u32) -> String {
    let history = trouble.shop.ready.bgctl.json(&["history", DEPLOYMENT]).unwrap_or_default();
    let of = |record: &serde_json::Value| record["to"]["generation"].as_u64();
    let is_near = |record: &&serde_json::Value| of(record).is_some_and(|near| near.abs_diff(generation.into()) <= 3);
    let near = records(&history).filter(is_near).map(|record| format!("{record}\n"));
    let made = records(&history).find(|record| of(record) == Some(generation.into()));
    let time = made.and_then(|record| record["time"].as_str()).unwrap_or("9");
    let is_before = |line: &&str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        line["timestamp"].as_str().is_some_and(|said| said <= time)
    };
    let mut said: Vec<_> = trouble.logs.lines().filter(is_before).rev().take(20).collect();
    said.reverse();
    let near = near.collect::<String>();
    format!("the history around generation {generation}:\n{near}and what was said before:\n{}", said.join("\n"))
}

/// The history has them all. A controller that was killed before it has written leaves a record without a reason.
fn recorded(shop: &Shop, failovers: &[&Change]) -> Result<()> {
    shop.ready.bgctl.run(&["history", "--verify"])?;
    let history = shop.ready.bgctl.json(&["history", DEPLOYMENT])?;
    for change in failovers {
        let generation = change.to.generation();
        let found = records(&history).any(|record| {
            let is_failover = record["reason"].as_str().is_some_and(|reason| reason.starts_with("failover: "));
            record["to"]["generation"] == generation && (is_failover || record["action"] == "recovered")
        });
        ensure!(found, "the history has no failover for generation {generation}");
    }
    let own =
        records(&history).filter(|record| record["reason"].as_str().is_some_and(|it| it.starts_with("failover: ")));
    ensure!(own.count() <= failovers.len(), "the history has more failovers than were made");
    Ok(())
}
