//! The demo's controller, and a way to its web page from this machine's own network.

use anyhow::{Context, Result};
use bg_tests::{Bgctl, Controller, HTTP_PORT, Lab, config::DEPLOYMENT};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::{self, Read as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    thread,
};

/// Where the controller listens in the edge's namespace, and the page is found from here.
const PORT: u16 = 7470;

/// A running controller whose page can be reached.
#[derive(Debug)]
pub(super) struct Web {
    _controller: Controller,
    /// The address of the page, and what it asks for, in words.
    pub(super) address: String,
}

/// What the configuration needs besides: checks, and a listener. Any user of this machine can connect to it, so it asks for a token.
pub(super) fn configuration(lab: &Lab) -> Result<(String, String)> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let hex = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let token = hex(&random);
    let file = lab.sandbox.dir().join("tokens");
    fs::write(&file, format!("demo operator {}\n", hex(&Sha256::digest(&token))))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let socket = lab.sandbox.dir().join("api.sock");
    let config = format!(
        "\n[deployments.{DEPLOYMENT}.health]\nkind = \"http\"\npath = \"/\"\nport = {HTTP_PORT}\n\n\
         [serve]\nsocket = \"{}\"\nlisten = \"127.0.0.1:{PORT}\"\ntokens = \"{}\"\n",
        socket.display(),
        file.display()
    );
    Ok((config, token))
}

/// Starts the controller on the edge, and passes connections from this machine's own loopback on to it.
pub(super) fn start(lab: &Lab, bgctl: &Bgctl, token: &str) -> Result<Web> {
    let controller = Controller::start(bgctl)?;
    let usual = SocketAddr::from(([127, 0, 0, 1], PORT));
    // Another program may have the usual port.
    let listener = TcpListener::bind(usual).or_else(|_| TcpListener::bind(SocketAddr::new(usual.ip(), 0)));
    let listener = listener.context("cannot listen on a port of 127.0.0.1")?;
    let address = format!("http://{}/ (user demo, password {token})", listener.local_addr()?);
    let edge = lab.edge.clone();
    thread::Builder::new().name("web".to_owned()).spawn(move || {
        for near in listener.incoming().flatten() {
            // One that the controller does not take is closed.
            let Ok(Ok(far)) = edge.enter(|| TcpStream::connect(usual)) else { continue };
            let (near, far) = (Arc::new(near), Arc::new(far));
            pass(near.clone(), far.clone());
            pass(far, near);
        }
    })?;
    Ok(Web { _controller: controller, address })
}

fn pass(from: Arc<TcpStream>, to: Arc<TcpStream>) {
    thread::spawn(move || {
        let _ = io::copy(&mut &*from, &mut &*to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
