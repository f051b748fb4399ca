//! bgctl. Its configuration begins with a deployment that is never switched.

use super::{super::arena, Running};
use crate::bench::{cutover::server, edge};
use anyhow::{Result, ensure};
use bg_common::Colour;
use bg_tests::Bgctl;
use std::{fmt::Write as _, process::Command};

use super::{Arena, Kind, Serving};

pub(super) struct Ours {
    bgctl: Bgctl,
    paths: [String; 2],
}

impl Ours {
    /// `rows` are those of the flow table, if not the default. With N flows, it has 2N.
    pub(super) fn start(arena: &Arena, rows: Option<u32>, state: Serving) -> Result<Self> {
        let lab = &arena.lab;
        let bgctl = lab.bgctl_at(edge::bgctl());
        let flows = rows.map(|rows| (rows / 2).to_string());
        let size = flows.as_ref().map_or(vec![], |flows| vec!["--flows", flows]);
        bgctl.run(&[&["attach", "--mode", "native"], size.as_slice(), lab.interfaces.as_slice()].concat())?;
        bgctl.apply(&config(state))?;
        let status = bgctl.json(&["status"])?;
        let modes = status["interfaces"].as_array().into_iter().flatten().filter(|one| one["mode"] == "native");
        ensure!(modes.count() == 2, "expected two interfaces in native mode: {status}");
        let paths = [lab.sandbox.pin_root().display().to_string(), lab.sandbox.state_dir().display().to_string()];
        Ok(Self { bgctl, paths })
    }
}

impl Running for Ours {
    fn change(&mut self, kind: Kind, to: Serving) -> Result<Command> {
        let mut command = Command::new(self.bgctl.program());
        command.args(["--pin-root", &self.paths[0], "--state-dir", &self.paths[1]]);
        match kind {
            Kind::Switches => command.args(["switch", edge::DEPLOYMENT, to.live.name()]),
            Kind::Backends => command.args(["apply", "-c", &self.bgctl.write_config(&config(to))?]),
        };
        Ok(command)
    }

    fn evicted(&self) -> Result<Option<u64>> {
        Ok(Some(self.bgctl.json(&["status"])?["events"]["pushed_out"].as_u64().unwrap_or(0)))
    }
}

fn config(state: Serving) -> String {
    let mut config =
        "[deployments.mail]\n[[deployments.mail.services]]\nvip = \"203.0.113.20:25\"\nprotocol = \"tcp\"\n\
                      mode = \"nat\"\nblue = [\"10.0.1.11:25\"]\ngreen = [\"10.0.2.11:25\"]\n"
            .to_owned();
    let _ = write!(
        config,
        "[deployments.{0}]\n[[deployments.{0}.services]]\nvip = \"{1}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n",
        edge::DEPLOYMENT,
        arena::vip()
    );
    for colour in Colour::ALL {
        let backend = |number| {
            let is_out = colour == state.live && state.out == Some(number);
            let address = arena::backend(colour, number);
            format!("{{ address = \"{address}:{}\", weight = {} }}", server::PORT, u8::from(!is_out))
        };
        let all: Vec<_> = (0..arena::BACKENDS).map(backend).collect();
        let _ = writeln!(config, "{} = [{}]", colour.name(), all.join(", "));
    }
    config
}
