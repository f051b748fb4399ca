//! A lab whose controller serves the API.

use anyhow::{Context, Result};
use bg_tests::{Controller, Fabric, HttpClient, HttpEvents, Lab, Ready, config::shop};
use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where it listens in the edge's namespace.
pub(crate) const LISTEN: &str = "127.0.0.1:7470";

/// A lab with a controller.
pub(crate) struct Served {
    pub(crate) controller: Controller,
    pub(crate) ready: Ready,
    socket: PathBuf,
}

impl Served {
    /// With these keys in `[serve]`, beside that of the socket. `prepare` gets the directory for files first.
    pub(crate) fn with(prepare: impl FnOnce(&Path) -> Result<String>) -> Result<Self> {
        let lab = Lab::wire(Fabric::Switch)?;
        let socket = lab.sandbox.dir().join("run/api.sock");
        let serve = prepare(lab.sandbox.dir())?;
        let config = format!("{}\n[serve]\nsocket = \"{}\"\n{serve}\n", shop(&lab, "nat", ""), socket.display());
        let ready = Ready::with(lab, "native", &config)?;
        let controller = Controller::start(&ready.bgctl)?;
        Ok(Self { controller, ready, socket })
    }

    /// On the socket and on loopback, for users of this host.
    pub(crate) fn local() -> Result<Self> {
        Self::with(|_| Ok(format!("listen = \"{LISTEN}\"")))
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Over the socket.
    pub(crate) fn client(&self) -> Result<HttpClient> {
        HttpClient::unix(&self.socket)
    }

    /// Over TCP, from the edge itself.
    pub(crate) fn tcp(&self) -> Result<HttpClient> {
        let address: SocketAddr = LISTEN.parse()?;
        self.ready.lab.edge.enter(|| HttpClient::tcp(address))?
    }

    pub(crate) fn events(&self) -> Result<HttpEvents> {
        HttpEvents::listen(self.client()?, "/v1/events")
    }
}

/// The hash of a token, in the form of the file.
pub(crate) fn sha256(text: &str) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let printed = String::from_utf8(child.wait_with_output()?.stdout)?;
    Ok(printed.split(' ').next().unwrap_or_default().to_owned())
}
