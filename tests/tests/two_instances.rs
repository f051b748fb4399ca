//! Two instances on the same interfaces, in tc: packets that are for no VIP of the first go on to the second, replies
//! too, and each switches its own services alone.

use anyhow::{Context, Result};
use bg_common::Colour;
use bg_tests::{
    Lab, NewFlows, Ready, address,
    config::{DEPLOYMENT, shop, udp_vip},
};
use std::{net::SocketAddr, process::Output};

const FLOWS: u16 = 20;

/// The colours that answer new flows to a VIP.
fn colours(ready: &Ready, vip: SocketAddr, ports: std::ops::Range<u16>) -> Result<Vec<Option<Colour>>> {
    let live = ready.live()?;
    let mut flows = NewFlows::new(vip, &[address::CLIENT_V4], ports);
    ready.lab.client.enter(|| {
        let ask = |_| Ok(flows.ask(&live)?.answer.map(|answer| answer.colour));
        (0..FLOWS).map(ask).collect::<Result<Vec<_>>>()
    })?
}

#[test]
fn instances_with_different_vips_share_interfaces() -> Result<()> {
    let lab = Lab::bridge()?;
    let config = shop(&lab, "nat", "");
    let ready = Ready::with(lab, "tc", &config)?;
    let lab = &ready.lab;
    let file = lab.sandbox.dir().join("second.toml");
    let other_ports = config.replace(":53\"", ":54\"").replace(":80\"", ":81\"").replace(":9080\"", ":9081\"");
    std::fs::write(&file, other_ports).context("cannot write the second configuration")?;
    let second = |words: &[&str]| -> Result<Output> {
        let mut command = lab.edge.command(ready.bgctl.program());
        command.arg("--pin-root").arg(lab.sandbox.pin_root().join("second"));
        command.arg("--state-dir").arg(lab.sandbox.dir().join("second-state"));
        Ok(command.args(words).output()?)
    };
    let done = |words: &[&str]| -> Result<()> {
        let output = second(words)?;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let attach = [&["attach", "--mode", "tc"], lab.interfaces.as_slice()].concat();
    assert_eq!(second(&attach)?.status.code(), Some(3), "a mistyped --pin-root looks just so");
    done(&[attach.as_slice(), &["--force"]].concat())?;
    done(&["apply", "-c", &file.display().to_string()])?;

    let first_vip = udp_vip(address::VIP_V4);
    let second_vip = SocketAddr::new(address::VIP_V4, 54);
    let all = |colour| vec![Some(colour); usize::from(FLOWS)];
    assert_eq!(colours(&ready, first_vip, 20_000..20_100)?, all(Colour::Blue));
    assert_eq!(colours(&ready, second_vip, 20_100..20_200)?, all(Colour::Blue));
    done(&["switch", DEPLOYMENT, "green"])?;
    assert_eq!(colours(&ready, first_vip, 20_200..20_300)?, all(Colour::Blue));
    assert_eq!(colours(&ready, second_vip, 20_300..20_400)?, all(Colour::Green));
    ready.bgctl.run(&["switch", DEPLOYMENT, "green"])?;
    assert_eq!(colours(&ready, first_vip, 20_400..20_500)?, all(Colour::Green));
    done(&["detach", "--all"])
}
