//! TLS, with certificates of clients.

use crate::setup::{LISTEN, Served};
use anyhow::{Context, Result};
use bg_tests::{config::DEPLOYMENT, run};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// An authority in `dir`, and a certificate of it for the server and for each client.
fn certificates(dir: &Path, clients: &[&str]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let dir = dir.display();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("openssl req -x509 {key} -keyout {dir}/ca.key -out {dir}/ca.pem -days 2 -subj /CN=authority"))?;
    for (name, file) in [("localhost", "server")].into_iter().chain(clients.iter().map(|name| (*name, *name))) {
        run(&format!(
            "openssl req -x509 {key} -keyout {dir}/{file}.key -out {dir}/{file}.pem -days 2 -subj /CN={name} -addext subjectAltName=DNS:{name} \
             -addext basicConstraints=critical,CA:FALSE -CA {dir}/ca.pem -CAkey {dir}/ca.key"
        ))?;
    }
    Ok(())
}

/// What curl says: the status, or 000 without a connection.
fn curl(served: &Served, arguments: &[&str]) -> Result<String> {
    let mut command = served.ready.lab.edge.command("curl");
    command.args(["--silent", "--output", "/dev/null", "--max-time", "10", "--write-out", "%{http_code}"]);
    let output = command.args(arguments).output().context("cannot run curl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn clients_are_known_by_their_certificates() -> Result<()> {
    let mut served = Served::with(|dir| {
        certificates(&dir.join("ours"), &["chief", "guest"])?;
        certificates(&dir.join("theirs"), &["chief"])?;
        let tokens = dir.join("tokens");
        fs::write(&tokens, "cert:chief operator -\n")?;
        fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600))?;
        let ours = dir.join("ours");
        let ours = ours.display();
        Ok(format!(
            "listen = \"{LISTEN}\"\ntokens = \"{}\"\n\
             tls = {{ certificate = \"{ours}/server.pem\", key = \"{ours}/server.key\", client_ca = \"{ours}/ca.pem\" }}",
            tokens.display()
        ))
    })?;
    let dir = served.ready.lab.sandbox.dir().to_owned();
    let file = |of: &str, name: &str| dir.join(of).join(name).display().to_string();
    let ca = file("ours", "ca.pem");
    let status = "https://localhost:7470/v1/status";
    let switch = format!("https://localhost:7470/v1/deployments/{DEPLOYMENT}/switch");
    let ask = |served: &Served, of: &str, client: Option<&str>, url: &str, more: &[&str]| {
        let pair = client.map(|name| [file(of, &format!("{name}.pem")), file(of, &format!("{name}.key"))]);
        let mut arguments = vec!["--cacert", &ca];
        if let Some([certificate, key]) = &pair {
            arguments.extend(["--cert", certificate.as_str(), "--key", key.as_str()]);
        }
        arguments.extend(more);
        arguments.push(url);
        curl(served, &arguments)
    };
    let post = ["--request", "POST"];
    assert_eq!(ask(&served, "ours", None, "https://localhost:7470/healthz", &[])?, "200");
    assert_eq!(ask(&served, "ours", None, status, &[])?, "401", "no certificate, no token");
    assert_eq!(ask(&served, "ours", Some("guest"), status, &[])?, "200");
    assert_eq!(ask(&served, "ours", Some("guest"), &switch, &post)?, "403");
    assert_eq!(ask(&served, "ours", Some("chief"), &switch, &post)?, "200");
    let history = served.ready.bgctl.json(&["history", "--last", "1"])?;
    assert_eq!(history["records"][0]["who"]["user"], "chief");
    assert_eq!(ask(&served, "theirs", Some("chief"), status, &[])?, "000", "of another authority");
    assert_eq!(curl(&served, &["http://127.0.0.1:7470/healthz"])?, "000", "not encrypted");
    assert_eq!(curl(&served, &["--cacert", &file("theirs", "ca.pem"), status])?, "000");

    // Certificates are read again with the configuration.
    for name in ["server.pem", "server.key"] {
        fs::copy(file("theirs", name), file("ours", name))?;
    }
    served.controller.reload()?;
    let end = Instant::now() + Duration::from_secs(5);
    while curl(&served, &["--cacert", &file("theirs", "ca.pem"), "https://localhost:7470/healthz"])? != "200" {
        assert!(Instant::now() < end, "the old certificate is there still: {}", served.controller.log()?);
    }
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}
