//! The object is no secret of bgctl: bpftool, and so libbpf, loads it, attaches it and finds its maps.

use anyhow::{Context, Result};
use bg_tests::{Fabric, Lab, address};
use std::path::{Path, PathBuf};

/// The object under test: the fresh one that `BGCTL_BPF_OBJECT` names, else the committed one.
fn object() -> PathBuf {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../bg-userspace/bpf/bg.bpf.o");
    std::env::var_os("BGCTL_BPF_OBJECT").map_or_else(committed, PathBuf::from)
}

#[test]
fn bpftool_loads_and_attaches_the_object_without_bgctl() -> Result<()> {
    let lab = Lab::wire(Fabric::Switch)?;
    let (edge, root) = (&lab.edge, lab.sandbox.pin_root().display());
    let (object, root) = (object().display().to_string(), root.to_string());
    std::fs::create_dir(&root).with_context(|| format!("cannot make {root}"))?;
    edge.run(&format!("bpftool prog loadall {object} {root}/programs pinmaps {root}/maps"))
        .context("if bpftool is missing, `cargo xtask setup` installs it")?;

    for program in ["ingress", "tc_ingress", "tc_egress"] {
        assert!(Path::new(&format!("{root}/programs/{program}")).exists(), "{program}");
    }
    let live = edge.run(&format!("bpftool --json map show pinned {root}/maps/live"))?;
    let live: serde_json::Value = serde_json::from_str(&live)?;
    assert_eq!((&live["type"], &live["bytes_value"]), (&"array".into(), &8.into()), "{live}");

    for interface in ["front", "back"] {
        edge.run(&format!("bpftool net attach xdpdrv pinned {root}/programs/ingress dev {interface}"))?;
    }
    assert!(edge.ip("-details link show dev front")?.contains("prog/xdp"), "attached in the driver");
    // Nothing is configured: all traffic is somebody else's, and passes.
    for backend in &lab.backends {
        for address in backend.addresses {
            lab.client.run(&format!("ping -n -q -c 1 -W 2 {address}"))?;
        }
    }
    assert!(lab.client.run(&format!("ping -n -q -c 1 -W 1 {}", address::VIP_V4)).is_err(), "nobody has the VIP");
    for interface in ["front", "back"] {
        edge.run(&format!("bpftool net detach xdpdrv dev {interface}"))?;
    }
    Ok(())
}
