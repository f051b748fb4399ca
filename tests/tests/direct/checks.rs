//! Health checks go to the virtual address at the backend, as the packets of clients do.

use crate::stage::{Stage, VIPS, WAYS};
use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{Backend, BackendHealth, Controller, HTTP_PORT, Server, address};
use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

/// `rise` and `fall` are small, and so is the interval: there are many steps.
const CHECK: &str = "interval = \"200ms\", timeout = \"150ms\", rise = 1, fall = 2";
/// The most that `fall` silent checks take, four times: machines of tests are slow.
const BOUND: Duration = Duration::from_millis(4 * (2 * 200 + 150));
/// Flapping is damped: each time, twice as many checks have to pass.
const BACK: Duration = Duration::from_secs(20);
/// The first of the services' ports. The checks ask another one, at which the servers listen.
const PORTS: u16 = 2001;

/// A checked service.
struct Checked {
    vip: IpAddr,
    mode: &'static str,
    is_of_v6: bool,
    port: u16,
}

impl Checked {
    fn at(&self, backend: &Backend) -> SocketAddr {
        SocketAddr::new(backend.addresses[usize::from(self.is_of_v6)], self.port)
    }
}

/// All modes, over all families, by turns asked with TCP and HTTP.
fn all() -> Vec<Checked> {
    let ways = VIPS.into_iter().flat_map(|vip| WAYS.map(|way| (vip, way)));
    let checked = ways.zip(PORTS..).map(|((vip, (mode, is_of_v6)), port)| {
        let is_of_v6 = is_of_v6.unwrap_or(vip.is_ipv6());
        Checked { vip, mode, is_of_v6, port }
    });
    checked.collect()
}

/// Two deployments of such services, and one of a service in mode `nat`, whose checks go to the backends' own addresses.
fn config(stage: &Stage, all: &[Checked]) -> String {
    let mut config = String::new();
    let mut service = |deployment: &str, checked: &Checked, check: &str| {
        let of = |colour: Colour| {
            let backends = stage.lab.backends.iter().filter(|backend| backend.colour == colour);
            backends.map(|backend| format!("\"{}\"", checked.at(backend))).collect::<Vec<_>>().join(", ")
        };
        config += &format!(
            "[[deployments.{deployment}.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"{}\"\nblue = [{}]\ngreen = [{}]\nhealth = {{ {check}, port = {HTTP_PORT}, {CHECK} }}\n",
            SocketAddr::new(checked.vip, checked.port),
            checked.mode,
            of(Colour::Blue),
            of(Colour::Green),
        );
    };
    for (nth, checked) in all.iter().enumerate() {
        let deployment = if checked.vip.is_ipv4() { "shop" } else { "mail" };
        let check = ["kind = \"tcp\"", "kind = \"http\", path = \"/\", expect_body = \"blue|green\""][nth % 2];
        service(deployment, checked, check);
    }
    let nat = Checked { vip: address::VIP_V4, mode: "nat", is_of_v6: false, port: PORTS - 1 };
    service("own", &nat, "kind = \"tcp\"");
    config
}

/// Waits until all services are in this state at the backend, if they are of those, and up if not.
fn wait(
    stage: &Stage,
    all: &[Checked],
    name: &str,
    is_hit: impl Fn(&Checked) -> bool,
    state: &str,
) -> Result<Duration> {
    let maps = BackendHealth::open(stage.lab.sandbox.pin_root())?;
    let begin = Instant::now();
    for backend in &stage.lab.backends {
        for checked in all {
            let expected = if backend.name == name && is_hit(checked) { state } else { "up" };
            let what = || format!("{} {} in mode {} at {}", checked.vip, checked.port, checked.mode, backend.name);
            maps.wait(checked.at(backend), expected, BACK).with_context(what)?;
        }
        let own = SocketAddr::new(backend.addresses[0], PORTS - 1);
        maps.wait(own, "up", BACK).context("the check of an own address")?;
    }
    Ok(begin.elapsed())
}

/// Breaks something at the first blue backend, sees what does not work there any more, and mends it.
fn break_and_mend(
    stage: &Stage,
    all: &[Checked],
    what: &str,
    is_hit: impl Fn(&Checked) -> bool,
    (breaks, mends): (impl Fn(&Backend) -> Result<()>, impl Fn(&Backend) -> Result<()>),
) -> Result<()> {
    let backend = stage.lab.backends.iter().find(|backend| backend.name == "blue1").context("no blue1")?;
    breaks(backend)?;
    let took = wait(stage, all, backend.name, &is_hit, "down").with_context(|| what.to_owned())?;
    println!("{what}: down after {} ms, at most {} ms", took.as_millis(), BOUND.as_millis());
    ensure!(took <= BOUND, "{what}: down only after {took:?}");
    mends(backend)?;
    wait(stage, all, backend.name, |_| false, "up").with_context(|| format!("{what}, mended"))?;
    Ok(())
}

