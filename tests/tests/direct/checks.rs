//! Health checks go to the virtual address at the backend, as the packets of clients do.

use crate::stage::{Stage, VIPS, WAYS};
use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{Backend, BackendHealth, Controller, HTTP_PORT, Server, address};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
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
fn config(stage: &Stage, all: &[Checked], times: &str) -> String {
    let mut config = String::new();
    let mut service = |deployment: &str, checked: &Checked, check: &str| {
        let of = |colour: Colour| {
            let backends = stage.lab.backends.iter().filter(|backend| backend.colour == colour);
            backends.map(|backend| format!("\"{}\"", checked.at(backend))).collect::<Vec<_>>().join(", ")
        };
        config += &format!(
            "[[deployments.{deployment}.services]]\nvip = \"{}\"\nprotocol = \"tcp\"\nmode = \"{}\"\nblue = [{}]\ngreen = [{}]\nhealth = {{ {check}, port = {HTTP_PORT}, {times} }}\n",
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
    stage.bgctl.apply(&config(&stage, &all, CHECK))?;
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
    stage.bgctl.apply(&config(&stage, &all, CHECK))?;
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

/// For tests in which nothing may go down: a slow machine is to have its time.
const PATIENT: &str = "interval = \"300ms\", timeout = \"300ms\", rise = 1, fall = 3";

/// Waits for something, for as long as it takes to try it again after a failure.
fn until(controller: &Controller, what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        ensure!(begin.elapsed() < Duration::from_secs(40), "not {what}: {}", controller.log()?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

const BPF_TCX_INGRESS: u64 = 46;
const BPF_TCX_EGRESS: u64 = 47;

/// bpf(2), whose attributes are words here.
fn bpf(command: libc::c_long, attributes: &mut [u64; 16]) -> Result<i32> {
    // SAFETY: the attributes, and what they point to, outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    ensure!(result >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    Ok(result as i32)
}

/// The index of an interface of the thread's network namespace.
fn index(interface: &str) -> Result<u64> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a string that ends in a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "no interface {interface}");
    Ok(index.into())
}

/// The link by which this program is on an interface of the edge. (Older versions of bpftool do not show it.)
fn link(stage: &Stage, interface: &str, program: &str) -> Result<Option<u32>> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const MOST: usize = 64;
    let is_called = |id: u32| {
        let mut all = aya::programs::loaded_programs().filter_map(Result::ok);
        all.any(|info| info.id() == id && info.name_as_str() == Some(program))
    };
    let attached = |hook| -> Result<Vec<(u32, u32)>> {
        let (mut programs, mut links) = ([0_u32; MOST], [0_u32; MOST]);
        let mut query = [0; 16];
        query[0] = index(interface)? | hook << 32;
        (query[2], query[3], query[5]) = (programs.as_mut_ptr() as u64, MOST as u64, links.as_mut_ptr() as u64);
        bpf(BPF_PROG_QUERY, &mut query)?;
        Ok(programs.into_iter().zip(links).filter(|(program, _)| *program != 0).collect())
    };
    let both = || Ok([attached(BPF_TCX_INGRESS)?, attached(BPF_TCX_EGRESS)?].concat());
    let both: Result<Vec<(u32, u32)>> = stage.lab.edge.enter(both)?;
    Ok(both?.into_iter().find(|(id, _)| is_called(*id)).map(|(_, link)| link))
}

/// Whatever becomes of the controller's own device and programs says nothing of the backends: none goes down, none is asked at its own
/// address, and the checks go on by a new device or program.
#[test]
fn trouble_of_the_own_device_is_no_verdict() -> Result<()> {
    let stage = Stage::new("native")?;
    let edge = &stage.lab.edge;
    let at_home = |backend: &Backend| Server::start(&backend.namespace, &backend.says(), &backend.addresses);
    let at_home = stage.lab.backends.iter().map(at_home).collect::<Result<Vec<_>>>()?;
    let all = all();
    stage.bgctl.apply(&config(&stage, &all, PATIENT))?;
    let controller = Controller::start(&stage.bgctl)?;
    wait(&stage, &all, "blue1", |_| false, "up").with_context(|| controller.log().unwrap_or_default())?;
    let device =
        || -> Result<Option<String>> { Ok(edge.interfaces()?.into_iter().find(|name| name.starts_with("bgcheck"))) };
    let made = || -> Result<usize> { Ok(controller.log()?.matches("go to their virtual addresses").count()) };
    let requests = || stage.servers.iter().map(Server::requests).sum::<u64>();
    let back = stage.lab.interfaces.iter().copied().find(|name| *name == "back").context("no interface")?;
    for trouble in
        ["link set DEVICE down", "address flush dev DEVICE", "link del DEVICE", "detach check_out", "detach check_in"]
    {
        let name = device()?.context("no device")?;
        let (before, was_in) = (made()?, link(&stage, back, "check_in")?.context("check_in is not there")?);
        match trouble {
            "detach check_in" => edge.run(&format!("bpftool link detach id {was_in}"))?,
            "detach check_out" => {
                let id = link(&stage, &name, "check_out")?.context("check_out is not there")?;
                edge.run(&format!("bpftool link detach id {id}"))?
            }
            _ => edge.ip(&trouble.replace("DEVICE", &name))?,
        };
        if trouble == "detach check_in" {
            let is_back = || Ok(link(&stage, back, "check_in")?.is_some_and(|id| id != was_in));
            until(&controller, trouble, is_back)?;
        } else {
            until(&controller, trouble, || Ok(made()? > before))?;
        }
        let asked = requests();
        until(&controller, trouble, || Ok(requests() > asked + 150))?;
        let log = controller.log()?;
        ensure!(!log.contains("a backend is down"), "{trouble}: {log}");
        let own = at_home.iter().map(Server::requests).sum::<u64>();
        ensure!(own == 0, "{trouble}: {own} requests went to own addresses: {log}");
    }
    // They do see what is wrong with a backend.
    let backend = stage.lab.backends.iter().find(|backend| backend.name == "blue1").context("no blue1")?;
    backend.namespace.ip(&format!("address del {}/32 dev lo", address::VIP_V4))?;
    wait(&stage, &all, "blue1", |checked| checked.vip == address::VIP_V4, "down")?;
    Ok(())
}

/// A program that accepts each packet, after all that are on this interface's TCX ingress now. It ends with the descriptors.
fn accepting(interface: &str) -> Result<[OwnedFd; 2]> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
    /// `r0 = TC_ACT_OK; exit`.
    const PROGRAM: [u64; 2] = [0xb7, 0x95];
    let held = |command, attributes| -> Result<OwnedFd> {
        let fd = bpf(command, attributes)?;
        // SAFETY: a new descriptor, that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let mut load = [0; 16];
    // Type and number of instructions; instructions; licence.
    load[..3].copy_from_slice(&[BPF_PROG_TYPE_SCHED_CLS | 2 << 32, PROGRAM.as_ptr() as u64, c"GPL".as_ptr() as u64]);
    let program = held(BPF_PROG_LOAD, &mut load)?;
    let mut attach = [0; 16];
    attach[..2].copy_from_slice(&[program.as_raw_fd() as u64 | index(interface)? << 32, BPF_TCX_INGRESS]);
    let link = held(BPF_LINK_CREATE, &mut attach)?;
    Ok([program, link])
}

/// Replies to checks are taken before a program of others that lets nobody else see them, and bgctl takes its own program for none of others.
#[test]
fn programs_of_others_take_no_replies_of_checks() -> Result<()> {
    let stage = Stage::new("native")?;
    let at_home = |backend: &Backend| Server::start(&backend.namespace, &backend.says(), &backend.addresses);
    let _at_home = stage.lab.backends.iter().map(at_home).collect::<Result<Vec<_>>>()?;
    let all = all();
    stage.bgctl.apply(&config(&stage, &all, PATIENT))?;
    let _accepting = stage.lab.edge.enter(|| accepting("back"))??;
    let controller = Controller::start(&stage.bgctl)?;
    wait(&stage, &all, "blue1", |_| false, "up").with_context(|| controller.log().unwrap_or_default())?;
    ensure!(link(&stage, "back", "check_in")?.is_some(), "check_in is not there");
    for command in [&["status"][..], &["doctor"]] {
        let output = stage.bgctl.try_run(command)?;
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        ensure!(!said.is_empty() && !said.contains("check_in"), "{command:?}: {said}");
    }
    Ok(())
}
