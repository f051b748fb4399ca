//! A switch that makes a tester's colour live ends the tester's connections at both ends, and leaves those of users alone: a command does so at once,
//! although nobody says a word. If the data path switches by itself, the next segment does, and the next command ends those that say nothing.

use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::{
    Lab, Ready, Setting, address,
    config::{DEPLOYMENT, PREVIEW_PORT, http_vip, udp_vip},
    in_each_setting,
    load::{Connection, Echo, PATIENCE},
    no_backend_knows,
};
use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// User, tester and VIP of each family.
const ENDS: [[IpAddr; 3]; 2] = [
    [address::CLIENT_V4, address::TESTER_V4, address::VIP_V4],
    [address::CLIENT_V6, address::TESTER_V6, address::VIP_V6],
];

fn open(ready: &Ready, from: IpAddr, to: SocketAddr, colour: &str) -> Result<Connection> {
    let connection = Connection::open_from(&ready.lab.client, SocketAddr::new(from, 0), to)?;
    assert_eq!(connection.colour()?, colour);
    Ok(connection)
}

/// Connections of testers and to preview addresses, which are on this colour.
fn confined(ready: &Ready, idle: &str) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for [user, tester, vip] in ENDS {
        all.push(open(ready, tester, http_vip(vip), idle)?);
        all.push(open(ready, user, SocketAddr::new(vip, PREVIEW_PORT), idle)?);
    }
    Ok(all)
}

fn users(ready: &Ready, live: &str) -> Result<Vec<Connection>> {
    ENDS.iter().map(|[user, _, vip]| open(ready, *user, http_vip(*vip), live)).collect()
}

/// Asserts that connections which say nothing are reset at both ends.
fn are_reset(ready: &Ready, connections: &[Connection]) -> Result<()> {
    for connection in connections {
        let client = connection.stream().local_addr()?;
        let error = connection.stream().read(&mut [0; 64]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        no_backend_knows(&ready.lab, client)?;
    }
    Ok(())
}

/// The client's ends of connections hear nothing any more, as if their hosts were gone, until this is dropped.
struct Deaf<'a>(&'a Lab);

impl<'a> Deaf<'a> {
    fn new(lab: &'a Lab, connections: &[Connection]) -> Result<Self> {
        let deaf = Self(lab);
        lab.client.run("nft add table inet deaf")?;
        lab.client.run("nft add chain inet deaf input { type filter hook input priority 0 ; }")?;
        for connection in connections {
            let port = connection.stream().local_addr()?.port();
            lab.client.run(&format!("nft add rule inet deaf input tcp dport {port} drop"))?;
        }
        Ok(deaf)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        // If it fails, the table goes with the lab.
        let _ = self.0.client.run("nft delete table inet deaf");
    }
}

