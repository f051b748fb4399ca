//! 1,000 services of 100 backends a colour: applied in seconds, switched in milliseconds, all by one store.
//!
//! A busy machine lets a command wait for a processor, so the bounds are on the processor time that it takes, and on how
//! often it waits for something else.

use anyhow::Result;
use bg_common::Colour;
use bg_tests::{
    Fabric, Lab, Live, SwitchInstant, address,
    config::{DEPLOYMENT, neighbour},
};
use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

const SERVICES: u16 = 1000;
const BACKENDS: u8 = 100;

/// Services on ports of one VIP. Those on the port of the echo lead to the lab's backends; the others to
/// machines that are not there.
fn config(lab: &Lab, changed: Option<u16>) -> String {
    let mut config = neighbour(lab, "nat") + &format!("[deployments.{DEPLOYMENT}]\n");
    for service in 0..SERVICES {
        let vip = SocketAddr::new(address::VIP_V4, 10_000 + service);
        write!(config, "[[deployments.{DEPLOYMENT}.services]]\nvip = \"{vip}\"\nprotocol = \"udp\"\nmode = \"nat\"\n")
            .unwrap();
        for colour in Colour::ALL {
            let backend = |number: u8| -> SocketAddr {
                if service == 0 {
                    let of_colour = lab.backends.iter().filter(|backend| backend.colour == colour);
                    let addresses: Vec<_> = of_colour.map(|backend| backend.addresses[0]).collect();
                    return SocketAddr::new(addresses[number as usize % 2], bg_tests::UDP_PORT);
                }
                let shift = if changed == Some(service) { 100 } else { 0 };
                let [high, low] = service.to_be_bytes();
                SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 16 * (colour as u8 + 1) + high, low, number + shift)), 53)
            };
            let number = if service == 0 { 2 } else { BACKENDS };
            let list: Vec<_> = (1..=number).map(|number| format!("\"{}\"", backend(number))).collect();
            writeln!(config, "{} = [{}]", colour.name(), list.join(", ")).unwrap();
        }
    }
    config
}

/// What a command costs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    took: Duration,
    /// Processor time.
    worked: Duration,
    /// How often it has waited for something that is not a processor.
    waited: i64,
}

impl Cost {
    /// Runs a command to its end. No other child of this process may end meanwhile.
    fn of(command: impl FnOnce() -> Result<String>) -> Result<Self> {
        let (start, before) = (Instant::now(), children());
        command()?;
        let after = children();
        let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, 1000 * time.tv_usec as u32);
        let worked = |usage: &libc::rusage| time(usage.ru_utime) + time(usage.ru_stime);
        let waited = after.ru_nvcsw - before.ru_nvcsw;
        Ok(Self { took: start.elapsed(), worked: worked(&after) - worked(&before), waited })
    }
}

/// What all children that have ended have used.
fn children() -> libc::rusage {
    // SAFETY: a plain struct of integers, for which zeros are values.
    let mut usage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to an rusage that outlives the call.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) }, 0);
    usage
}

#[test]
fn a_thousand_services_are_applied_in_seconds_and_switched_in_milliseconds() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let _servers = lab.servers()?;
    let bgctl = lab.bgctl()?;
    let room = ["attach", "--mode", "native", "--services", "2048", "--backends", "262144"];
    bgctl.run(&[&room, lab.interfaces.as_slice()].concat())?;

    let file = bgctl.write_config(&config(&lab, None))?;
    let apply = |what: &str, limit: Duration| -> Result<Cost> {
        let cost = Cost::of(|| bgctl.run(&["apply", "-c", &file]))?;
        println!("{what}: {cost:?}");
        assert!(cost.worked < limit, "{what}: {cost:?}, expected less than {limit:?}");
        assert!(cost.waited < SERVICES.into(), "{what}: {cost:?}, expected fewer than one for each service");
        Ok(cost)
    };
    apply("the first apply", Duration::from_secs(5))?;
    let unchanged = apply("an apply that changes nothing", Duration::from_secs(3))?;
    bgctl.write_config(&config(&lab, Some(500)))?;
    apply("an apply that changes one service", Duration::from_secs(3))?;

    let live = Live::open(lab.sandbox.pin_root())?;
    let mut colour = Colour::Blue;
    let mut costs = Vec::new();
    for _ in 0..40 {
        costs.push(Cost::of(|| bgctl.run(&["switch", DEPLOYMENT]))?);
        colour = colour.other();
    }
    costs.sort();
    println!("switch, as a process: fastest {:?}, median {:?}, slowest {:?}", costs[0], costs[20], costs[39]);
    // An apply looks at every backend of every service, a switch at none.
    assert!(costs[20].worked < unchanged.worked / 20 && costs[20].waited < 50, "{unchanged:?}, {costs:?}");

    // And it does what it says: new flows of a service follow.
    let vip = SocketAddr::new(address::VIP_V4, 10_000);
    let switch = || bgctl.run(&["switch", DEPLOYMENT]).map(drop);
    let measured = SwitchInstant::measure(&lab.client, vip, &live, switch)?;
    assert_eq!((measured.late(colour.other()), measured.lost()), (0, 0));
    assert!(measured.first_arrival(colour.other()).is_some());
    Ok(())
}
