//! Gates that ask by HTTP, of a real nginx.

use crate::{Gated, gate};
use anyhow::{Context, Result};
use bg_tests::{Process, config::DEPLOYMENT};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// An nginx on the edge. It answers `/deep` with 200, or with 503 while there is a file, redirects `/moved`, and serves a directory of metrics.
pub(crate) struct Site {
    _process: Process,
}

impl Site {
    pub(crate) const ADDRESS: &str = "127.0.0.1:18080";
    /// The same with TLS, and a certificate that signs itself.
    const SECURE: &str = "127.0.0.1:18443";

    pub(crate) fn start(lab: &Gated) -> Result<Self> {
        let dir = lab.file("site");
        fs::create_dir_all(dir.join("metrics"))?;
        let (here, config) = (dir.display(), dir.join("nginx.conf"));
        let mut openssl = lab.ready.lab.edge.command("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        openssl.args(["-subj", "/CN=site", "-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.arg("-keyout").arg(dir.join("key.pem")).arg("-out").arg(dir.join("cert.pem"));
        bg_tests::output(&mut openssl)?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|name| format!("{name}_temp_path {here}/{name};\n")).concat();
        let text = format!(
            "daemon off;\nworker_processes 1;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\n\
             access_log {here}/access.log;\ndefault_type text/plain;\n{temporary}server {{\nlisten {};\n\
             location = /deep {{ if (-f {here}/down) {{ return 503; }} return 200 \"fine\"; }}\n\
             listen {} ssl; ssl_certificate {here}/cert.pem; ssl_certificate_key {here}/key.pem;\n\
             location = /moved {{ return 302 http://{}/deep; }}\nlocation /metrics {{ root {here}; }}\n}}\n}}\n",
            Self::ADDRESS,
            Self::SECURE,
            Self::ADDRESS
        );
        fs::write(&config, text)?;
        let mut command = lab.ready.lab.edge.command("nginx");
        command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&config);
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let end = Instant::now() + Duration::from_secs(5);
        while lab.ready.lab.edge.enter(|| TcpStream::connect(Self::ADDRESS))?.is_err() {
            anyhow::ensure!(Instant::now() < end, "nginx does not serve");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { _process: process })
    }

    pub(crate) fn url(path: &str) -> String {
        format!("http://{}{path}", Self::ADDRESS)
    }
}

fn http(when: &str, url: &str, more: &str) -> String {
    let times = "timeout = \"1s\"\ninterval = \"100ms\"";
    gate(DEPLOYMENT, when, &format!("kind = \"http\"\nurl = \"{url}\"\n{times}\n{more}"))
}

#[test]
fn only_the_expected_answer_passes() -> Result<()> {
    let lab = Gated::new()?;
    let site = Site::start(&lab)?;
    let down = lab.file("site/down");
    let deep = http("before", &Site::url("/deep"), "");
    fs::write(&down, "")?;
    lab.apply(std::slice::from_ref(&deep))?;
    lab.refused(&[], &[&format!("gate http {}", Site::url("/deep")), "answered with 503 Service Unavailable"]);
    lab.apply(&[http("before", &Site::url("/moved"), "")])?;
    lab.refused(&[], &["answered with 302 Found to http://127.0.0.1:18080/deep, which is not followed"]);
    lab.apply(&[http("before", "http://127.0.0.1:18081/", "")])?;
    lab.refused(&[], &["Connection refused"]);
    // Nobody answers.
    let silent = lab.ready.lab.edge.enter(|| TcpListener::bind("127.0.0.1:18082"))??;
    lab.apply(&[http("before", "http://127.0.0.1:18082/", "").replace("\"1s\"", "\"200ms\"")])?;
    lab.refused(&[], &["it had not ended after 200ms"]);
    drop(silent);
    // A certificate counts if the system trusts it.
    lab.apply(&[http("before", &format!("https://{}/deep", Site::SECURE), "")])?;
    lab.refused(&[], &["https://127.0.0.1:18443/deep", "invalid peer certificate"]);
    fs::remove_file(&down)?;
    let mut trusting = lab.ready.bgctl.command(&["switch", DEPLOYMENT]);
    let trusted = trusting.env("SSL_CERT_FILE", lab.file("site/cert.pem")).output()?;
    assert_eq!(trusted.status.code(), Some(0), "{}", String::from_utf8_lossy(&trusted.stderr));
    assert_eq!(lab.run(&["rollback", DEPLOYMENT])?.code, Some(0));
    fs::write(&down, "")?;

    // A proxy in the environment is not asked.
    lab.apply(&[http("before", &Site::url("/deep"), "expect_status = \"200,503\"")])?;
    let mut command = lab.ready.bgctl.command(&["switch", DEPLOYMENT, "green"]);
    let expected = command.env("http_proxy", "http://127.0.0.1:1").output()?;
    assert_eq!(expected.status.code(), Some(0), "{}", String::from_utf8_lossy(&expected.stderr));
    fs::remove_file(&down)?;
    lab.apply(&[deep, http("after", &Site::url("/deep"), "")])?;
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "blue", "--confirm-within", "1s"])?.code, Some(0));
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");

    // It breaks while the switch waits: the old colour is live again at once.
    let began = Instant::now();
    let failed = thread::scope(|scope| {
        let switch = scope.spawn(|| lab.run(&["switch", DEPLOYMENT, "green", "--confirm-within", "1m"]));
        while lab.state(DEPLOYMENT)?.0 != "green" {
            anyhow::ensure!(began.elapsed() < crate::PATIENCE, "it was not switched");
        }
        fs::write(&down, "")?;
        switch.join().ok().context("panicked")?
    })?;
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    assert!(began.elapsed() < crate::PATIENCE, "{:?}", began.elapsed());
    assert!(failed.err.contains("503") && failed.err.contains("blue is live"), "{}", failed.err);
    assert_eq!(lab.state(DEPLOYMENT)?.0, "blue");
    drop(site);
    lab.ready.neighbour_is_undisturbed()
}