fn testers_are_told(setting: Setting) -> Result<()> {
    let ready = setting.ready_behind_firewalls()?;
    for (round, way) in [["switch", DEPLOYMENT], ["rollback", DEPLOYMENT]].iter().enumerate() {
        let [live, idle] = if round == 0 { ["blue", "green"] } else { ["green", "blue"] };
        let (confined, users, gone) = (confined(&ready, idle)?, users(&ready, live)?, confined(&ready, idle)?);
        let deaf = Deaf::new(&ready.lab, &gone)?;
        ready.bgctl.run(way)?;
        are_reset(&ready, &confined)?;
        for connection in &gone {
            no_backend_knows(&ready.lab, connection.stream().local_addr()?)?;
        }
        drop((deaf, gone));
        for connection in &users {
            assert_eq!(connection.colour()?, live, "it drains");
        }
        self::users(&ready, idle)?;
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(testers_are_told);

/// How the colours change places although nobody gives a command then.
#[derive(Clone, Copy, Debug)]
enum ByItself {
    Schedule,
    Ramp,
    Expiry,
    Condition,
}

/// Until a schedule or ramp is over.
const SOON: Duration = Duration::from_millis(600);
/// Until an expiry: connections are opened before.
const LATER: Duration = Duration::from_secs(4);

impl ByItself {
    /// Whether the colours change places with the command, and again by themselves.
    const fn is_back(self) -> bool {
        matches!(self, Self::Expiry | Self::Condition)
    }

    /// Gives the command to make green live.
    fn arm(self, ready: &Ready) -> Result<()> {
        let at = humantime::format_rfc3339_millis(SystemTime::now() + SOON).to_string();
        let (soon, later) = (format!("{}ms", SOON.as_millis()), format!("{}ms", LATER.as_millis()));
        let option = match self {
            Self::Schedule => ["--at", &at],
            Self::Ramp => ["--ramp", &soon],
            Self::Expiry => ["--confirm-within", &later],
            Self::Condition => ["--revert-if", "resets > 5% of 20"],
        };
        ready.bgctl.run(&[&["switch", DEPLOYMENT, "green"][..], &option].concat()).map(drop)
    }

    /// Waits until it has happened.
    fn wait(self, ready: &Ready) -> Result<()> {
        match self {
            Self::Schedule | Self::Ramp => thread::sleep(SOON * 3 / 2),
            Self::Expiry => thread::sleep(LATER),
            Self::Condition => {
                close_green(ready, true)?;
                let (live, end) = (ready.live()?, Instant::now() + PATIENCE);
                while live.word().live() == Colour::Green {
                    ensure!(Instant::now() < end, "nobody has taken it back");
                    let _ = Connection::open(&ready.lab.client, http_vip(address::VIP_V4));
                }
                close_green(ready, false)?;
            }
        }
        Ok(())
    }

    /// A command that comes later.
    const fn command(self) -> &'static [&'static str] {
        match self {
            Self::Schedule => &["status"],
            Self::Ramp => &["flows"],
            Self::Expiry => &["drain", DEPLOYMENT],
            // It is too late.
            Self::Condition => &["confirm", DEPLOYMENT],
        }
    }
}

/// Has the backends of green refuse connections, or not any more.
fn close_green(ready: &Ready, is_closed: bool) -> Result<()> {
    for green in ready.lab.backends.iter().filter(|backend| backend.colour == Colour::Green) {
        let namespace = &green.namespace;
        // Zones share one namespace.
        let _ = namespace.run("nft delete table inet fault");
        if is_closed {
            namespace.run("nft add table inet fault")?;
            namespace.run("nft add chain inet fault input { type filter hook input priority 0 ; }")?;
            for other in ready.lab.backends.iter().filter(|backend| backend.colour == Colour::Green) {
                for address in other.addresses {
                    let family = if address.is_ipv4() { "ip" } else { "ip6" };
                    let what = "tcp dport 8080 reject with tcp reset";
                    namespace.run(&format!("nft add rule inet fault input {family} daddr {address} {what}"))?;
                }
            }
        }
    }
    Ok(())
}

fn testers_are_told_of_what_happens_by_itself(setting: Setting) -> Result<()> {
    let ready = setting.ready_behind_firewalls()?;
    let bgctl = &ready.bgctl;
    for how in [ByItself::Schedule, ByItself::Ramp, ByItself::Expiry, ByItself::Condition] {
        let [idle, then] = if how.is_back() { [Colour::Blue, Colour::Green] } else { [Colour::Green, Colour::Blue] };
        let users = users(&ready, "blue")?;
        if how.is_back() {
            how.arm(&ready)?;
        }
        let (speaking, silent) = (confined(&ready, idle.name())?, confined(&ready, idle.name())?);
        let echo = |[_, tester, vip]: [IpAddr; 3]| {
            ready.lab.client.enter(|| Echo::open_from(SocketAddr::new(tester, 0), udp_vip(vip)))?
        };
        let echoes = ENDS.into_iter().map(echo).collect::<Result<Vec<_>>>()?;
        for echo in &echoes {
            assert_eq!(echo.ask("before")?.colour, idle);
        }
        if !how.is_back() {
            how.arm(&ready)?;
        }
        how.wait(&ready)?;

        // No command has run since.
        for connection in &speaking {
            let client = connection.stream().local_addr()?;
            let error = connection.ask().expect_err("it was on the colour that is live now");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{how:?}: {error}");
            no_backend_knows(&ready.lab, client)?;
        }
        for echo in &echoes {
            assert_eq!(echo.ask("after")?.colour, then, "{how:?}");
        }
        for connection in &silent {
            connection.stream().set_nonblocking(true)?;
            let error = connection.stream().read(&mut [0; 64]).expect_err("nobody says anything");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{how:?}: nobody can know: {error}");
            connection.stream().set_nonblocking(false)?;
        }
        bgctl.try_run(how.command())?;
        are_reset(&ready, &silent)?;
        for connection in &users {
            assert_eq!(connection.colour()?, "blue", "{how:?}: it drains");
        }
        bgctl.run(&["switch", DEPLOYMENT, "blue"])?;
    }
    ready.neighbour_is_undisturbed()
}

in_each_setting!(testers_are_told_of_what_happens_by_itself);
