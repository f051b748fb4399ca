//! The Debian package on a Debian machine: installed, configured, back after a reboot, upgraded, removed. systemd runs there
//! as on any other machine, so the unit's order, conditions and sandbox are in force.

use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    Fabric, HTTP_PORT, Lab, Machine, Server, address,
    config::{DEPLOYMENT, shop, udp_vip},
    load::Echo,
};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const INTERFACES: &str =
    "# clients, then backends\nfront native\nback native\nlate* # appears while the machine boots\n";

/// A deployment before the one that is switched.
const ANOTHER: &str = r#"
[[deployments.another.services]]
name = "dns"
vip = "203.0.113.99:53"
protocol = "udp"
mode = "nat"
blue = ["10.0.9.1:53"]
green = ["10.0.9.2:53"]

"#;

/// A service of the machine's own that waits for the network. It notes what is switched when it starts.
const SERVER: &str = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n\n\
    [Service]\nType=oneshot\nExecStart=/usr/bin/bgctl status --json\nStandardOutput=truncate:/root/seen\n\n\
    [Install]\nWantedBy=multi-user.target\n";

/// A lab whose edge is a Debian machine.
struct Installed {
    machine: Machine,
    _servers: Vec<Server>,
    lab: Lab,
}

impl Installed {
    /// The machine is on, and nothing of bgctl is on it.
    fn prepare() -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let servers = lab.servers()?;
        let mut machine = Machine::install(&lab.sandbox, &lab.edge)?;
        machine.switch_on()?;
        assert_eq!(machine.booted()?, "running");
        Ok(Self { machine, _servers: servers, lab })
    }

    /// Installs the package, as this version if one is told.
    fn install(&self, version: Option<&str>) -> Result<()> {
        let package = self.machine.copy_package(version)?;
        let line = format!("apt-get install --yes --quiet=2 --no-install-recommends {package}");
        self.machine.run(&line).map(drop)
    }

    /// Names the interfaces and writes the configuration.
    fn configure(&self) -> Result<()> {
        self.machine.write("/etc/bgctl/interfaces", INTERFACES)?;
        let config = ANOTHER.to_owned() + &shop(&self.lab, "nat", "");
        self.machine.write("/etc/bgctl/bgctl.toml", &config)
    }

    /// An interface that is not there when the boot begins.
    fn late_interface_appears(&self) -> Result<()> {
        self.lab.edge.ip("link add late0 type veth peer name elsewhere").map(drop)
    }

    /// What a new flow is answered by.
    fn answer(&self) -> Result<Colour> {
        Ok(Echo::open(&self.lab.client, udp_vip(address::VIP_V4))?.ask("who")?.colour)
    }

    fn status(&self) -> Result<Value> {
        let text = self.machine.run("bgctl status --json")?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    fn live(&self, deployment: &str) -> Result<String> {
        let status = self.status()?;
        let deployments = status["deployments"].as_array().context("no deployments")?;
        let found = deployments.iter().find(|found| found["name"] == deployment).context("no such deployment")?;
        Ok(found["live"].as_str().context("no live colour")?.to_owned())
    }

    /// A property of the unit.
    fn unit(&self, property: &str) -> Result<String> {
        self.property("bgctl.service", property)
    }

    /// A property of a unit.
    fn property(&self, unit: &str, property: &str) -> Result<String> {
        let line = format!("systemctl show {unit} --value --property {property}");
        Ok(self.machine.run(&line)?.trim().to_owned())
    }

    /// What the unit has written into the journal, for a failure's message.
    fn journal(&self) -> String {
        self.machine.run("journalctl --no-pager --unit bgctl.service").unwrap_or_else(|error| error.to_string())
    }

    /// Starts the unit while an interface is missing, which then appears.
    fn start(&self) -> Result<()> {
        self.machine.run("systemctl start --no-block bgctl.service")?;
        self.late_interface_appears()?;
        self.until_active()
    }

    fn until_active(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let state = self.unit("ActiveState")?;
            if state == "active" {
                return Ok(());
            }
            assert!(state == "activating" && start.elapsed() < Duration::from_secs(60), "{state}: {}", self.journal());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn attached(status: &Value) -> Vec<(&str, &str)> {
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    interfaces.filter_map(|interface| Some((interface["name"].as_str()?, interface["mode"].as_str()?))).collect()
}

const ALL: [(&str, &str); 3] = [("back", "native"), ("front", "native"), ("late0", "tc")];

#[test]
fn a_machine_comes_back_from_a_reboot_with_the_colour_that_was_live() -> Result<()> {
    let mut installed = Installed::prepare()?;
    installed.install(None)?;

    // Nobody has configured it: it does nothing, and that is no failure.
    let machine = &installed.machine;
    assert_eq!(machine.run("systemctl is-enabled bgctl.service")?.trim(), "enabled");
    assert_eq!((installed.unit("ActiveState")?, installed.unit("ConditionResult")?), ("inactive".into(), "no".into()));
    assert_eq!(machine.booted()?, "running");
    machine.run("bgctl check -c /usr/share/doc/bgctl/examples/bgctl.toml")?;

    installed.configure()?;
    installed.start()?;
    assert_eq!(attached(&installed.status()?), ALL);
    assert_eq!(installed.answer()?, Colour::Blue);

    machine.run(&format!("bgctl switch {DEPLOYMENT}"))?;
    assert_eq!(installed.answer()?, Colour::Green);
    machine.run("systemctl stop bgctl.service")?;
    assert_eq!(installed.answer()?, Colour::Green, "stopping the service leaves packets alone");
    machine.run("systemctl start bgctl.service")?;
    machine.run("systemctl reload bgctl.service")?;
    assert_eq!(installed.answer()?, Colour::Green);

    machine.write("/etc/systemd/system/server.service", SERVER)?;
    machine.run("systemctl enable --quiet server.service")?;

    installed.machine.switch_off()?;
    installed.lab.edge.ip("link del late0")?;
    assert!(installed.answer().is_err(), "no program outlives the machine");
    installed.machine.switch_on()?;
    thread::sleep(Duration::from_millis(300));
    installed.late_interface_appears()?;
    assert_eq!(installed.machine.booted()?, "running", "{}", installed.journal());
    assert_eq!(installed.unit("ActiveState")?, "active", "{}", installed.journal());
    assert_eq!(installed.answer()?, Colour::Green);
    assert_eq!((installed.live(DEPLOYMENT)?, installed.live("another")?), ("green".into(), "blue".into()));
    assert_eq!(attached(&installed.status()?), ALL);
    let seen: Value = serde_json::from_str(&std::fs::read_to_string(installed.machine.path("/root/seen"))?)?;
    assert_eq!(attached(&seen), ALL, "what serves comes later");
    assert_eq!(seen["deployments"][1]["live"], "green", "{seen}");
    Ok(())
}

#[test]
fn the_unit_is_confined_and_a_missing_interface_fails_it_without_stopping_the_others() -> Result<()> {
    let installed = Installed::prepare()?;
    installed.install(None)?;
    installed.configure()?;
    let machine = &installed.machine;
    let unit = "/usr/lib/systemd/system/bgctl.service";
    assert_eq!(machine.run(&format!("systemd-analyze verify --man=no {unit}"))?, "");

    // A boot waits half a minute; a test does not have to.
    let text = std::fs::read_to_string(machine.path(unit))?;
    assert!(text.contains("--wait 30s"));
    machine.write("/etc/systemd/system/bgctl.service", &text.replace("--wait 30s", "--wait 500ms"))?;
    machine.run("systemctl daemon-reload")?;
    assert!(machine.run("systemctl start bgctl.service").is_err(), "late0 is missing");
    assert_eq!(installed.unit("ActiveState")?, "failed");
    let journal = installed.journal();
    assert!(journal.contains("no interface matches late*"), "{journal}");
    assert_eq!(attached(&installed.status()?), ALL[..2]);
    assert_eq!(installed.answer()?, Colour::Blue);
    installed.start()?;
    assert_eq!(attached(&installed.status()?), ALL);

    let capabilities = installed.unit("CapabilityBoundingSet")?;
    assert_eq!(capabilities, "cap_net_admin cap_net_raw cap_perfmon cap_bpf");
    let state = machine.run("stat --format %a:%U /var/lib/bgctl")?;
    assert_eq!(state.trim(), "700:root");
    let rating = machine.run("systemd-analyze security --no-pager bgctl.service")?;
    let exposure =
        rating.lines().rev().find_map(|line| line.split("Overall exposure level for bgctl.service: ").nth(1));
    let exposure: f64 = exposure.and_then(|rest| rest.split(' ').next()).context("no rating")?.parse()?;
    println!("systemd-analyze security: {exposure}");
    // It opens raw sockets and sends to whoever has a connection, which costs 0.3.
    assert!(exposure <= 2.3, "{rating}");
    Ok(())
}

#[test]
fn an_upgrade_is_not_noticed_by_packets_and_a_purge_leaves_no_file() -> Result<()> {
    let installed = Installed::prepare()?;
    let machine = &installed.machine;
    let before = machine.files()?;
    installed.install(None)?;
    for file in [
        "/usr/share/man/man1/bgctl.1.gz",
        "/usr/share/man/man5/bgctl.toml.5.gz",
        "/usr/share/bash-completion/completions/bgctl",
        "/usr/share/zsh/vendor-completions/_bgctl",
        "/usr/share/fish/vendor_completions.d/bgctl.fish",
        "/usr/share/doc/bgctl/copyright",
    ] {
        assert!(machine.path(file).exists(), "{file}");
    }
    installed.configure()?;
    installed.start()?;
    machine.run(&format!("bgctl switch {DEPLOYMENT} green"))?;

    // One flow that stays open, and new ones, are answered by the same colour all the while.
    let upgraded = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let open = Echo::open(&installed.lab.client, udp_vip(address::VIP_V6))?;
            let backend = open.ask("begin")?.backend;
            let mut asked = 0;
            while !upgraded.load(Ordering::Relaxed) {
                assert_eq!(open.ask(&asked.to_string())?.backend, backend);
                assert_eq!(installed.answer()?, Colour::Green);
                asked += 1;
            }
            anyhow::Ok(asked)
        });
        let result = installed.install(Some("99.0"));
        upgraded.store(true, Ordering::Relaxed);
        let asked = watching.join().expect("no assertion failed")?;
        println!("answered {asked} times during the upgrade");
        assert!(asked > 50);
        result
    })?;
    assert_eq!(machine.run("dpkg-query --show --showformat ${Version} bgctl")?, "99.0");
    assert_eq!(installed.unit("ActiveState")?, "active");
    assert_eq!(installed.unit("NeedDaemonReload")?, "no");
    let configured = std::fs::read_to_string(machine.path("/etc/bgctl/interfaces"))?;
    assert_eq!(configured, INTERFACES, "an upgrade keeps what the operator has written");
    machine.run("systemctl reload bgctl.service")?;
    assert_eq!(installed.live(DEPLOYMENT)?, "green");

    // A removal ends the instance, since nothing would be left to control it, and keeps what it remembers.
    machine.run("apt-get remove --yes --quiet=2 bgctl")?;
    assert!(machine.run("ls /sys/fs/bpf/bgctl").is_err());
    assert!(installed.answer().is_err());
    installed.install(None)?;
    assert_eq!(installed.unit("ActiveState")?, "active", "{}", installed.journal());
    assert_eq!((installed.live(DEPLOYMENT)?, installed.answer()?), ("green".into(), Colour::Green));

    machine.run("apt-get purge --yes --quiet=2 bgctl")?;
    assert!(machine.run("ls /sys/fs/bpf/bgctl").is_err());
    let left: Vec<_> = machine.files()?.into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(left, [""; 0]);
    Ok(())
}

