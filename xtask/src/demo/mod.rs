//! `demo`: shows how real connections move from blue to green and back without a failure.
//!
//! There are a client, an edge and four backends, as separate machines on wires, with the real bgctl on the edge. The demo
//! fails if a single request fails.

pub(crate) mod backend;
mod summary;
mod view;
mod web;

use crate::{
    packages::{Tools, install_tools},
    process::{as_root, can_be_root, is_root, run as run_command, say},
    workspace,
};
use anyhow::{Result, bail};
use bg_common::Colour;
use bg_tests::{
    Bgctl, Fabric, Lab, Live, Process, SwitchInstant, address,
    config::{DEPLOYMENT, http_vip, shop_alone, udp_vip},
    load::{Echo, Fresh, KeepAlive},
    sweep,
};
use std::{path::PathBuf, process::Command, time::Duration};
use summary::Summary;
use view::View;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the lab up at the end, and say what to try in it.
    #[arg(long)]
    keep: bool,
    /// Run the controller too, print the address of its web page, and go on until Ctrl-C.
    #[arg(long, conflicts_with = "keep")]
    web: bool,
    /// Remove labs that were kept.
    #[arg(long, conflicts_with_all = ["keep", "web"])]
    remove: bool,
}

/// The variable that names bgctl. It is built before the demo becomes root.
const BGCTL: &str = "BGCTL";

pub(crate) fn run(args: &Args) -> Result<()> {
    if std::env::var_os(BGCTL).is_none() && !args.remove {
        say("building bgctl");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(workspace::root());
        run_command(cargo.args(["build", "--release", "--quiet", "--package", "bg-userspace", "--bin", "bgctl"]))?;
    }
    if !is_root() {
        return again_as_root();
    }
    if args.remove {
        sweep::kept();
        return Ok(());
    }
    install_tools(Tools::Demo)?;
    show(args)
}

fn built_bgctl() -> PathBuf {
    match std::env::var_os(BGCTL) {
        Some(path) => path.into(),
        None => workspace::target_dir().join("release/bgctl"),
    }
}

fn again_as_root() -> Result<()> {
    if !can_be_root() {
        bail!("expected root or sudo: the demo makes network namespaces and loads BPF programs");
    }
    let mut command = as_root("env");
    command.arg(format!("{BGCTL}={}", built_bgctl().display())).arg(std::env::current_exe()?);
    run_command(command.args(std::env::args_os().skip(1)))
}

fn show(args: &Args) -> Result<()> {
    say("a client, an edge, two blue and two green backends: separate machines, network namespaces on this one");
    let lab = Lab::wire(Fabric::Switch)?;
    let backends = lab.backends.iter().map(backend::start).collect::<Result<Vec<Process>>>()?;
    let bgctl = lab.bgctl_at(built_bgctl());
    say("native XDP on both network cards of the edge, and a configuration");
    typed(&bgctl, &["attach", "front", "back", "--mode", "native"])?;
    let (more, token) = if args.web { web::configuration(&lab)? } else { Default::default() };
    let config = bgctl.write_config(&(shop_alone(&lab, "nat", "drain_timeout = \"10m\"") + &more))?;
    typed(&bgctl, &["apply", "-c", &config])?;
    let web = if args.web { Some(web::start(&lab, &bgctl, &token)?) } else { None };
    if let Some(web) = &web {
        say(format_args!("bgctl serve is up; its page: {}", web.address));
    }

    let summary = play(&lab, &bgctl)?;
    print!("{summary}");
    if let Some(web) = &web {
        let vip = http_vip(address::VIP_V4);
        let _kept = KeepAlive { clients: 6, pause: Duration::from_millis(5) }.start(&lab.client, vip)?;
        let _new = Fresh { clients: 3, pause: Duration::from_millis(3) }.start(&lab.client, vip)?;
        say(format_args!("requests go on until Ctrl-C; switch on the page: {}", web.address));
        loop {
            std::thread::park();
        }
    } else if args.keep {
        print!("{}", summary::how_to_play_on(&lab, &bgctl));
        std::mem::forget(backends);
        lab.keep()?;
    } else {
        println!("`cargo xtask demo --keep` leaves the lab up, with commands to try.");
    }
    summary.verdict()
}

/// Runs the demo: switch, rollback, cut.
fn play(lab: &Lab, bgctl: &Bgctl) -> Result<Summary> {
    let (vip, udp) = (http_vip(address::VIP_V4), udp_vip(address::VIP_V4));
    let live = Live::open(lab.sandbox.pin_root())?;
    let stream = Echo::open(&lab.client, udp)?;
    let mut view = View::new(vec![
        ("kept", KeepAlive { clients: 6, pause: Duration::from_millis(5) }.start(&lab.client, vip)?),
        ("new", Fresh { clients: 3, pause: Duration::from_millis(3) }.start(&lab.client, vip)?),
        ("IPv6", Fresh { clients: 1, pause: Duration::from_millis(3) }.start(&lab.client, http_vip(address::VIP_V6))?),
    ]);
    let mut summary = Summary::default();

    say("requests a second over kept connections, over a new one for each, over new ones by IPv6: all on blue");
    summary.stream(stream.ask("before the switch")?.colour == Colour::Blue);
    view.watch(3);

    say("switch: new connections go to green at one instant; kept ones stay on blue for as long as they live");
    let switched = SwitchInstant::measure(&lab.client, udp, &live, || typed(bgctl, &["switch", DEPLOYMENT]))?;
    summary.instant("switch", Colour::Green, &switched);
    view.watch(4);
    summary.stream(stream.ask("after the switch")?.colour == Colour::Blue);
    typed(bgctl, &["status"])?;

    say("rollback: as quickly as it came");
    let back = SwitchInstant::measure(&lab.client, udp, &live, || typed(bgctl, &["rollback", DEPLOYMENT]))?;
    summary.instant("rollback", Colour::Blue, &back);
    view.watch(3);

    say("cut: kept connections are ended now, and their clients find green when they come again");
    view.expect_cut(true);
    let cut = SwitchInstant::measure(&lab.client, udp, &live, || {
        typed(bgctl, &["switch", DEPLOYMENT, "green", "--on-switch", "cut"])
    })?;
    summary.cut(&cut);
    summary.stream(stream.ask("after the cut")?.colour == Colour::Green);
    view.watch(1);
    view.expect_cut(false);
    view.watch(3);

    summary.accounts = view.finish()?;
    Ok(summary)
}

/// Runs bgctl as a person would, and shows its output.
fn typed(bgctl: &Bgctl, arguments: &[&str]) -> Result<()> {
    println!("  $ bgctl {}", arguments.join(" "));
    for line in bgctl.run(arguments)?.lines() {
        println!("    {line}");
    }
    Ok(())
}
