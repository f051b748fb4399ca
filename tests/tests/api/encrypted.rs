//! TLS, with certificates of clients.

use crate::setup::{LISTEN, Served};
use anyhow::{Context, Result, ensure};
use bg_tests::{Process, config::DEPLOYMENT, run};
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
    let servers = [("localhost", "server"), ("*.edge.example", "any")];
    for (name, file) in servers.into_iter().chain(clients.iter().map(|name| (*name, *name))) {
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
    let served = Served::with(|dir| {
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

    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn a_new_certificate_is_served_and_open_connections_go_on() -> Result<()> {
    let mut served = Served::with(|dir| {
        certificates(&dir.join("ours"), &[])?;
        certificates(&dir.join("theirs"), &["guest"])?;
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        Ok(format!(
            "listen = \"{LISTEN}\"\ntls = {{ certificate = \"{0}/server.pem\", key = \"{0}/server.key\", client_ca = \"{1}/ca.pem\" }}",
            ours.display(),
            theirs.display()
        ))
    })?;
    let dir = served.ready.lab.sandbox.dir().to_owned();
    let file = |of: &str, name: &str| dir.join(of).join(name).display().to_string();
    let get = |served: &Served, ca: &str, name: &str| {
        let to = format!("{name}:7470:127.0.0.1");
        let url = format!("https://{name}:7470/healthz");
        curl(served, &["--cacert", &file(ca, "ca.pem"), "--resolve", &to, &url])
    };
    let until = |served: &Served, ca: &str, name: &str, wanted: &str| -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while get(served, ca, name)? != wanted {
            ensure!(Instant::now() < end, "{name} is not answered with {wanted}: {}", served.controller.log()?);
        }
        Ok(())
    };
    assert_eq!([get(&served, "ours", "localhost")?, get(&served, "theirs", "localhost")?], ["200", "000"]);
    // Somebody who listens, over the certificate of now.
    let heard = dir.join("events");
    let mut command = served.ready.lab.edge.command("curl");
    command.args(["--silent", "--no-buffer", "--cacert", &file("ours", "ca.pem")]);
    command.args(["--cert", &file("theirs", "guest.pem"), "--key", &file("theirs", "guest.key")]);
    command.arg("https://localhost:7470/v1/events").stdout(fs::File::create(&heard)?);
    let _listener = Process::spawn(&mut command)?;
    let told = || Ok::<_, anyhow::Error>(fs::read_to_string(&heard)?.matches("event: counters").count());
    let hears_more = || -> Result<()> {
        let (before, end) = (told()?, Instant::now() + Duration::from_secs(20));
        while told()? < before + 3 {
            ensure!(Instant::now() < end, "the events have ended: {}", fs::read_to_string(&heard)?);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    hears_more()?;
    let put = |of: &str, name: &str| -> Result<()> {
        for (kind, from) in [("pem", format!("{name}.pem")), ("key", format!("{name}.key"))] {
            fs::copy(file(of, &from), file("ours", &format!("server.{kind}")))?;
        }
        Ok(())
    };
    put("theirs", "server")?;
    served.controller.reload()?;
    until(&served, "theirs", "localhost", "200")?;
    assert_eq!(get(&served, "ours", "localhost")?, "000", "the old one is gone");
    hears_more()?;

    // One that is broken, and one whose key is another's, are not taken.
    let key = fs::read(file("ours", "server.key"))?;
    for (broken, what) in [("server.pem", "no certificate"), ("server.key", "no key")] {
        let before = served.controller.log()?.matches("the certificate from before stays").count();
        let whole = fs::read(file("ours", broken))?;
        fs::write(file("ours", broken), "-----BEGIN NOTHING-----\n")?;
        served.controller.reload()?;
        let end = Instant::now() + Duration::from_secs(10);
        while served.controller.log()?.matches("the certificate from before stays").count() == before {
            ensure!(Instant::now() < end, "{what}: {}", served.controller.log()?);
        }
        assert_eq!(get(&served, "theirs", "localhost")?, "200", "{what}");
        fs::write(file("ours", broken), whole)?;
    }
    assert_eq!(fs::read(file("ours", "server.key"))?, key);
    hears_more()?;

    // For all names of a domain, and no others.
    put("theirs", "any")?;
    served.controller.reload()?;
    until(&served, "theirs", "west.edge.example", "200")?;
    let host = |name: &str| {
        curl(&served, &["--insecure", "--header", &format!("Host: {name}"), "https://127.0.0.1:7470/healthz"])
    };
    for (name, status) in [
        ("east.edge.example", "200"),
        ("EAST.edge.example:7470", "200"),
        ("far.west.edge.example", "421"),
        ("edge.example", "421"),
        ("edge.example.evil", "421"),
    ] {
        assert_eq!(host(name)?, status, "{name}");
    }
    hears_more()
}

#[test]
fn connections_end_whose_authority_was_removed_and_no_others() -> Result<()> {
    let mut served = Served::with(|dir| {
        certificates(&dir.join("ours"), &["guest"])?;
        certificates(&dir.join("theirs"), &["guest"])?;
        let (ours, theirs) = (dir.join("ours"), dir.join("theirs"));
        fs::write(
            dir.join("clients.pem"),
            fs::read_to_string(ours.join("ca.pem"))? + &fs::read_to_string(theirs.join("ca.pem"))?,
        )?;
        Ok(format!(
            "listen = \"{LISTEN}\"\ntls = {{ certificate = \"{0}/server.pem\", key = \"{0}/server.key\", client_ca = \"{1}/clients.pem\" }}",
            ours.display(),
            dir.display()
        ))
    })?;
    let dir = served.ready.lab.sandbox.dir().to_owned();
    let listen = |of: &str| -> Result<Process> {
        let own = dir.join(of);
        let mut command = served.ready.lab.edge.command("curl");
        command.args(["--silent", "--no-buffer", "--cacert"]).arg(dir.join("ours/ca.pem"));
        command.arg("--cert").arg(own.join("guest.pem")).arg("--key").arg(own.join("guest.key"));
        command.arg("https://localhost:7470/v1/events").stdout(fs::File::create(own.join("heard"))?);
        Process::spawn(&mut command)
    };
    let hears_more = |of: &str| -> Result<()> {
        let told = || {
            Ok::<_, anyhow::Error>(fs::read_to_string(dir.join(of).join("heard"))?.matches("event: counters").count())
        };
        let (before, end) = (told()?, Instant::now() + Duration::from_secs(20));
        while told()? < before + 2 {
            ensure!(Instant::now() < end, "no events come for the client of {of}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    let (_stays, mut goes) = (listen("ours")?, listen("theirs")?);
    hears_more("ours")?;
    hears_more("theirs")?;
    // What is read again unchanged ends nothing.
    served.controller.reload()?;
    hears_more("theirs")?;

    fs::copy(dir.join("ours/ca.pem"), dir.join("clients.pem"))?;
    served.controller.reload()?;
    ensure!(goes.wait(Duration::from_secs(20))?.is_some(), "the events go on: {}", served.controller.log()?);
    hears_more("ours")
}