const SERVE: &str = "bgctl-serve.service";

/// A port of the neighbours that no other service has.
const TEED_PORT: u16 = 8090;

/// A service in mode `tee` of each family, without listeners.
fn teed(lab: &Lab) -> String {
    let service = |family: usize, vip: IpAddr| {
        let at = |colour: Colour| {
            let of = lab.backends.iter().find(|backend| backend.colour == colour).expect("a backend of each colour");
            SocketAddr::new(of.addresses[family], HTTP_PORT)
        };
        format!(
            "[[deployments.teed.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"tee\"\nblue = [\"{}\"]\ngreen = [\"{}\"]\n",
            SocketAddr::new(vip, TEED_PORT),
            at(Colour::Blue),
            at(Colour::Green)
        )
    };
    service(0, address::NEIGHBOUR_V4) + &service(1, address::NEIGHBOUR_V6)
}

#[test]
fn services_that_feed_both_colours_come_back_before_the_network_does() -> Result<()> {
    let mut installed = Installed::prepare()?;
    installed.install(None)?;
    let machine = &installed.machine;
    machine.write("/etc/bgctl/interfaces", "front native\nback native\n")?;
    machine.write("/etc/bgctl/bgctl.toml", &(shop(&installed.lab, "nat", "") + &teed(&installed.lab)))?;
    machine.write("/root/check", "exec bgctl check 2>&1\n")?;
    let noted = |text: &str| text.contains("no apply has chosen listeners yet");
    assert!(noted(&machine.run("sh /root/check")?));
    machine.run("systemctl start bgctl.service").with_context(|| installed.journal())?;
    assert!(!noted(&machine.run("sh /root/check")?));
    let listeners = |installed: &Installed| -> Result<Vec<Value>> {
        let status = installed.status()?;
        let deployments = status["deployments"].as_array().context("no deployments")?;
        let teed = deployments.iter().find(|found| found["name"] == "teed").context("no such deployment")?;
        Ok(teed["services"].as_array().context("no services")?.iter().map(|of| of["listen"].clone()).collect())
    };
    let before = listeners(&installed)?;
    assert!(before.len() == 2 && before.iter().all(Value::is_object), "{before:?}");

    installed.machine.switch_off()?;
    let edge = installed.lab.edge.clone();
    edge.ip("address flush dev back")?;
    installed.machine.switch_on()?;
    assert_eq!(installed.machine.booted()?, "running", "{}", installed.journal());
    assert_eq!(installed.unit("ActiveState")?, "active", "{}", installed.journal());
    assert_eq!(listeners(&installed)?, before);
    let controller = installed.machine.run(&format!("systemctl start {SERVE}"));
    controller.with_context(|| installed.journal())?;

    edge.ip(&format!("address add {}/16 dev back", address::BACK_V4))?;
    edge.ip(&format!("address add {}/64 dev back nodad", address::BACK_V6))?;
    let end = Instant::now() + Duration::from_secs(30);
    for vip in [address::NEIGHBOUR_V4, address::NEIGHBOUR_V6] {
        let asked = format!("curl -g -s -S -f -m 2 http://{}/", SocketAddr::new(vip, TEED_PORT));
        loop {
            match installed.lab.client.run(&asked) {
                Ok(answer) => break assert!(answer.starts_with("blue"), "{answer}"),
                Err(error) => assert!(Instant::now() < end, "{error:#}: {}", installed.journal()),
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(installed.answer()?, Colour::Blue);
    Ok(())
}

/// An address that comes after the apply of the boot, and before the network is online.
const ADDRESS: &str = "[Unit]\nAfter=bgctl.service\nBefore=network-online.target\n\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/sbin/ip address add BACK/16 dev back\n\n\
    [Install]\nWantedBy=network-online.target\n";

#[test]
fn sources_of_outer_headers_are_learned_when_the_network_is_up() -> Result<()> {
    const ONLINE: &str = "bgctl-online.service";
    const UNKNOWN: &str = "no source address is known";
    let mut installed = Installed::prepare()?;
    installed.install(None)?;
    let machine = &installed.machine;
    assert_eq!(machine.run(&format!("systemctl is-enabled {ONLINE}"))?.trim(), "enabled");
    assert_eq!(machine.run(&format!("systemd-analyze verify --man=no /usr/lib/systemd/system/{ONLINE}"))?, "");
    machine.write("/etc/bgctl/interfaces", "front native\nback native\n")?;
    let backend = installed.lab.backends[0].addresses[0];
    let (vip, to) = (SocketAddr::new(address::VIP_V4, HTTP_PORT), SocketAddr::new(backend, HTTP_PORT));
    let config = format!(
        "[[deployments.shop.services]]\nvip = \"{vip}\"\nprotocol = \"tcp\"\nmode = \"ipip\"\nblue = [\"{to}\"]\ngreen = [\"{to}\"]\n"
    );
    machine.write("/etc/bgctl/bgctl.toml", &config)?;
    machine.write("/root/doctor", "bgctl doctor 2>&1 || true\n")?;
    machine.write("/etc/systemd/system/address.service", &ADDRESS.replace("BACK", &address::BACK_V4.to_string()))?;
    machine.run("systemctl enable --quiet address.service")?;
    machine.run("systemctl start bgctl.service").with_context(|| installed.journal())?;

    installed.machine.switch_off()?;
    installed.lab.edge.ip("address flush dev back")?;
    installed.machine.switch_on()?;
    assert_eq!(installed.machine.booted()?, "running", "{}", installed.journal());
    assert!(installed.journal().contains(UNKNOWN), "{}", installed.journal());
    assert_eq!(installed.property(ONLINE, "ActiveState")?, "active");
    let doctor = installed.machine.run("sh /root/doctor")?;
    assert!(!doctor.contains(&format!("outer headers towards {backend}")), "{doctor}");
    Ok(())
}

#[test]
fn the_controller_is_supervised_and_an_upgrade_restarts_it() -> Result<()> {
    let installed = Installed::prepare()?;
    installed.install(None)?;
    installed.configure()?;
    installed.start()?;
    let machine = &installed.machine;
    let unit = format!("/usr/lib/systemd/system/{SERVE}");
    assert_eq!(machine.run(&format!("systemd-analyze verify --man=no {unit}"))?, "");
    let of = |property: &str| installed.property(SERVE, property);
    let journal = || machine.run(&format!("journalctl --no-pager --unit {SERVE} --output json")).unwrap_or_default();
    assert_eq!(of("UnitFileState")?, "disabled", "whoever wants one enables it");
    assert_eq!(of("ActiveState")?, "inactive");
    machine.run(&format!("systemctl enable --quiet --now {SERVE}")).with_context(journal)?;
    assert_eq!(of("ActiveState")?, "active", "{}", journal());
    let first = of("MainPID")?;

    // Another main process, which is ready, within a few seconds.
    let replaced = |before: &str| -> Result<String> {
        let start = Instant::now();
        loop {
            let (state, now) = (of("ActiveState")?, of("MainPID")?);
            if state == "active" && now != "0" && now != before {
                return Ok(now);
            }
            assert!(start.elapsed() < Duration::from_secs(15), "{state}: {}", journal());
            thread::sleep(Duration::from_millis(50));
        }
    };
    machine.run(&format!("systemctl kill --kill-whom=main --signal=KILL {SERVE}"))?;
    let second = replaced(&first)?;
    assert_eq!(installed.answer()?, Colour::Blue);
    // One that hangs is no use either.
    machine.run(&format!("systemctl kill --kill-whom=main --signal=STOP {SERVE}"))?;
    let third = replaced(&second)?;

    machine.run(&format!("systemctl reload {SERVE}"))?;
    machine.run(&format!("bgctl switch {DEPLOYMENT}"))?;
    let start = Instant::now();
    let told = loop {
        let journal = journal();
        let mut messages = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let switched = messages.find(|message| message["ACTION"] == "switch");
        match switched {
            Some(message) => break message,
            None if start.elapsed() > Duration::from_secs(10) => panic!("{journal}"),
            None => thread::sleep(Duration::from_millis(100)),
        }
    };
    assert_eq!(told["DEPLOYMENT"], DEPLOYMENT, "{told}");
    assert_eq!(told["SYSLOG_IDENTIFIER"], "bgctl", "{told}");
    assert!(journal().contains("the configuration was read again"));

    installed.install(Some("99.0"))?;
    replaced(&third)?;
    assert_eq!(installed.answer()?, Colour::Green);
    machine.run(&format!("systemctl stop {SERVE}"))?;
    assert_eq!((of("ActiveState")?, of("Result")?), ("inactive".into(), "success".into()), "{}", journal());
    assert_eq!(installed.answer()?, Colour::Green, "stopping the controller leaves packets alone");
    Ok(())
}