/// A backend that lacks the virtual address or its decapsulator is down for the services that need it, though its own address answers, and comes back.
fn what_is_missing_is_seen(attach: &str, has_vip: bool) -> Result<()> {
    let stage = Stage::new(attach)?;
    let edge = &stage.lab.edge;
    for vip in VIPS.into_iter().filter(|_| has_vip) {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        edge.ip(&format!("address add {vip}/{length} dev lo"))?;
    }
    let at_home = |backend: &Backend| Server::start(&backend.namespace, &backend.says(), &backend.addresses);
    let _at_home = stage.lab.backends.iter().map(at_home).collect::<Result<Vec<_>>>()?;
    let all = all();
    stage.bgctl.apply(&config(&stage, &all))?;
    let devices =
        || -> Result<usize> { Ok(edge.interfaces()?.iter().filter(|name| name.starts_with("bgcheck")).count()) };
    let controller = Controller::start(&stage.bgctl)?;
    wait(&stage, &all, "blue1", |_| false, "up").with_context(|| controller.log().unwrap_or_default())?;
    ensure!(devices()? == 1, "{:?}", edge.interfaces()?);

    // A backend that forwards sends what it does not know back to the edge, which must not give it to a backend that works.
    let loops = |on: &str| {
        let backend = &stage.lab.backends.iter().find(|backend| backend.name == "blue1").context("no blue1")?.namespace;
        backend.sysctl("ipv4/ip_forward", on)?;
        backend.sysctl("ipv4/conf/all/send_redirects", "0")?;
        anyhow::Ok(())
    };
    loops("1")?;
    let vip = |vip: IpAddr, verb: &'static str| {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        move |backend: &Backend| {
            let nodad = if vip.is_ipv6() && verb == "add" { "nodad" } else { "" };
            backend.namespace.ip(&format!("address {verb} {vip}/{length} dev lo {nodad}")).map(drop)
        }
    };
    for address in VIPS {
        let what = format!("{attach}: without {address}");
        let steps = (vip(address, "del"), vip(address, "add"));
        break_and_mend(&stage, &all, &what, |checked| checked.vip == address, steps)?;
    }
    loops("0")?;
    let pins = |backend: &Backend| stage.lab.sandbox.pin_root().join(backend.name).display().to_string();
    let program = stage.bgctl.program().display().to_string();
    let decap = |verb: &'static str, rest: String| {
        let (program, pins) = (program.clone(), &pins);
        move |backend: &Backend| {
            let line = format!("{program} decap {verb} eth0 {rest} --pin-root {}", pins(backend));
            backend.namespace.run(&line).map(drop)
        }
    };
    let from = format!("--from {}/32 --from {}/128", address::BACK_V4, address::BACK_V6);
    let steps = (decap("detach", String::new()), decap("attach", from));
    break_and_mend(&stage, &all, &format!("{attach}: without decapsulator"), |checked| checked.mode != "l2dsr", steps)?;

    // Killed, it leaves nothing behind, and its successor does the same.
    controller.end(libc::SIGKILL)?;
    let begin = Instant::now();
    while devices()? != 0 || has_program()? {
        ensure!(begin.elapsed() < Duration::from_secs(10), "left behind: {:?}", edge.interfaces()?);
        thread::sleep(Duration::from_millis(20));
    }
    let controller = Controller::start(&stage.bgctl)?;
    controller_checks_by_vip(&controller)?;
    wait(&stage, &all, "blue1", |_| false, "up")?;
    ensure!(devices()? == 1, "{:?}", edge.interfaces()?);
    controller.end(libc::SIGTERM)?;
    ensure!(devices()? == 0, "{:?}", edge.interfaces()?);
    Ok(())
}

/// Waits until it says that checks go to virtual addresses.
fn controller_checks_by_vip(controller: &Controller) -> Result<()> {
    let begin = Instant::now();
    while !controller.log()?.contains("go to their virtual addresses") {
        ensure!(begin.elapsed() < Duration::from_secs(10), "{}", controller.log()?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a program of such checks is loaded, on this machine: no other test runs beside this one.
fn has_program() -> Result<bool> {
    for program in aya::programs::loaded_programs() {
        if program.is_ok_and(|program| program.name_as_str().is_some_and(|name| name.starts_with("check_"))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Without the device, checks go to the backends' own addresses, which is said once, and nothing is down for that.
#[test]
fn a_host_without_tun_devices_checks_the_own_addresses() -> Result<()> {
    let stage = Stage::new("native")?;
    let at_home = |backend: &Backend| Server::start(&backend.namespace, &backend.says(), &backend.addresses);
    let at_home = stage.lab.backends.iter().map(at_home).collect::<Result<Vec<_>>>()?;
    let all = all();
    stage.bgctl.apply(&config(&stage, &all))?;
    for backend in &stage.lab.backends {
        backend.namespace.ip(&format!("address del {}/32 dev lo", address::VIP_V4))?;
    }
    let wrapper = ["unshare", "--mount", "sh", "-c", "mount --bind /dev/null /dev/net/tun && exec \"$@\"", "sh"];
    let arguments = ["-c", &stage.bgctl.config().display().to_string()];
    let mut controller = Controller::launch_by(&stage.bgctl, &wrapper, &arguments)?;
    controller.wait_for("the controller is ready")?;
    wait(&stage, &all, "blue1", |_| false, "up")?;
    let requests = || at_home.iter().map(Server::requests).sum::<u64>();
    let before = requests();
    let begin = Instant::now();
    while requests() < before + 50 {
        ensure!(begin.elapsed() < Duration::from_secs(20), "{}", controller.log()?);
        thread::sleep(Duration::from_millis(20));
    }
    let log = controller.log()?;
    ensure!(log.matches("go to the backends' own addresses").count() == 1 && log.contains("TUN device"), "{log}");
    Ok(())
}

#[test]
fn a_backend_that_clients_do_not_reach_is_down() -> Result<()> {
    what_is_missing_is_seen("native", true)
}

#[test]
fn a_backend_that_clients_do_not_reach_is_down_for_an_edge_without_the_address() -> Result<()> {
    what_is_missing_is_seen("tc", false)
}
