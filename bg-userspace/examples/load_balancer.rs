//! The control loop of a small bare-metal load balancer that uses this library.
//!
//! It attaches to the given interfaces and applies a configuration that is built in code. Then it does the work of a
//! load balancer's control plane: it checks the health of every backend by connecting to it, tells the instance which ones
//! do not respond, so that they get no new flows, and switches to the other colour if the whole live colour is down.
//! Packets never pass through this process. If it is killed, traffic continues to go where it went last.
//!
//! ```console
//! # cargo run --example load_balancer -- 203.0.113.10:80 10.0.1.11:80,10.0.1.12:80 10.0.2.11:80 eth0 eth1
//! ```

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use bg_userspace::{
    AttachOptions, BackendHealth, Colour, Error, Health, Instance, Mode, Paths, Protocol, SwitchRequest, attach,
    config::{
        BackendSpec, Config, Deployment, DivideBy, Encap, Failover, OnSwitch, Service, StickyPrefix, Tee,
        model::AllDown,
    },
};

const DEPLOYMENT: &str = "example";
const SERVICE: &str = "web";
const PERIOD: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vip, blue, green, interfaces @ ..] = arguments.as_slice() else {
        return Err("usage: load_balancer VIP:PORT BLUE,BLUE,... GREEN,GREEN,... INTERFACE...".into());
    };
    let vip: SocketAddr = vip.parse()?;
    let backends = [addresses(blue)?, addresses(green)?];

    // A separate instance, so that it does not interfere with one that bgctl manages.
    let paths =
        Paths { pin_root: "/sys/fs/bpf/example-load-balancer".into(), state_dir: "/run/example-load-balancer".into() };
    for attached in attach(&paths, interfaces, &AttachOptions::default())? {
        println!("{} attached in {} mode", attached.name, attached.mode.name());
    }
    let instance = Instance::open(&paths)?;
    for change in instance.apply(&configuration(vip, &backends))?.changes {
        println!("{change}");
    }
    loop {
        let healthy = backends.each_ref().map(|backends| backends.iter().map(is_healthy).collect::<Vec<_>>());
        // A backend that is down keeps its flows. If it no longer responds, the flows time out or are
        // reset by their clients, which then connect again, to another backend.
        let health = Colour::ALL.into_iter().flat_map(|colour| {
            let of_colour = backends[colour as usize].iter().zip(&healthy[colour as usize]);
            of_colour.map(move |(address, healthy)| BackendHealth {
                deployment: DEPLOYMENT.to_owned(),
                service: SERVICE.to_owned(),
                colour,
                address: *address,
                health: if *healthy { Health::Up } else { Health::Down },
                share: 1.0,
                all_down: AllDown::Open,
            })
        });
        let set = instance.set_health(&health.collect::<Vec<_>>())?;
        if set.changed > 0 {
            println!("{} backends have gone up or down", set.changed);
        }
        fail_over(&instance, healthy.map(|colour| colour.contains(&true)))?;
        report(&instance)?;
        std::thread::sleep(PERIOD);
    }
}

/// Makes the idle colour live if the live colour is down and the idle colour is not.
fn fail_over(instance: &Instance, is_up: [bool; 2]) -> Result<(), Error> {
    let status = instance.status(Some(DEPLOYMENT))?;
    let deployment = &status.deployments[0];
    let live = if deployment.live == Colour::Blue.name() { Colour::Blue } else { Colour::Green };
    if is_up[live as usize] || !is_up[live.other() as usize] {
        return Ok(());
    }
    let request = SwitchRequest {
        to: Some(live.other()),
        // Flows to dead backends are useless.
        on_switch: Some(OnSwitch::Cut),
        // If an operator has switched meanwhile, that decision stands.
        if_generation: Some(deployment.generation),
        reason: Some(format!("no backend of {} answers", live.name())),
        ..SwitchRequest::default()
    };
    match instance.switch(DEPLOYMENT, &request) {
        Ok(switched) => println!("{} is live, fence {:?}", switched.to.live.name(), switched.fence),
        Err(Error::Refused(refusal)) => println!("not switched: {refusal}"),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn report(instance: &Instance) -> Result<(), Error> {
    let status = instance.status(Some(DEPLOYMENT))?;
    let deployment = &status.deployments[0];
    let service = &deployment.services[0];
    println!(
        "{} is live at generation {}, {}: open flows {} blue, {} green; packets {} blue, {} green",
        deployment.live,
        deployment.generation,
        deployment.phase,
        deployment.flows.blue,
        deployment.flows.green,
        service.colours.blue.packets,
        service.colours.green.packets,
    );
    Ok(())
}

/// The configuration with these backends, by colour.
fn configuration(vip: SocketAddr, backends: &[Vec<SocketAddr>; 2]) -> Config {
    let specs = |backends: &Vec<SocketAddr>| {
        backends.iter().map(|address| BackendSpec { address: *address, weight: 1 }).collect()
    };
    Config {
        deployments: vec![Deployment {
            name: DEPLOYMENT.to_owned(),
            initial: Colour::Blue,
            on_switch: OnSwitch::Drain,
            drain_timeout: Some(Duration::from_secs(600)),
            tcp_idle_timeout: Duration::from_secs(7200),
            udp_idle_timeout: Duration::from_secs(60),
            sticky: DivideBy::Flow,
            sticky_prefix: StickyPrefix::default(),
            testers: Vec::new(),
            health: None,
            failover: Failover::default(),
            gates: Vec::new(),
            services: vec![Service {
                name: SERVICE.to_owned(),
                vip,
                protocol: Protocol::Tcp,
                mode: Mode::Nat,
                preview: None,
                is_mirrored: false,
                tee: Tee::default(),
                encap: Encap::default(),
                backends: backends.each_ref().map(specs),
                health: None,
                is_unchecked: false,
            }],
        }],
        ..Config::default()
    }
}

fn is_healthy(backend: &SocketAddr) -> bool {
    TcpStream::connect_timeout(backend, CONNECT_TIMEOUT).is_ok()
}

fn addresses(list: &str) -> Result<Vec<SocketAddr>, AnyError> {
    list.split(',').map(|address| Ok(address.parse()?)).collect()
}
